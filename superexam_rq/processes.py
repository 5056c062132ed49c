"""Processes that must not outlive the one that started them.

`python -m superexam_rq.processes PID MODULE ARGUMENTS`, started by the process PID, becomes `python -m MODULE
ARGUMENTS`, and gets SIGTERM when that process is gone. It does so by itself, since a hook between fork and exec is not
safe in a parent that runs threads or gRPC.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

# prctl(2), linux/prctl.h
_PR_SET_PDEATHSIG = 1


def die_with_parent(parent: int, number: signal.Signals = signal.SIGKILL) -> None:
    """Ask the kernel to send this process a signal once its parent is gone; does nothing but on Linux.

    Called in the child, right after the fork, with the parent's process id: if it has died before, the signal comes
    at once. The setting is kept across exec.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, int(number), 0, 0, 0)
        if os.getppid() != parent:
            os.kill(os.getpid(), number)


if __name__ == "__main__":
    die_with_parent(int(sys.argv[1]), signal.SIGTERM)
    os.execv(sys.executable, [sys.executable, "-m", *sys.argv[2:]])
