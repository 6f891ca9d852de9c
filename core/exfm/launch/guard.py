"""Replaces itself by a command that the kernel ends when the parent process has ended: ``guard.py PARENT COMMAND``.

Run as a file, without exfm: an import would delay every job. On Linux alone; elsewhere the command runs without it.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1  # prctl(2), in linux/prctl.h


def main() -> None:
    """Asks for SIGKILL at the parent's end, which keeps committed windows as any kill does, and runs the command."""
    parent, command = int(sys.argv[1]), sys.argv[2:]
    if sys.platform == "linux":
        # The setting survives exec. It is not sent for a parent that has ended before.
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:
            sys.exit(1)
    os.execvp(command[0], command)


if __name__ == "__main__":
    main()
