"""Images of particles as they were extracted."""

from __future__ import annotations

import math

import numpy as np

from cloudem.report.blocks import Drawn, Figure, Figures
from cloudem.report.content import ReportContent
from cloudem.report.sections.map_panels import grey_limits, picture

WORDS = (
    "Images from all over the store on one grey scale, each {:.0f} Å across, low-passed for looking only. Protein "
    "should be bright. If it is dark, extract again with the other --contrast."
)


def examples(content: ReportContent) -> Drawn | None:
    """Show a sheet of images, as one picture."""
    images, size = (content.arrays.get(name) for name in ("example_images", "example_pixel_size_A"))
    if images is None or size is None or images.ndim != 3 or not len(images):
        return None
    low, high = grey_limits(images, 99.9)
    across, side = math.ceil(math.sqrt(len(images))), images.shape[1]
    gap = 1 + side // 32
    sheet = np.full((across * (side + gap) - gap,) * 2, high, np.float32)
    for number, image in enumerate(images):  # pictures begin at the bottom
        y, x = (across - 1 - number // across) * (side + gap), number % across * (side + gap)
        sheet[y : y + side, x : x + side] = image
    drawn = picture(sheet, low, high, None, "Images of particles", across * 146)
    return Drawn("Particles", [Figures([Figure(876, drawn, WORDS.format(side * float(size[0])))])])
