"""Small stacks and tables as other programs write them."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from cloudem.io.formats.mrc_writer import write_stack

BOX = 16
COUNT = 40

OPTICS = """
# version 30001

data_optics

loop_ 
_rlnOpticsGroupName #1 
_rlnOpticsGroup #2 
_rlnVoltage #3 
_rlnSphericalAberration #4 
_rlnAmplitudeContrast #5 
_rlnImagePixelSize #6 
_rlnImageSize #7 
_rlnImageDimensionality #8 
_rlnBeamTiltX #9 
_rlnOddZernike #10 
gridA 3 300.000000 2.700000 0.100000 1.340000 16 2 0.125000 [0.1,0.2,-3,0,0,0] 
gridB 7 200.000000 0.010000 0.070000 1.340000 16 2 -0.250000 [0,0,0,0,0,0] 
"""  # noqa: W291


@pytest.fixture
def images() -> NDArray[np.float32]:
    """Return 40 images of 16 x 16 pixels with a grey value of 50 and noise of 3."""
    noise = np.random.default_rng(1).standard_normal((COUNT, BOX, BOX), dtype=np.float32)
    return noise * np.float32(3) + np.float32(50)


def particle_rows(count: int = COUNT, stack: str = "Extract/a.mrcs") -> list[str]:
    """Return rows of a STAR file of version 3.1: two optics groups, typed, unknown and text columns."""
    rng = np.random.default_rng(2)
    return [
        f"{i + 1:06d}@{stack} mic/m{i // 8}.mrc {3 if i % 3 else 7} {rng.uniform(5e3, 2e4):.6f} "
        f"{rng.uniform(5e3, 2e4):.6f} {rng.uniform(0, 180):.6f} {rng.uniform(-180, 180):.6f} "
        f"{rng.uniform(0, 180):.6f} {rng.uniform(-180, 180):.6f} {rng.normal():.6f} {rng.normal():.6f} "
        f"{1 + i % 2} {rng.uniform():.6e} name_{i}"
        for i in range(count)
    ]


LABELS = [
    *("rlnImageName", "rlnMicrographName", "rlnOpticsGroup", "rlnDefocusU", "rlnDefocusV", "rlnDefocusAngle"),
    *("rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi", "rlnOriginXAngst", "rlnOriginYAngst", "rlnRandomSubset"),
    *("rlnMaxValueProbDistribution", "rlnSomethingNew"),
]


def loop(labels: list[str], rows: list[str]) -> str:
    """Return the text of a loop."""
    return "loop_ \n" + "".join(f"_{label} #{i + 1} \n" for i, label in enumerate(labels)) + "\n".join(rows) + "\n\n"


@pytest.fixture
def project(tmp_path: Path, images: NDArray[np.float32]) -> Path:
    """Return a folder like a RELION project: ``particles.star`` and ``Extract/a.mrcs``."""
    (tmp_path / "Extract").mkdir()
    write_stack(tmp_path / "Extract" / "a.mrcs", [images], COUNT, 1.34)
    (tmp_path / "particles.star").write_text(OPTICS + "\ndata_particles\n\n" + loop(LABELS, particle_rows()))
    return tmp_path


@pytest.fixture
def edit_star(project: Path) -> Callable[..., Path]:
    """Return a function that replaces text in the STAR file and returns its path."""

    def edit(old: str, new: str, count: int = -1) -> Path:
        path = project / "particles.star"
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new, count))
        return path

    return edit
