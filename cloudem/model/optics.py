"""The constants of the microscope that a group of particles shares."""

from dataclasses import dataclass, field


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
        Everything else that the source said of the group (beam tilt, Zernike terms, magnification matrix, its number),
        by its name there, as text: carried along and written back, not used.
    """

    name: str
    voltage: float
    spherical_aberration: float
    amplitude_contrast: float
    extra: dict[str, str] = field(default_factory=dict)
