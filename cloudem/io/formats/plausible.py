"""What no microscope has, and what is odd: the ranges that a table of particles is held against.

All of them stand in `OF_OPTICS`, `OF_IMAGES` and `OF_PARTICLES`. A value that cannot be is refused, because a wrong
unit costs a map; what is only odd is said. Both at import, and again when a store is opened: it may be an older one.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import inf, pi

import numpy as np
from numpy.typing import NDArray

from cloudem.errors import InconsistentDataError
from cloudem.kernels.aberrations import EVEN_ORDERS, ODD_ORDERS
from cloudem.model.optics import EVEN, ODD, OpticsGroup
from cloudem.model.particles import Particles
from cloudem.model.table import distinct

_DEGREES = 180 / pi

FAR = 0.5
"""Share of the box beyond which a shift takes the particle's centre out of its image."""

FAR_TILT, ODD_TILT = 100.0, 5.0
"""Beam tilts in mrad beyond which they are refused, or said."""

ODD_STRETCH = 0.05
"""Share by which a magnification matrix stretches or shrinks, beyond which it is said."""

_YES, _NO = {"1", "true", "yes", "t", "y", "on"}, {"", "0", "false", "no", "f", "n", "off", "none", "null", "nan"}


@dataclass(frozen=True)
class Bounds:
    """What the values of a quantity may be.

    Parameters
    ----------
    what
        Its name in a sentence.
    unit
        In which the bounds are.
    needed
        What is told to whoever has another value: the right unit, with an example.
    possible, usual
        Least and greatest value; what lies outside is refused, or said.
    typical, usually
        The same for the median of the absolute values, where that is not 0: single values may be small.
    factor
        From cloudem's units to `unit`.
    """

    what: str
    unit: str
    needed: str
    possible: tuple[float, float]
    usual: tuple[float, float]
    typical: tuple[float, float] = (0.0, inf)
    usually: tuple[float, float] = (0.0, inf)
    factor: float = 1.0


OF_OPTICS = {
    "voltage": Bounds("voltage", "kV", "kilovolts are needed (300, not 300000)", (20, 3500), (80, 400)),
    "spherical_aberration": Bounds(
        "spherical aberration", "mm", "millimetres are needed (2.7 for most)", (-20, 20), (1e-3, 6), factor=1e-7
    ),
    "amplitude_contrast": Bounds(
        "amplitude contrast", "", "a fraction from 0 to 1 is needed (0.1 for most)", (0, 1), (0.01, 0.5)
    ),
}
"""Attributes of an optics group."""

JOINED = 0.05
"""Share of rows that are too small for their unit from which on it is said: tables in two units were joined."""

OF_IMAGES = Bounds("pixel size", "Å", "ångströms are needed (1.06, not 0.106 or 1.06e-10)", (0.01, 1000), (0.2, 50))
"""The pixel size."""

_DEFOCUS = Bounds(
    "defocus", "Å", "ångströms are needed, positive for underfocus (1.2 µm are 12000)",
    (-1e6, 1e6), (0, 1e5), (30, inf), (1000, inf),
)  # fmt: skip

OF_PARTICLES = {
    "defocus_u": _DEFOCUS,
    "defocus_v": _DEFOCUS,
    "phase_shift": Bounds(
        "phase shift", "°", "degrees are needed in a STAR file, radians in a .cs file",
        (-720, 720), (-180, 360), usually=(pi, inf), factor=_DEGREES,
    ),
    "ctf_b_factor": Bounds("B-factor of the CTF", "Å²", "Å² are needed, 0 for none", (-1e5, 1e5), (-1000, 1000)),
    "ctf_scale": Bounds("scale of the CTF", "", "a factor near 1 is needed", (-1e3, 1e3), (0, 10)),
}  # fmt: skip
"""Columns."""


