"""What tests of several rooms need: compiled twins, outside programs and data, reproducible properties."""

import importlib.util
import os
import secrets
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import settings

from cloudem.backend.kernel import Kernel
from tests.cloud.aws.moto import moto as moto
from tests.s3 import S3
from tests.s3 import s3 as s3

settings.register_profile("cloudem", derandomize=True, deadline=None, max_examples=15)
settings.load_profile("cloudem")

# A shell starts what runs in its background with Ctrl-C ignored, and so would every command that a test starts there.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--run-aws", action="store_true", help="run tests that rent a machine of AWS for some minutes")


@pytest.fixture(autouse=True)
def signals_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands that a test runs in its own process leave pytest's handlers alone, or it would end with them."""
    monkeypatch.setattr("cloudem.interrupts.watch", lambda: None)


@pytest.fixture(scope="session")
def bucket(s3: S3) -> str:
    """A bucket for the session."""
    return s3.bucket()


@pytest.fixture(params=["folder", "s3"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A place that does not exist yet: on S3 the same must hold as in a folder."""
    if request.param == "folder":
        return str(tmp_path / "place")
    return f"s3://{request.getfixturevalue('bucket')}/{secrets.token_hex(6)}/place"


Twin = Callable[[Kernel[..., Any]], Callable[..., Any]]


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of data too large for the repository; the test is skipped where there is none."""
    given = os.environ.get("CLOUDEM_TEST_DATA")
    place = Path(given) if given else Path(__file__).resolve().parents[1].parent / "shared" / "data"
    if not place.is_dir():
        pytest.skip(f"no shared data at {place}; CLOUDEM_TEST_DATA names another folder")
    return place


@pytest.fixture
def relion(tmp_path: Path) -> Callable[..., None]:
    """Run a RELION program in the test's folder: ``relion("project", "--i", …)``."""

    def run(program: str, *arguments: str) -> None:
        path = shutil.which(f"relion_{program}")
        if path is None:
            pytest.skip(f"relion_{program} is not installed")
        done = subprocess.run([path, *arguments], cwd=tmp_path, capture_output=True, text=True, timeout=200)
        assert done.returncode == 0, done.stderr[-2000:]

    return run


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 1 MiB; the test is skipped where none can be mounted."""
    place = tmp_path / "small"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a small file system cannot be mounted here")
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


@pytest.fixture(params=["reference", "_numba", "_cupy"])
def twin(request: pytest.FixtureRequest) -> Twin:
    """A function that picks a kernel's twin, taking and returning NumPy arrays whatever the twin works on."""
    family = request.param
    if family == "_cupy":
        cupy = _cupy()

    def pick(kernel: Kernel[..., Any]) -> Callable[..., Any]:
        if family == "reference":
            return kernel.reference
        chosen = kernel.twin(family)
        if chosen is kernel.reference:
            pytest.skip(f"{kernel.__name__} has no twin in {family}")
        return _on_device(cupy, chosen) if family == "_cupy" else chosen

    return pick


def _cupy() -> Any:
    if importlib.util.find_spec("cupy") is None:
        pytest.skip("CuPy is not installed")
    cupy = importlib.import_module("cupy")
    try:
        found = cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError as error:
        pytest.skip(f"no GPU: {error}")
    if not found:
        pytest.skip("no GPU")
    return cupy


def _on_device(cupy: Any, function: Callable[..., Any]) -> Callable[..., Any]:
    def run(*args: Any) -> Any:
        moved = [cupy.asarray(value) if isinstance(value, np.ndarray) else value for value in args]
        result = function(*moved)
        for here, there in zip(args, moved, strict=True):  # kernels may write into their arguments
            if isinstance(here, np.ndarray) and here.flags.writeable:
                here[...] = cupy.asnumpy(there)
        if isinstance(result, tuple):
            return tuple(cupy.asnumpy(value) for value in result)
        return None if result is None else cupy.asnumpy(result)

    return run
