"""Which GPUs workers get: one process for each, which sees no other. They are counted without touching them."""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import itertools
import os
import re
from collections.abc import Callable

from cloudem.errors import ParameterError

VISIBLE = "CUDA_VISIBLE_DEVICES"
"""Environment variable that says which GPUs a process sees, and in which order; CUDA reads it when it starts."""

NVML = "libnvidia-ml.so.1"
"""NVIDIA's management library, which comes with the driver."""

DEVICE = re.compile(r"\d+|(MIG-|GPU-)\S+")

NO_CUPY = "CuPy is not installed; try pip install 'cloudem[gpu]'"


def gpus_here() -> list[str]:
    """Return the GPUs that this process may use, as `VISIBLE` names them.

    Where that is set, its entries are passed on as they are: indices, UUIDs, MIG devices. As for CUDA, they end before
    the first that is none of these, so that "" and "-1" mean none. Otherwise the driver's management library counts
    them, which makes no CUDA context; where it is missing, or fails, there are none.
    """
    said = os.environ.get(VISIBLE)
    if said is None:
        return [str(number) for number in range(_counted())]
    return list(itertools.takewhile(DEVICE.fullmatch, (name.strip() for name in said.split(","))))


def choose_gpus(wanted: str, say: Callable[[str], None]) -> list[str]:
    """Return the GPUs that get a worker each, as `VISIBLE` names them; none where tasks run on processors.

    Parameters
    ----------
    wanted
        ``auto`` for all that there are, if CuPy is installed to use them; ``none``; or how many.
    say
        Is told if there are GPUs that cannot be used.

    Raises
    ------
    ParameterError
        It is none of these, more are wanted than there are, or CuPy is not installed.
    """
    if wanted != "auto" and wanted != "none" and not (wanted.isascii() and wanted.isdigit()):
        raise ParameterError(f"--gpus: got {wanted!r}, needs auto, none or how many, as --gpus 4")
    if wanted == "none" or wanted.strip("0") == "":
        return []
    found, usable = gpus_here(), importlib.util.find_spec("cupy") is not None
    if wanted == "auto":
        if found and not usable:
            say(f"GPUs are not used ({len(found)} found): {NO_CUPY}")
        return found if usable else []
    if int(wanted) > len(found):
        where = f"{VISIBLE} is {os.environ[VISIBLE]!r}" if VISIBLE in os.environ else "as the NVIDIA driver tells"
        raise ParameterError(f"--gpus: got {wanted}, but this machine has {len(found)} ({where}); try --gpus auto")
    if not usable:
        raise ParameterError(f"--gpus: got {wanted}, but {NO_CUPY}")
    return found[: int(wanted)]


def _counted() -> int:
    """Return how many GPUs the driver's management library knows; 0 where there is none."""
    number = ctypes.c_uint(0)
    with contextlib.suppress(OSError, AttributeError):  # no such library; one without these functions
        library = ctypes.CDLL(NVML)
        if library.nvmlInit_v2() == 0:
            try:
                if library.nvmlDeviceGetCount_v2(ctypes.byref(number)) != 0:
                    return 0
            finally:
                library.nvmlShutdown()
    return number.value