def doubts(particles: Particles, where: str, *, box: int, pixel_size: float, stated: bool = True) -> list[str]:
    """Hold a table against what can be; return what is odd, one sentence each.

    Parameters
    ----------
    particles
        The table.
    where
        File or store that it is from, for messages.
    box, pixel_size
        Side of the images in pixels, and Å per pixel.
    stated
        Whether the constants of the microscope have to be known; if not, a voltage of 0 says that they are not.

    Raises
    ------
    InconsistentDataError
        Values that no microscope has, or images that hold their CTF already.
    """
    refuse_treated(particles, where)
    said = list(_of_value(OF_IMAGES, pixel_size, f"{where} has"))
    if "defocus_u" in particles:  # without, there is no CTF, and nothing need be known of the microscope
        for group in (group for group in used_optics(particles) if stated or group.voltage):
            for name, bounds in OF_OPTICS.items():
                said += _of_value(bounds, getattr(group, name), f"optics group {group.name} of {where} has")
            said += _of_aberrations(group, where)
        odd: dict[str, list[str]] = {}
        for name, bounds in OF_PARTICLES.items():
            found = _of_column(bounds, particles[name], where) if name in particles else []
            odd[bounds.what] = odd.get(bounds.what) or found  # of the two defocus values once
        said += [line for lines in odd.values() for line in lines]
    said += _of_angles(particles, where)
    return said + _of_shifts(particles, where, box * pixel_size)


def used_optics(particles: Particles) -> list[OpticsGroup]:
    """Return the optics groups that particles are in."""
    return [particles.optics[number] for number in np.unique(particles.get("optics_group", 0))]


def truth(text: str, what: str) -> bool:
    """Return what a label says that is true or false, however it is spelled.

    Raises
    ------
    InconsistentDataError
        It is neither.
    """
    word = text.strip().lower()
    if word in _YES or word in _NO:
        return word in _YES
    try:
        return float(word) != 0
    except ValueError:
        raise InconsistentDataError(f"{what} is {text[:40]!r}, which is neither 1 nor 0; correct it") from None


def refuse_treated(particles: Particles, where: str) -> None:
    """Refuse images that hold their CTF, whichever table or program says so.

    Raises
    ------
    InconsistentDataError
        Some do.
    """
    for name, text, of in _stated(particles):
        if truth(text, f"{name} of {of} in {where}"):
            raise InconsistentDataError(
                f"{of} of {where} says {name.partition(':')[2] or name}: the images hold their CTF already, which "
                "cloudem would apply twice; extract the particles again without"
            )


def _stated(particles: Particles) -> Iterator[tuple[str, str, str]]:
    """Yield name, value and owner of each label that says what was done to images, wherever it stands."""
    for group in used_optics(particles):
        yield from ((name, text, f"optics group {group.name!r}") for name, text in group.extra.items() if _treats(name))
    for name, values in particles.columns.items():
        if _treats(name):
            yield from ((name, str(text), "the particle table") for text in distinct(values).values)


def _treats(name: str) -> bool:
    return "".join(filter(str.isalpha, name.lower())).endswith(("phaseflipped", "premultiplied"))


def _of_value(bounds: Bounds, value: float, owner: str) -> Iterator[str]:
    value *= bounds.factor
    shown = f"{value:.6g} {bounds.unit}".strip()
    article = "an" if bounds.what[0] in "aeiou" else "a"
    if not bounds.possible[0] <= value <= bounds.possible[1]:
        raise InconsistentDataError(
            f"{owner} {article} {bounds.what} of {shown}, {bounds.needed}; correct it in the source and import again"
        )
    if not bounds.usual[0] <= value <= bounds.usual[1]:
        yield f"{owner} {article} {bounds.what} of {shown}, which is unusual: {bounds.needed}"


def _of_aberrations(group: OpticsGroup, where: str) -> Iterator[str]:
    """Say what is odd about the aberrations of an optics group; refuse what cannot be, or cannot be applied."""
    owner = f"optics group {group.name!r} of {where}"
    tilt = float(np.hypot(*group.beam_tilt))
    if tilt > FAR_TILT:
        raise InconsistentDataError(f"{owner} has a beam tilt of {tilt:.4g} mrad, milliradians are needed; correct it")
    if tilt > ODD_TILT:
        yield f"{owner} has a beam tilt of {tilt:.3g} mrad, which is unusual: milliradians are needed"
    for label, values, orders in ((ODD, group.odd_zernike, ODD_ORDERS), (EVEN, group.even_zernike, EVEN_ORDERS)):
        text = group.extra.get(label, "").strip()
        if text.startswith("[") != text.endswith("]"):
            raise InconsistentDataError(f"{owner}: {label} is {text[:40]!r}, a list that is cut off; correct it")
        if any(values[len(orders) :]):
            raise InconsistentDataError(
                f"{owner}: {label} has {len(values)} entries, of which the first {len(orders)} can be applied, and "
                "others are not zero; estimate aberrations of lower order, or import with --without-aberrations"
            )
        whole = _whole_lengths(len(values), first=2 if label == ODD else 1)
        if values and len(values) != whole[-1]:
            ends = " or ".join(str(length) for length in whole if length)
            yield f"{owner}: {label} has {len(values)} entries, and whole orders {ends}: is the list cut off?"
    yield from _of_matrix(group, owner)


