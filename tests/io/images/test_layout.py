"""Layouts of stacks whose images need not be square."""

import json

import numpy as np
import pytest

from cloudem.errors import FormatError
from cloudem.io.images.layout import StackLayout, parse_layout


@pytest.mark.parametrize("shape", [(1, 1), (8, 12), (4092, 5760), (8184, 11520)])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_metadata_come_back_and_shards_stay_within_their_bytes(shape, dtype):
    for count in (1, 5, 3000):
        layout = StackLayout.choose(count, shape, dtype, "micrograph")
        document = json.loads(layout.metadata({}))
        assert document["shape"] == [count, *shape]
        assert document["dimension_names"] == ["micrograph", "y", "x"]
        assert parse_layout(document, "micrograph") == layout
        assert layout.shard % layout.chunk == 0
        assert layout.shards * layout.shard >= count
        image = shape[0] * shape[1] * np.dtype(dtype).itemsize
        assert layout.chunk_bytes == layout.chunk * image
        assert layout.shard * image <= max(64 * 2**20, image)


def test_layouts_of_particles_are_what_they_were():
    layout = StackLayout.choose(10**5, 256, "float16")
    assert (layout.shape, layout.box, layout.chunk, layout.shard) == ((256, 256), 256, 16, 512)
    assert StackLayout.choose(10**5, 96, "float16").shard == 1024
    assert StackLayout.choose(20, 96, "float16").shard == 32


def test_only_square_images_have_a_box():
    with pytest.raises(FormatError, match=r"8 x 12 pixels \(y, x\) were found where square ones are needed"):
        _ = StackLayout.choose(3, (8, 12), "float16").box


def test_advice_speaks_of_what_the_images_are_of():
    document = json.loads(StackLayout.choose(3, (8, 12), "float16").metadata({}))
    document["shape"][2] = 2**20
    with pytest.raises(FormatError, match="import the micrographs again"):
        parse_layout(document, "micrograph")


def test_images_in_a_shard_lie_row_by_row():
    layout = StackLayout.choose(3, (4, 6), "float32")
    raw = layout.blank()
    layout.images_of(raw)[1, 2, 5] = 7
    flat = raw[: -layout.index_bytes].view("<f4")
    assert np.flatnonzero(flat).tolist() == [1 * 24 + 2 * 6 + 5]
    assert layout.verify(bytes(raw[-layout.index_bytes :]), len(raw))
