"""As much of CuPy as the twins use, on the host: kernels are compiled by the host's compiler (emulation.hpp).

It is strict where a GPU is: arrays on the "device" do not mix with NumPy's, and a kernel's arguments must have the
types that its source declares.
"""

from __future__ import annotations

import ctypes
import functools
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from types import ModuleType

import numpy as np
import scipy.fft

COMPILER = shutil.which("g++") or shutil.which("c++")
HEADER = Path(__file__).with_name("emulation.hpp")

TYPES = {"F": np.float32, "D": np.float64, "I": np.int32, "L": np.int64, "C": np.complex64}
LETTERS = {np.dtype(kind): letter for letter, kind in TYPES.items()}
SCALARS = {np.int32: "i", np.float32: "f"}


class DeviceArray(np.ndarray):
    """An array that refuses to meet arrays of the host."""

    __module__ = "cupy"

    def __array_ufunc__(self, ufunc, method, *inputs, out=None, **kwargs):
        together = (*inputs, *(out or ()))
        strangers = [a for a in together if isinstance(a, np.ndarray) and a.ndim and not isinstance(a, DeviceArray)]
        if strangers:
            raise TypeError(f"{ufunc.__name__}: an array of the host meets one of the device")
        plain = [a.view(np.ndarray) if isinstance(a, DeviceArray) else a for a in inputs]
        if out is not None:
            kwargs["out"] = tuple(a.view(np.ndarray) for a in out)
        result = getattr(ufunc, method)(*plain, **kwargs)
        if out is not None:
            return out[0]
        return np.asarray(result).view(DeviceArray)

    def __array_function__(self, function, types, args, kwargs):
        if any(isinstance(a, np.ndarray) and a.ndim and not isinstance(a, DeviceArray) for a in args):
            raise TypeError(f"{function.__name__}: an array of the host meets one of the device")
        return _placed(super().__array_function__(function, types, args, kwargs))


def _placed(result):
    return result.view(DeviceArray) if isinstance(result, np.ndarray) else result


@functools.cache
def library(code: str) -> ctypes.CDLL:
    """Compile a source with the host's compiler."""
    exports = "".join(f"EXPORT({name})\n" for name in kernels(code))
    folder = Path(tempfile.mkdtemp(prefix="cloudem-emulation-"))
    try:
        (folder / "kernels.cpp").write_text(code + exports)
        flags = ["-std=c++17", "-O2", "-shared", "-fPIC", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"]
        command = [COMPILER, *flags, "-include", HEADER, "kernels.cpp", "-o", "kernels.so"]
        subprocess.run(command, cwd=folder, check=True)
        return ctypes.CDLL(str(folder / "kernels.so"))
    finally:
        shutil.rmtree(folder)


def kernels(code: str) -> list[str]:
    """Return the names of the kernels in a source."""
    return re.findall(r"__global__ void(?:\s+__launch_bounds__\(\w+\))?\s+(\w+)\(", code)


def asarray(values, dtype=None):
    if isinstance(values, DeviceArray):
        return values.astype(dtype or values.dtype, copy=False)
    return np.array(values, dtype).view(DeviceArray)


def ascontiguousarray(values, dtype=None):
    return values.astype(dtype or values.dtype, order="C", copy=not values.flags.c_contiguous)


def empty(shape, dtype):
    """Return an array full of what a kernel must overwrite."""
    return np.full(shape, np.nan if np.dtype(dtype).kind in "fc" else -77, dtype).view(DeviceArray)


def asnumpy(values):
    return np.array(values.view(np.ndarray))


class RawModule:
    def __init__(self, code, options):
        self.library = library(code)

    def get_function(self, name):
        return functools.partial(self._launch, name)

    def _launch(self, name, grid, block, arguments):
        declared = ctypes.create_string_buffer(64)
        getattr(self.library, f"signature_{name}")(declared)
        given = "".join(map(_letter, arguments))
        if given != declared.value.decode():
            raise TypeError(f"kernel {name}({declared.value.decode()}) called with {given}")
        boxes = [a.ctypes.data_as(ctypes.c_void_p) if isinstance(a, np.ndarray) else _scalar(a) for a in arguments]
        pointers = [ctypes.cast(ctypes.byref(box), ctypes.c_void_p) for box in boxes]
        table = (ctypes.c_void_p * len(boxes))(*pointers)
        columns, rows = (*grid, 1)[:2]
        if not getattr(self.library, f"launch_{name}")(columns, rows, block[0], table):
            raise RuntimeError(f"kernel {name}: not all threads of a block reach the same barriers")


def _letter(argument):
    if isinstance(argument, DeviceArray):
        if not argument.flags.c_contiguous:
            raise TypeError("a kernel needs contiguous arrays")
        pairs = argument.dtype == np.float32 and argument.ndim > 1 and argument.shape[-1] == 2
        return "C" if pairs else LETTERS[argument.dtype]
    return SCALARS[type(argument)]


def _scalar(argument):
    return ctypes.c_int(int(argument)) if isinstance(argument, np.int32) else ctypes.c_float(float(argument))


def numpy_function(name):
    """Return a function that the namespaces share."""
    if name.startswith("_"):
        raise AttributeError(name)
    function = getattr(np, name)
    return lambda *args, **kwargs: _placed(function(*args, **kwargs))


def fft() -> ModuleType:
    """Return what stands for cupyx.scipy.fft."""
    fake = ModuleType("cupyx.scipy.fft")
    fake.rfft2 = lambda images: _placed(scipy.fft.rfft2(asnumpy(images)))
    fake.irfft2 = lambda transforms, s: _placed(scipy.fft.irfft2(asnumpy(transforms), s=s))
    return fake


def module() -> ModuleType:
    """Return this as a module called cupy."""
    fake = ModuleType("cupy")
    fake.ndarray, fake.matmul, fake.__getattr__ = DeviceArray, np.matmul, numpy_function
    for part in (asarray, ascontiguousarray, empty, asnumpy, RawModule):
        setattr(fake, part.__name__, part)
    return fake
