import gzip

import numpy as np
import pytest

from benchmarks.bars.mutated_files import model
from cloudem.errors import FormatError, MissingInputError, ParameterError
from cloudem.io.formats.atomic_model import read_atoms

PDB = """\
CRYST1   50.000   50.000   50.000  90.00  90.00  90.00 P 1           1
REMARK 350 BIOMOLECULE: 1
REMARK 350 APPLY THE FOLLOWING TO CHAINS: A
REMARK 350   BIOMT1   1  1.000000  0.000000  0.000000        0.00000
REMARK 350   BIOMT2   1  0.000000  1.000000  0.000000        0.00000
REMARK 350   BIOMT3   1  0.000000  0.000000  1.000000        0.00000
REMARK 350   BIOMT1   2 -1.000000  0.000000  0.000000        0.00000
REMARK 350   BIOMT2   2  0.000000 -1.000000  0.000000        0.00000
REMARK 350   BIOMT3   2  0.000000  0.000000  1.000000        0.00000
ATOM      1  N   ALA A   1       1.000   2.000   3.000  1.00 20.00           N
ATOM      2  CA  ALA A   1       2.400   2.000   3.000  1.00 21.00           C
ATOM      3  C   ALA A   1       3.000   3.400   3.000  1.00 22.00           C
ATOM      4  O   ALA A   1       2.300   4.400   3.000  0.50 23.00           O
ATOM      5  CB  ALA A   1       3.000   1.200   4.200  1.00 24.00           C
HETATM    6  O   HOH A   2       9.000   9.000   9.000  1.00 30.00           O
HETATM    7 FE    FE A   3       5.000   5.000   5.000  1.00 30.00          FE
END
"""


@pytest.fixture
def pdb(tmp_path):
    path = tmp_path / "model.pdb"
    path.write_text(PDB)
    return path


def test_atoms_with_their_hydrogens_and_without_water(pdb):
    atoms = read_atoms(pdb)
    assert atoms.elements.tolist() == ["N", "C", "C", "O", "C", "FE"]
    np.testing.assert_allclose(atoms.positions[1], [2.4, 2.0, 3.0])
    np.testing.assert_allclose(atoms.b_factors, [20, 21, 22, 23, 24, 30])
    np.testing.assert_allclose(atoms.occupancies, [1, 1, 1, 0.5, 1, 1])
    # alanine in a chain is C3 H5 N O
    assert (atoms.hydrogens * atoms.occupancies)[:5].sum() == pytest.approx(5)
    assert atoms.hydrogens[5] == 0


def test_gzipped_and_mmcif_files_give_the_same(pdb, tmp_path):
    import gemmi

    zipped, cif = tmp_path / "model.pdb.gz", tmp_path / "model.cif"
    zipped.write_bytes(gzip.compress(PDB.encode()))
    structure = gemmi.read_structure(str(pdb))
    structure.setup_entities()
    structure.make_mmcif_document().write_file(str(cif))
    for path in (zipped, cif):
        np.testing.assert_allclose(read_atoms(path).positions, read_atoms(pdb).positions)


def test_explicit_hydrogens_are_not_counted_twice(tmp_path):
    path = tmp_path / "h.pdb"
    path.write_text(
        PDB.replace(
            "HETATM    6", "ATOM      8  HA  ALA A   1       2.4     1.0     3.0    1.00 20.00           H\nHETATM    6"
        )
    )
    atoms = read_atoms(path)
    assert "H" in atoms.elements.tolist()
    assert atoms.hydrogens.sum() == 0


def test_biological_assembly(pdb):
    atoms = read_atoms(pdb, assembly="1")
    assert len(atoms.elements) == 12
    np.testing.assert_allclose(sorted(atoms.positions[:, 0]), sorted(-atoms.positions[:, 0]))
    with pytest.raises(ParameterError, match="no biological assembly '7'; it has 1"):
        read_atoms(pdb, assembly="7")


def test_bad_files_are_named(tmp_path):
    with pytest.raises(MissingInputError, match="no atomic model"):
        read_atoms(tmp_path / "absent.cif")
    for name, text in (("empty.pdb", "END\n"), ("text.cif", "not a model"), ("empty.cif", "data_x\n_a.b c\n")):
        (tmp_path / name).write_text(text)
        with pytest.raises(FormatError, match=name):
            read_atoms(tmp_path / name)


def assembled(operators: str) -> bytes:
    return model().files["model.cif"].replace(b"1 1,2 A,B", f"1 {operators} A,B".encode())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (assembled("(1-2000000000)"), "hundreds of thousands of copies"),
        (assembled(",".join(["1"] * 30_000)), "30,000 copies"),
        (assembled("1").replace(b" 21.0 ", b" 999999.0 "), "the B-factor of atom 1"),
        (assembled("1").replace(b" 21.0 ", b" nan "), "the B-factor of atom 1"),
        (assembled("1").replace(b" 1.00 ", b" 0.00 "), "occupancies of all atoms are 0"),
        (assembled("1").replace(b"ATOM 3 C ", b"ATOM 3 Qq "), "the element of atom 3 is not known"),
        (assembled("1").replace(b" ALA ", b" \xff\xfe "), "cannot be read as mmCIF or PDB"),
    ],
)
def test_what_no_map_can_be_made_of_is_refused_at_once(content, message, tmp_path):
    (tmp_path / "a.cif").write_bytes(content)
    with pytest.raises(FormatError, match=message):
        read_atoms(tmp_path / "a.cif", "1")


def test_a_packed_file_that_would_fill_the_memory_is_refused(tmp_path):
    (tmp_path / "a.cif.gz").write_bytes(gzip.compress(b"#" * (80 << 20), 1))
    with pytest.raises(FormatError, match="unpacks to more than 64 MiB"):
        read_atoms(tmp_path / "a.cif.gz")
    (tmp_path / "a.cif.gz").write_bytes(b"no gzip")
    with pytest.raises(FormatError, match="cannot be read"):
        read_atoms(tmp_path / "a.cif.gz")
