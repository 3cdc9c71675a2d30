"""Tables of micrographs: another set of columns of the same kind of table."""

from pathlib import Path

import numpy as np
import pytest

from cloudem.errors import FormatError, InconsistentDataError, MissingColumnError, ParameterError
from cloudem.io.storage.groups import read_group, write_group
from cloudem.io.storage.tables import table_from_arrays, table_to_arrays
from cloudem.model import particles
from cloudem.model.micrographs import COLUMNS, Micrographs
from cloudem.model.optics import OpticsGroup
from cloudem.model.table import SHARED_COLUMNS, TEXT

OPTICS = (OpticsGroup("a", 300.0, 2.7e7, 0.1, {"rlnMicrographOriginalPixelSize": "0.5"}),)


def table() -> Micrographs:
    return Micrographs(
        OPTICS,
        {
            "micrograph": np.array(["m1.mrc", "m2.mrc"], dtype=TEXT),
            "optics_group": np.zeros(2, dtype=np.int32),
            "defocus_u": np.array([1e4, 1.2e4]),
            "rln:rlnCtfImage": np.array(["m1.ctf", "m2.ctf"], dtype=TEXT),
        },
    )


def test_rows_and_columns_are_taken_as_of_particles():
    taken = table().with_columns(frames=[40, 41], dose=[50, 51.25]).take([1])
    assert isinstance(taken, Micrographs)
    assert (taken["frames"].dtype, taken["dose"].tolist()) == (np.int32, [51.25])
    assert table().get("ice_thickness", 0.0).tolist() == [0.0, 0.0]
    with pytest.raises(MissingColumnError, match=r"^the micrographs have no column ctf_fit_resolution \(rlnCtfMaxReso"):
        taken.require("ctf_fit_resolution")
    with pytest.raises(ParameterError, match="unknown micrograph column rot"):
        taken.with_columns(rot=[0.0])
    with pytest.raises(InconsistentDataError, match="there are 1 groups"):
        taken.with_columns(optics_group=[1])


def test_a_group_gives_it_back(url):
    write_group(url, "micrographs", *table_to_arrays(table()))
    back = table_from_arrays(Micrographs, *read_group(url, "micrographs"))
    assert back.optics == OPTICS
    assert list(back.columns) == list(table().columns)
    for name, values in back.columns.items():
        assert values.dtype == table()[name].dtype
        assert values.tolist() == table()[name].tolist()


def test_a_column_of_another_type_is_refused():
    arrays, attributes = table_to_arrays(table())
    arrays["defocus_u"] = arrays["defocus_u"].astype(np.float32)
    with pytest.raises(
        FormatError, match=r"stored micrograph table has a column defocus_u of type float32, float64 is"
    ):
        table_from_arrays(Micrographs, arrays, attributes)


def test_columns_mean_the_same_as_of_particles():
    assert all(COLUMNS[name] is particles.COLUMNS[name] for name in SHARED_COLUMNS)
    assert set(COLUMNS) & set(particles.COLUMNS) == set(SHARED_COLUMNS)
    labels = [meaning.relion for meaning in COLUMNS.values() if meaning.relion]
    assert len(labels) == len(set(labels))


def test_the_documentation_lists_every_column_as_it_is():
    page = (Path(__file__).resolve().parents[2] / "docs" / "storage.md").read_text()
    for name, meaning in COLUMNS.items():
        (row,) = [line for line in page.splitlines() if line.startswith(f"| `{name}` |")]
        assert row == f"| `{name}` | {meaning.unit or '–'} | {meaning.meaning} | {label(meaning)} |"


def label(meaning: particles.ColumnMeaning) -> str:
    factor = "" if meaning.relion_factor == 1 else "π/180 × "
    return f"{factor}`{meaning.relion}`" if meaning.relion else "–"
