"""Layouts of stacks: those that are made as a whole, and those that grow."""

import json

import numpy as np
import pytest

from cloudem.errors import DamagedShardError, FormatError
from cloudem.io.images.layout import StackLayout, parse_layout


@pytest.mark.parametrize("box", [2, 12, 4092])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_metadata_come_back_and_shards_stay_within_their_bytes(box, dtype):
    image = box * box * np.dtype(dtype).itemsize
    for layout in (*(StackLayout.choose(count, box, dtype) for count in (1, 5, 3000)), StackLayout.growing(box, dtype)):
        document = json.loads(layout.metadata({}))
        assert document["shape"] == [layout.count, box, box]
        assert parse_layout(document) == layout
        assert layout.shard % layout.chunk == 0
        assert layout.shards * layout.shard >= layout.count
        assert layout.chunk_bytes == layout.chunk * image
        assert layout.shard * image <= max(64 * 2**20, image)


def test_layouts_of_whole_stores_are_what_they_were():
    layout = StackLayout.choose(10**5, 256, "float16")
    assert (layout.box, layout.chunk, layout.shard, layout.grows) == (256, 16, 512, False)
    assert StackLayout.choose(10**5, 96, "float16").shard == 1024
    assert StackLayout.choose(20, 96, "float16").shard == 32


def test_only_square_images_are_read():
    document = json.loads(StackLayout.choose(3, 8, "float16").metadata({}))
    document["shape"][2] = 12
    with pytest.raises(FormatError, match=r"8 x 12 pixels \(y, x\) were found where square ones are needed"):
        parse_layout(document)


def test_images_in_a_shard_lie_row_by_row():
    layout = StackLayout.choose(3, 6, "float32")
    raw = layout.blank()
    layout.images_of(raw)[1, 2, 5] = 7
    flat = raw[: -layout.index_bytes].view("<f4")
    assert np.flatnonzero(flat).tolist() == [1 * 36 + 2 * 6 + 5]
    assert layout.verify(bytes(raw[-layout.index_bytes :]), len(raw)) == layout.shard


def test_a_shard_that_grew_holds_what_its_index_says():
    layout = StackLayout.growing(6, "float16")
    assert layout.grows
    for held in (1, 7, layout.shard):
        tail = layout.index(held)
        assert layout.verify(tail, held * layout.chunk_bytes + len(tail)) == held
        assert layout.verify(tail, held * layout.chunk_bytes + len(tail) + 1) == 0  # zarr's to read
    with pytest.raises(DamagedShardError, match="has 7 images, where number 9 was asked for"):
        layout.require(np.array([3, 8]), 7)
    with pytest.raises(DamagedShardError, match="checksum"):
        layout.verify(tail[:-1] + b"x", 10**9)
