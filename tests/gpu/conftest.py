"""The CuPy twins on a GPU where there is one, and always on the host's compiler."""

import sys
from types import SimpleNamespace

import pytest

from cloudem.backend.arrays import why_no_gpu
from cloudem.kernels import ctf, packed_sphere, polar, shells, slices
from tests.gpu import emulation

KERNELS = [
    slices.extract, slices.insert, slices.score_derivatives,
    polar.shift_samples, polar.best_rotations, polar.ring_norms, ctf.ctf_values,
    shells.shell_sums, packed_sphere.pack_sphere, packed_sphere.unpack_sphere,
]  # fmt: skip


def forget_twins():
    for name in [name for name in sys.modules if name.startswith("cloudem.kernels._cupy.")]:
        del sys.modules[name]
    for kernel in KERNELS:
        kernel._twins.pop("_cupy", None)


@pytest.fixture(params=["emulated", pytest.param("gpu", marks=pytest.mark.gpu)])
def cupy(request, monkeypatch):
    """CuPy; or what stands for it, with kernels compiled for the host."""
    if request.param == "gpu":
        reason = why_no_gpu()
        if reason is not None:
            pytest.skip(f"no GPU: {reason}")
        import cupy

        yield cupy
        return
    if emulation.COMPILER is None:
        pytest.skip("no C++ compiler (g++) to compile the CUDA sources for the host")
    forget_twins()
    fake = emulation.module()
    monkeypatch.setitem(sys.modules, "cupy", fake)
    fft = emulation.fft()
    scipy = SimpleNamespace(fft=fft)
    for name, part in {"cupyx": SimpleNamespace(scipy=scipy), "cupyx.scipy": scipy, "cupyx.scipy.fft": fft}.items():
        monkeypatch.setitem(sys.modules, name, part)
    yield fake
    forget_twins()