def _of_matrix(group: OpticsGroup, owner: str) -> Iterator[str]:
    far = float(abs(np.linalg.svd(group.magnification, compute_uv=False) - 1).max())
    if far > ODD_STRETCH:
        yield f"{owner} has a magnification matrix that stretches by {far:.1%}, which is unusual"


def _whole_lengths(count: int, first: int) -> tuple[int, int]:
    """Return the lengths that lists of whole orders have (2, 6, 12 … or 1, 4, 9 …), below and from a length on."""
    before, length, step = 0, first, first + 2
    while length < count:
        before, length, step = length, length + step, step + 2
    return before, length


def _of_column(bounds: Bounds, values: NDArray[np.float64], where: str) -> list[str]:
    shown = np.asarray(values, np.float64) * bounds.factor
    if not len(shown):
        return []
    size = float(np.median(abs(shown)))
    impossible = _outside(shown, bounds.possible)
    if size and not bounds.typical[0] <= size <= bounds.typical[1]:
        impossible = np.arange(len(shown))
    if len(impossible):
        raise InconsistentDataError(
            f"{where} has a {bounds.what} of {shown[impossible[0]]:.6g} {bounds.unit}".rstrip()
            + f" for particle {impossible[0] + 1} ({len(impossible):,} such particles), {bounds.needed}; correct it in "
            "the source and import again"
        )
    if size and not bounds.usually[0] <= size <= bounds.usually[1]:
        return [
            f"the {bounds.what} of the particles is about {size:.3g} {bounds.unit}, which is unusual: {bounds.needed}"
        ]
    odd = _outside(shown, bounds.usual)
    small = (shown != 0) & (abs(shown) < bounds.typical[0])
    if small.mean() >= JOINED:
        odd = np.union1d(odd, np.flatnonzero(small))
    if not len(odd):
        return []
    value = f"{shown[odd[0]]:.6g} {bounds.unit}".strip()
    of = f"{len(odd):,} of {len(shown):,} particles"
    return [f"the {bounds.what} of {of} is unusual ({value} for particle {odd[0] + 1}): {bounds.needed}"]


def _of_angles(particles: Particles, where: str) -> list[str]:
    names = [name for name in ("rot", "psi") if name in particles]
    largest = max((float(abs(particles[name]).max(initial=0)) for name in names), default=0.0) * _DEGREES
    if len(particles) < 20 or not 0 < largest <= 1.001 * pi:
        return []
    return [f"no angle rot or psi of {where} is larger than {largest:.3g}°: are they in radians? Degrees are needed"]


def _of_shifts(particles: Particles, where: str, length: float) -> list[str]:
    if "shift_x" not in particles or "shift_y" not in particles or not length or not len(particles):
        return []
    size = np.maximum(abs(particles["shift_x"]), abs(particles["shift_y"]))
    far = np.flatnonzero(size > FAR * length)
    what = f"{len(far):,} of {len(size):,} particles of {where} are shifted out of their images"
    if np.median(size) > FAR * length:
        raise InconsistentDataError(
            f"{what}, by {np.median(size):.4g} Å where the box has {length:.4g}: are shifts or the pixel size in "
            "another unit? Correct them and import again"
        )
    return [f"{what}, the first by {size[far[0]]:.4g} Å where the box has {length:.4g}"] if len(far) else []


def _outside(values: NDArray[np.float64], bounds: tuple[float, float]) -> NDArray[np.int64]:
    return np.flatnonzero(~((values >= bounds[0]) & (values <= bounds[1])))
