"""Every CUDA source compiles for the GPUs of data centres; no GPU is needed for that."""

import shutil
import subprocess

import pytest

from cloudem.kernels._cupy.source import MODULES, source
from tests.gpu.emulation import kernels

ARCHITECTURES = ["sm_75", "sm_80", "sm_90"]
"""T4, A100, H100."""


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("module", MODULES)
def test_nvrtc(module, architecture):
    nvrtc = pytest.importorskip("cupy_backends.cuda.libs.nvrtc", reason="CuPy is not installed")
    try:
        nvrtc.getVersion()
    except RuntimeError as error:  # DynamicLibNotFoundError
        pytest.skip(f"CuPy is installed without NVRTC: {str(error).splitlines()[0]}")
    code = source(module)
    program = nvrtc.createProgram(code, f"{module}.cu", (), ())
    try:
        nvrtc.compileProgram(program, (f"-arch={architecture}", "--std=c++17"))
    except nvrtc.NVRTCError:
        pytest.fail(nvrtc.getProgramLog(program))
    binary = nvrtc.getCUBIN(program)
    assert all(b".text." + name.encode() + b"\0" in binary for name in kernels(code))


@pytest.mark.parametrize("module", MODULES)
def test_nvcc(module, tmp_path):
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        pytest.skip("no nvcc in PATH")
    path = tmp_path / f"{module}.cu"
    path.write_text(source(module))
    command = [
        nvcc,
        "-cubin",
        f"-arch={ARCHITECTURES[-1]}",
        "-std=c++17",
        "-Xptxas=-v",
        path,
        "-o",
        tmp_path / "out.cubin",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    # what does not fit the registers goes to memory, which none of these kernels should need
    assert done.stderr.count(" 0 bytes spill stores, 0 bytes spill loads") == len(kernels(source(module)))
