"""Where arrays live: the namespace of an array, the choice of a device, and moves between host and device.

Only the task runner and the CuPy twins move arrays; everything else stays where its arrays are.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from cloudem.errors import ParameterError

Device = Literal["cpu", "gpu"]


def on_device(array: Any) -> bool:
    """Return whether an array lives on a GPU; does not import CuPy."""
    return type(array).__module__.split(".")[0] == "cupy"


def array_namespace(array: Any) -> Any:
    """Return the module whose functions take this array: CuPy, NumPy, or what the array names itself.

    CuPy is treated apart because its arrays do not name their namespace (14.2).
    """
    if on_device(array):
        import cupy

        return cupy
    return array.__array_namespace__()


def fft_namespace(array: Any) -> Any:
    """Return the module with ``rfft2``, ``rfftn`` and their inverses for an array: SciPy or its CuPy form."""
    if on_device(array):
        import cupyx.scipy.fft

        return cupyx.scipy.fft
    import scipy.fft

    return scipy.fft


def why_no_gpu() -> str | None:
    """Return in one line why no GPU can be used; None where one can."""
    try:
        import cupy
    except ImportError:
        return "CuPy is not installed; try pip install 'cloudem[gpu]'"
    try:
        count = cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError as error:
        return f"CUDA finds no GPU ({error})"
    return None if count else "CUDA finds no GPU"


def choose_device(wanted: Literal["auto", "cpu", "gpu"] = "auto") -> Device:
    """Return where the heavy arrays of this process go.

    Which of several GPUs is decided outside, by ``CUDA_VISIBLE_DEVICES`` (`cloudem.execution.gpus`): a process uses the
    first that it sees.

    Raises
    ------
    ParameterError
        A GPU is wanted and there is none.
    """
    if wanted == "cpu":
        return "cpu"
    reason = why_no_gpu()
    if reason is None:
        return "gpu"
    if wanted == "gpu":
        raise ParameterError(f"device gpu: {reason}; choose device cpu or auto, or a machine with a GPU")
    return "cpu"


def to_device(array: Any, device: Device) -> Any:
    """Return an array on a device; the same array where it is there already."""
    if device == "cpu":
        return to_host(array)
    import cupy

    return cupy.asarray(array)


def to_host(array: Any) -> NDArray[Any]:
    """Return an array as NumPy's; the same array where it is one already."""
    if on_device(array):
        import cupy

        return np.asarray(cupy.asnumpy(array))
    return np.asarray(array)
