"""Events of EER frames come back as they were encoded, from both implementations."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudem.kernels import eer
from cloudem.testing.eer import encode_eer_frame
from tests.io.movies_files import events

BITS = {65000: (8, 4, True), 65001: (7, 4, False), 65002: (9, 2, False)}


def unpack(data, compression, pixels, function=eer.unpack_events.reference):
    run, symbol, padded = BITS[compression]
    positions, symbols = np.empty(8 * len(data), np.int32), np.empty(8 * len(data), np.uint8)
    count = function(np.frombuffer(data, np.uint8), run, symbol, padded, pixels, positions, symbols)
    return (positions[:count], symbols[:count]) if count >= 0 else count


@pytest.mark.parametrize("compression", BITS)
@given(
    places=st.sets(st.integers(0, 1499)), pixels=st.integers(1500, 3000), seed=st.integers(0, 99)
)  # runs of 127, 255 and more are usual
def test_what_was_encoded_comes_back(compression, places, pixels, seed):
    run, symbol, _ = BITS[compression]
    positions = np.array(sorted(places), np.int64)
    symbols = np.random.default_rng(seed).integers(0, 1 << symbol, len(positions))
    data = encode_eer_frame(positions, symbols, pixels, compression, run, symbol)
    for function in (eer.unpack_events.reference, eer.unpack_events.twin("_numba")):
        found = unpack(data, compression, pixels, function)
        assert found[0].tolist() == positions.tolist()
        assert found[1].tolist() == symbols.tolist()


@pytest.mark.parametrize("compression", BITS)
def test_a_frame_that_is_cut_or_too_long_is_said(twin, compression):
    run, symbol, _ = BITS[compression]
    positions, symbols = events(1, 4000, 0.05)
    data = encode_eer_frame(positions, symbols % (1 << symbol), 4000, compression, run, symbol)
    function = twin(eer.unpack_events)
    assert unpack(data[: len(data) // 2], compression, 4000, function) == eer.ENDS_EARLY
    assert unpack(b"", compression, 4000, function) == eer.ENDS_EARLY
    assert unpack(data, compression, 3999, function) == eer.RUNS_OVER
    assert not isinstance(unpack(data, compression, 4000, function), int)


def test_an_event_at_the_last_pixel_and_none_at_all(twin):
    for places in ([], [0], [1999], [0, 1999], [127], [128], [254], [255], [256], [510]):
        for compression in (65000, 65001):
            data = encode_eer_frame(np.array(places, int), np.zeros(len(places), int), 2000, compression)
            assert unpack(data, compression, 2000, twin(eer.unpack_events))[0].tolist() == places


@pytest.mark.parametrize("zoom", [0, 1, 2])
def test_symbols_say_where_in_its_pixel_an_event_lies(twin, zoom):
    """A symbol of two bits for x (low) and y (high), each with its first bit inverted: XOR 0x0A."""
    symbols = np.arange(16, dtype=np.uint8)
    positions = np.full(16, 3 * 8 + 5, np.int32)  # row 3, column 5
    out = np.zeros((4 << zoom, 8 << zoom), np.uint16)
    twin(eer.add_events)(positions, symbols, 8, 2, 2, zoom, out)
    expected = np.zeros_like(out)
    for symbol in range(16):
        inverted = symbol ^ 0x0A
        expected[(3 << zoom) + (inverted >> 2 >> (2 - zoom)), (5 << zoom) + ((inverted & 3) >> (2 - zoom))] += 1
    np.testing.assert_array_equal(out, expected)
    assert out.sum() == 16


def test_symbols_of_one_and_one_bit_are_xored_with_3(twin):
    out = np.zeros((2, 2), np.uint16)
    twin(eer.add_events)(np.zeros(1, np.int32), np.array([0], np.uint8), 1, 1, 1, 1, out)
    assert out.tolist() == [[0, 0], [0, 1]]
