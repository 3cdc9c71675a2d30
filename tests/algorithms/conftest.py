"""A density to find masks and resolutions of."""

import numpy as np
import pytest
from scipy import ndimage


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
