"""The command line: ``mux serve | run | agents | replay | doctor | config``."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from mux.cli.parser import parse
from mux.errors import MuxError

__all__ = ["main"]

EXIT_USAGE = 2
EXIT_FAILED = 1
EXIT_INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code (also the entry point of the ``mux`` script).

    A :class:`~mux.errors.MuxError` becomes one line on stderr that says what to do; everything else is a
    defect and keeps its traceback.
    """
    args = parse(argv)
    try:
        command = args.load()  # imported only now: `mux --help` needs none of it
        return int(command(args) or 0)
    except MuxError as e:
        from mux.telemetry import printable

        print(printable(f"mux: {e.message} [{e.code}]"), file=sys.stderr)
        return EXIT_USAGE if e.fault == "client" else EXIT_FAILED
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        sys.stderr.close()  # the reader of our output went away (| head): not worth a word
        return 0
