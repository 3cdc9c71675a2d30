"""The table of movies, and the page that lists its columns."""

from __future__ import annotations

from pathlib import Path

from cloudem.io.storage.groups import read_group, write_group
from cloudem.io.storage.tables import table_from_arrays, table_to_arrays
from cloudem.model.movies import COLUMNS, Movies
from cloudem.model.optics import OpticsGroup
from cloudem.model.table import SHARED_COLUMNS


def test_a_group_gives_it_back(tmp_path):
    optics = (OpticsGroup("a", 300.0, 2.7e7, 0.1),)
    table = Movies(optics, {}).with_columns(
        movie=["a.tif", "b.tif"], optics_group=[0, 0], frames=[40, 41], pixel_size=[0.8, 0.8], gain=["", "g.mrc"]
    )
    write_group(tmp_path / "t", "movies", *table_to_arrays(table))
    back = table_from_arrays(Movies, *read_group(tmp_path / "t", "movies"))
    assert back.optics == optics
    assert {name: v.tolist() for name, v in back.columns.items()} == {n: v.tolist() for n, v in table.columns.items()}


def test_columns_mean_the_same_as_of_particles():
    assert all(COLUMNS[name] is SHARED_COLUMNS[name] for name in ("optics_group", "micrograph"))
    labels = [meaning.relion for meaning in COLUMNS.values() if meaning.relion]
    assert len(labels) == len(set(labels))


def test_the_documentation_lists_every_column_as_it_is():
    page = (Path(__file__).resolve().parents[2] / "docs" / "movies.md").read_text()
    for name, meaning in COLUMNS.items():
        (row,) = [line for line in page.splitlines() if line.startswith(f"| `{name}` |")]
        label = f"`{meaning.relion}`" if meaning.relion else "–"
        assert row == f"| `{name}` | {meaning.unit or '–'} | {meaning.meaning} | {label} |"
