"""Runs a program so that it dies with the server: ``python -I -S _watch.py FD LOCALE PROGRAM ARGUMENT…``.

FD is the read end of a pipe whose other end the server holds. It ends when the server does, however that
happens, also by ``kill -9``; then the program's whole process group goes, as it does when the program ends by
itself and leaves children behind. SIGTERM goes on to the group. LOCALE is the program's ``LC_CTYPE``, or
empty: Python sets one of its own where there is none. Needs nothing but the standard library.
"""

import contextlib
import os
import signal
import sys
import threading


def _signal(group: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):  # all of it is gone
        os.killpg(group, number)


def _with_server(fd: int, group: int) -> None:
    while os.read(fd, 1):
        pass
    _signal(group, signal.SIGKILL)


def main() -> int:
    fd = int(sys.argv[1])
    os.set_inheritable(fd, False)
    locale, command = sys.argv[2], sys.argv[3:]
    env = {name: value for name, value in os.environ.items() if name != "LC_CTYPE"}
    try:
        program = os.posix_spawnp(
            command[0],
            command,
            env | ({"LC_CTYPE": locale} if locale else {}),
            setpgroup=0,
            setsigdef=[signal.SIGPIPE],
        )
    except OSError as error:
        sys.stderr.write(f"{command[0]}: {error.strerror}\n")
        return 127
    signal.signal(signal.SIGTERM, lambda number, _: _signal(program, number))
    for stream in (0, 1, 2):
        os.close(stream)  # the program's alone, so that their ends are seen
    threading.Thread(target=_with_server, args=(fd, program), daemon=True).start()
    os.waitid(os.P_PID, program, os.WEXITED | os.WNOWAIT)  # not yet reaped: its id is still its group's
    _signal(program, signal.SIGKILL)
    _, status = os.waitpid(program, 0)
    code = os.waitstatus_to_exitcode(status)
    return 128 - code if code < 0 else code


if __name__ == "__main__":
    os._exit(main())
