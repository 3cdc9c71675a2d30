"""The constants of the microscope that a group of particles shares."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from cloudem.errors import InconsistentDataError

TILT = ("rlnBeamTiltX", "rlnBeamTiltY")
ODD, EVEN = "rlnOddZernike", "rlnEvenZernike"
MATRIX = ("rlnMagMat00", "rlnMagMat01", "rlnMagMat10", "rlnMagMat11")

FAR_STRETCH = 0.2
"""Share by which a magnification matrix may stretch or shrink; what lies beyond is a mistake."""

_LIST = re.compile(r"\[?([^\[\]]*)\]?")


@dataclass(frozen=True)
class OpticsGroup:
    """One optics group: what the contrast transfer function needs and no particle has of its own.

    Parameters
    ----------
    name
        Name of the group, as the user knows it.
    voltage
        Acceleration voltage in kV.
    spherical_aberration
        Spherical aberration Cs in Å (2.7 mm is 2.7e7).
    amplitude_contrast
        Fraction of amplitude contrast, 0 to 1.
    extra
        Everything else that the source said of the group, by its name there, as text, which is written back as it came.
        Beam tilt, Zernike terms and the magnification matrix are among it, under RELION's names; the properties below
        read them.
    """

    name: str
    voltage: float
    spherical_aberration: float
    amplitude_contrast: float
    extra: dict[str, str] = field(default_factory=dict)

    @property
    def beam_tilt(self) -> tuple[float, float]:
        """Beam tilt along x and y, mrad."""
        x, y = (self._number(label, 0.0) for label in TILT)
        return x, y

    @property
    def odd_zernike(self) -> tuple[float, ...]:
        """Coefficients of odd Zernike polynomials, radians: :data:`cloudem.kernels.aberrations.ODD_ORDERS`."""
        return self._numbers(ODD)

    @property
    def even_zernike(self) -> tuple[float, ...]:
        """Coefficients of even Zernike polynomials, radians: :data:`cloudem.kernels.aberrations.EVEN_ORDERS`."""
        return self._numbers(EVEN)

    @property
    def magnification(self) -> NDArray[np.float64]:
        """The matrix M, (2, 2): an image shows at the frequency k what the map has at ``M k``."""
        unit = (1.0, 0.0, 0.0, 1.0)
        numbers = [self._number(label, one) for label, one in zip(MATRIX, unit, strict=True)]
        matrix = np.array(numbers).reshape(2, 2)
        far = abs(np.linalg.svd(matrix, compute_uv=False) - 1).max()
        if far > FAR_STRETCH or np.linalg.det(matrix) <= 0:
            shown = " ".join(f"{value:.4g}" for value in numbers)
            raise InconsistentDataError(
                f"{MATRIX[0]} to {MATRIX[3][-2:]} of optics group {self.name} are {shown}, which is not near the unit "
                "matrix 1 0 0 1 (cryoSPARC writes the difference from it); correct them"
            )
        return matrix

    def with_aberrations(
        self,
        *,
        beam_tilt: Sequence[float] | None = None,
        odd_zernike: Sequence[float] | None = None,
        even_zernike: Sequence[float] | None = None,
        magnification: NDArray[np.float64] | None = None,
    ) -> "OpticsGroup":
        """Return the group with other aberrations; what is None stays as it is. Units are those of the properties."""
        said = dict(self.extra)
        if beam_tilt is not None:
            said |= {label: f"{value:.12g}" for label, value in zip(TILT, beam_tilt, strict=True)}
        for label, values in ((ODD, odd_zernike), (EVEN, even_zernike)):
            if values is not None:
                said[label] = "[" + ",".join(f"{value:.12g}" for value in values) + "]"
        if magnification is not None:
            said |= {label: f"{value:.12g}" for label, value in zip(MATRIX, np.ravel(magnification), strict=True)}
        return replace(self, extra=said)

    def _number(self, label: str, missing: float) -> float:
        values = self._numbers(label)
        if len(values) > 1:
            raise InconsistentDataError(
                f"{label} of optics group {self.name} is {self.extra[label]}; one number is needed"
            )
        return values[0] if values else missing

    def _numbers(self, label: str) -> tuple[float, ...]:
        text = self.extra.get(label, "")
        inside = _LIST.fullmatch(text.strip())
        try:
            values = tuple(float(word) for word in inside[1].replace(",", " ").split()) if inside else (np.nan,)
        except ValueError:
            values = (np.nan,)
        if not np.isfinite(values).all():
            raise InconsistentDataError(
                f"{label} of optics group {self.name} is {text!r}; it must hold finite numbers, such as "
                f"{'[0.1,-0.2]' if label in (ODD, EVEN) else '0.1'}"
            )
        return values
