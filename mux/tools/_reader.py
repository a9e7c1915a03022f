"""The process of `mux.tools.reader` that reads documents: ``python -m mux.tools._reader BYTES SECONDS``.

Each request is a line of JSON (``kind``, ``charset``, ``size``) and then the document's bytes; each answer a
line: ``title`` and ``text``, or ``problem``. The process may use so much memory, and so many seconds of the
processor for each document, and is killed by the system where its parser holds on beyond that. A document of
many pages ends before, with those that were read.
"""

from __future__ import annotations

import json
import os
import resource
import sys

from mux.tools.text import UnreadableError, extract

_ENOUGH = 0.6  # of the time, for the pages; the rest is for starting, and for the page that is the last
_NICE = 10  # parsers compute, the event loop must not wait


def main() -> None:
    """Read documents until the input ends."""
    memory, seconds = int(sys.argv[1]), int(sys.argv[2])
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.nice(_NICE)
    requests, answers = sys.stdin.buffer, sys.stdout.buffer
    sys.stdout = sys.stderr  # what a parser prints is no answer
    while line := requests.readline():
        order = json.loads(line)
        used = resource.getrusage(resource.RUSAGE_SELF)
        spent = int(used.ru_utime + used.ru_stime)
        resource.setrlimit(resource.RLIMIT_CPU, (spent + seconds + 1, resource.RLIM_INFINITY))
        answers.write(_answer(requests.read(order["size"]), order, seconds * _ENOUGH) + b"\n")
        answers.flush()


def _answer(data: bytes, order: dict[str, str], seconds: float) -> bytes:
    try:
        found = extract(data, order["kind"], charset=order["charset"], seconds=seconds)
    except UnreadableError as e:
        return json.dumps({"problem": str(e)}).encode()
    except MemoryError:
        return b'{"problem": "it needs too much memory"}'
    except Exception as e:  # noqa: BLE001 - whatever it is, the next document is read
        return json.dumps({"problem": f"it is broken ({type(e).__name__})"}).encode()
    answer = {"title": found.title, "text": found.text}
    # not escaped: escapes hold the server's loop six times as long; parsers may give half a surrogate pair
    return json.dumps(answer, ensure_ascii=False).encode("utf-8", "replace")


if __name__ == "__main__":
    main()
