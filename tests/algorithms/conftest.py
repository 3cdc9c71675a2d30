"""What outside oracles need: RELION's programs and the shared data sets. Tests skip visibly where they are absent."""

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

SHARED_DATA = Path(__file__).parents[3] / "shared" / "data"


@pytest.fixture
def relion(tmp_path: Path) -> Callable[..., None]:
    """Run a RELION program in the test's folder: ``relion("project", "--i", …)``."""

    def run(program: str, *arguments: str) -> None:
        path = shutil.which(f"relion_{program}")
        if path is None:
            pytest.skip(f"relion_{program} is not installed")
        done = subprocess.run([path, *arguments], cwd=tmp_path, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr[-2000:]

    return run


@pytest.fixture
def shared_data() -> Path:
    if not SHARED_DATA.exists():
        pytest.skip(f"{SHARED_DATA} is absent")
    return SHARED_DATA


@pytest.fixture(scope="session")
def blob() -> np.ndarray:
    """An asymmetric globule with texture inside, in the middle of a box of 48 voxels; solvent is 0."""
    rng = np.random.default_rng(7)
    box = 48
    z, y, x = np.indices((box,) * 3) - box // 2
    solid = np.zeros((box,) * 3, bool)
    for cz, cy, cx, radius in ((0, 0, -2, 7), (4, 5, 3, 6), (-6, 3, 2, 5), (2, -7, 4, 4)):
        solid |= (z - cz) ** 2 + (y - cy) ** 2 + (x - cx) ** 2 < radius**2
    texture = 1 + 0.5 * ndimage.gaussian_filter(rng.standard_normal(solid.shape), 1) / 0.1
    return ndimage.gaussian_filter(np.where(solid, np.clip(texture, 0.3, 3), 0), 1.0).astype(np.float32)
