"""Processes that end with whoever started them."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import sys
from collections.abc import Sequence

_PDEATHSIG = 1  # of Linux's prctl(2)

_BECOME = f"""\
import ctypes, os, sys
ctypes.CDLL(None).prctl({_PDEATHSIG}, {int(signal.SIGKILL)})
if os.getppid() != int(sys.argv[1]):  # it ended before it could be asked
    sys.exit({128 + int(signal.SIGKILL)})
os.execv(sys.argv[2], sys.argv[3:])
"""


def ending_with_this(argv: Sequence[str]) -> list[str]:
    """Return a command that becomes ``argv`` and is killed when the thread that starts it ends, however that is.

    The kernel is asked by the new process itself: what runs between fork and exec of a process with threads may wait
    for ever for a lock that one of them held.

    Raises
    ------
    FileNotFoundError
        If there is no such program.
    """
    program = shutil.which(argv[0])
    if program is None:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), argv[0])
    return [sys.executable, "-I", "-S", "-c", _BECOME, str(os.getpid()), program, *argv]
