import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloudem.errors import FormatError, MissingInputError
from cloudem.io.formats.star import read_star, write_star
from cloudem.model.particles import TEXT


def text(*values):
    return np.array(values, dtype=TEXT)


def test_blocks_loops_pairs_quotes_and_comments(tmp_path):
    path = tmp_path / "x.star"
    path.write_text(
        "# a comment\ndata_\n\nloop_ \n_a #1 \n_b #2 \n1 [0,1] \n# between\n\n2 'x y' \n3 \"\"\n"
        'data_optics\n_c   7 # seven\n_d "p q"\ndata_empty\nloop_\n_e\n'
    )
    blocks = read_star(path)
    assert list(blocks) == ["", "optics", "empty"]
    assert blocks[""]["a"].tolist() == ["1", "2", "3"]
    assert blocks[""]["b"].tolist() == ["[0,1]", "x y", ""]
    assert {name: values.tolist() for name, values in blocks["optics"].items()} == {"c": ["7"], "d": ["p q"]}
    assert blocks["empty"]["e"].tolist() == []


def test_windows_line_ends_and_letters_beyond_ascii(tmp_path):
    path = tmp_path / "x.star"
    path.write_bytes("data_\r\nloop_\r\n_a\r\nGrünes_$x\r\n".encode())
    assert read_star(path)[""]["a"].tolist() == ["Grünes_$x"]


def test_tables_longer_than_one_piece(tmp_path):
    count = 45_000
    write_star(tmp_path / "x.star", {"p": {"a": text(*map(str, range(count))), "b": text(*["q"] * count)}})
    values = read_star(tmp_path / "x.star")["p"]["a"]
    assert values.astype(np.int64).tolist() == list(range(count))


VALUES = st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"]) | st.just(" "), max_size=8).filter(
    lambda value: not ('"' in value and "'" in value) and value == value.strip()
)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.tuples(VALUES, VALUES), max_size=5))
def test_any_text_comes_back(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("star") / "x.star"
    table = {"a": text(*(row[0] for row in rows)), "b": text(*(row[1] for row in rows))}
    write_star(path, {"p": table, "q": table})
    for block in read_star(path).values():
        assert block["a"].tolist() == table["a"].tolist()
        assert block["b"].tolist() == table["b"].tolist()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"data_\nloop_\n_a\n_b\n1 2\n3\n", "line 6: 1 values came for 2 columns"),
        (b"data_\nloop_\n_a\n_a\n1 2\n", "line 4: the label _a is there twice"),
        (b"data_\n_a\n", "line 2: the label _a has no value"),
        (b"data_\n1 2 3\n", "without a label"),
        (b"1 2 3\n", "before any data_"),
        (b"", "no line begins with data_"),
        (b"data_a\nloop_\n_a\n1\n\ndata_b\n_c 1\ndata_a\nloop_\n_a\n2\n", "line 8: the block data_a is there twice"),
        (b"data_a\nloop_\n_a\n1\n\nloop_\n_b\n2\n", "line 6: a second table in the block data_a"),
        (b"data_\n\0\0", "not text"),
        (b"data_\nloop_\n_a\n\xff\n", "not UTF-8"),
    ],
)
def test_what_is_no_star_file_is_one_clear_line(tmp_path, content, words):
    (tmp_path / "x.star").write_bytes(content)
    with pytest.raises(FormatError, match=words) as caught:
        read_star(tmp_path / "x.star")
    assert "\n" not in str(caught.value)


def test_a_missing_file(tmp_path):
    with pytest.raises(MissingInputError):
        read_star(tmp_path / "none.star")


@pytest.mark.parametrize("first", ["data_day2/m.mrc", "loop_day2/m.mrc", "data_", "loop_", "data_optics"])
@pytest.mark.parametrize("sep", [" ", "\t", " \t "])
def test_rows_that_begin_like_a_block_or_a_loop_are_rows(tmp_path, first, sep):
    rows = [[f"m{row}" if row < 3 else first, str(row)] for row in range(6)]
    lines = "".join(sep.join(row) + "\n" for row in rows)
    (tmp_path / "x.star").write_text(f"data_p\nloop_\n_a #1\n_b #2\n{lines}\ndata_q\nloop_ # more\n_c\n1\n")
    blocks = read_star(tmp_path / "x.star")
    assert list(blocks) == ["p", "q"]
    assert [blocks["p"]["a"].tolist(), blocks["p"]["b"].tolist()] == [
        list(column) for column in zip(*rows, strict=True)
    ]


def test_rows_of_one_value_that_begin_like_a_block_are_rows(tmp_path):
    (tmp_path / "x.star").write_text("data_p\nloop_\n_a\nm/1.mrc\ndata_2/1.mrc\ndata_2/2.mrc\n\ndata_q\n_b 1\n")
    blocks = read_star(tmp_path / "x.star")
    assert {name: {label: v.tolist() for label, v in table.items()} for name, table in blocks.items()} == {
        "p": {"a": ["m/1.mrc", "data_2/1.mrc", "data_2/2.mrc"]},
        "q": {"b": ["1"]},
    }
