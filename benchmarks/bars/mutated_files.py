"""Valid files of every kind that cloudem reads, and what reads them; `benchmarks/mutations.py` damages them."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.recfunctions import repack_fields

from cloudem.errors import CloudemError

Read = Callable[[Path], Any]


@dataclass(frozen=True)
class Kind:
    """Files of one kind.

    Attributes
    ----------
    files
        Names to contents of valid files.
    read
        Reads the file of a path; the others lie beside it.
    together
        Whether the files belong to each other, so that one of them is damaged and all are read.
    """

    files: dict[str, bytes]
    read: Read
    together: bool = False


def star() -> Kind:
    """Particle tables of RELION, of version 3.1 and of 3.0."""
    from cloudem.io.formats.relion import read_particles_star

    optics = ("rlnOpticsGroup 1", "rlnOpticsGroupName opticsGroup1", "rlnVoltage 300", "rlnSphericalAberration 2.7",
              "rlnAmplitudeContrast 0.1", "rlnImagePixelSize 1.5", "rlnImageSize 64",
              "rlnImageDimensionality 2")  # fmt: skip
    labels = ("rlnImageName", "rlnOpticsGroup", "rlnDefocusU", "rlnDefocusV", "rlnDefocusAngle", "rlnAngleRot",
              "rlnAngleTilt", "rlnAnglePsi", "rlnOriginXAngst", "rlnOriginYAngst", "rlnRandomSubset",
              "rlnMicrographName", "rlnClassNumber")  # fmt: skip
    text = "\n# version 30001\n\ndata_optics\n\nloop_ \n" + _loop([label.split()[0] for label in optics])
    text += " ".join(label.split()[1] for label in optics) + "\n\n\ndata_particles\n\nloop_ \n" + _loop(labels)
    for i in range(12):
        text += f"{i + 1:06d}@stacks/a.mrcs 1 {15000 + i} {14000 + i}.5 {i * 10} {i} {i}.25 -{i} 0.5 -1 "
        text += f"{1 + i % 2} 'mic a.mrc' 1\n"
    old = ("rlnImageName", "rlnVoltage", "rlnSphericalAberration", "rlnAmplitudeContrast", "rlnDefocusU", "rlnOriginX",
           "rlnDetectorPixelSize", "rlnMagnification")  # fmt: skip
    rows = "".join(f"{i + 1:06d}@a.mrcs 300 2.7 0.1 {15000 + i} 1.5 5 31746\n" for i in range(8))
    old_text = "data_\n\nloop_\n" + _loop(old) + rows
    return Kind({"new.star": text.encode(), "old.star": old_text.encode()}, lambda path: read_particles_star(path))


def _loop(labels: Any) -> str:
    return "".join(f"_{label} #{number}\n" for number, label in enumerate(labels, 1))


def cs() -> Kind:
    """Particle files of cryoSPARC, with and without a passthrough file."""
    from cloudem.io.formats.cryosparc import read_particles_cs

    rows, fields = 10, [
        ("uid", "<u8"), ("blob/path", "S40"), ("blob/idx", "<u4"), ("blob/shape", "<u4", (2,)), ("blob/psize_A", "<f4"),
        ("blob/sign", "<f4"), ("ctf/exp_group_id", "<u4"), ("ctf/accel_kv", "<f4"), ("ctf/cs_mm", "<f4"),
        ("ctf/amp_contrast", "<f4"), ("ctf/df1_A", "<f4"), ("ctf/df2_A", "<f4"), ("ctf/df_angle_rad", "<f4"),
        ("alignments3D/pose", "<f4", (3,)), ("alignments3D/shift", "<f4", (2,)), ("alignments3D/psize_A", "<f4"),
        ("alignments3D/split", "<u4"), ("location/micrograph_path", "S20"), ("location/center_x_frac", "<f4"),
    ]  # fmt: skip
    table = np.zeros(rows, fields)
    values = {"blob/path": b">J1/a.mrcs", "blob/shape": 64, "blob/psize_A": 1.5, "blob/sign": -1, "ctf/accel_kv": 300,
              "ctf/cs_mm": 2.7, "ctf/amp_contrast": 0.1, "ctf/df1_A": 15000, "ctf/df2_A": 14000,
              "alignments3D/psize_A": 1.5, "location/micrograph_path": b"m.mrc"}  # fmt: skip
    for name, value in values.items():
        table[name] = value
    table["uid"] = np.arange(rows) + 1
    table["blob/idx"] = np.arange(rows)
    table["alignments3D/split"] = np.arange(rows) % 2

    def saved(array: Any) -> bytes:
        file = io.BytesIO()
        np.save(file, array)
        return file.getvalue()

    first = ["uid", *(name for name in table.dtype.names if name.startswith("blob"))]
    rest = ["uid", *(name for name in table.dtype.names if not name.startswith(("blob", "uid")))]
    packed = repack_fields

    def read(path: Path) -> None:
        if path.name == "whole.cs":
            read_particles_cs(path)
        else:
            read_particles_cs(path.parent / "part.cs", [path.parent / "rest.cs"])

    files = {"whole.cs": saved(table), "part.cs": saved(packed(table[first])), "rest.cs": saved(packed(table[rest]))}
    return Kind(files, read, together=True)


def toml() -> Kind:
    """Job files, of one and of several jobs, and workflow files."""
    from cloudem.runs.workflow import read_workflow

    one = """# a job
job = "refine3d"
particles = "particles.zarr"
reference = "start.mrc"
diameter_A = 320
max_iterations = 20
symmetry = "C1"
out = "refine"
"""
    several = """[[job]]
name = "mask"
map = "map.mrc"
edge_A = 10.0
out = "mask"

[[job]]
name = "simulate"
model = "a.cif"
count = 100
box = 64
pixel_size_A = 1.5
out = "sim"
"""
    workflow = """project = "/tmp/project"   # everything
name = "first-map"
region = "eu-central-1"

[[step]]
job = "refine3d"
particles = "particles.zarr"
reference = "start.mrc"
diameter_A = 320
initial_resolution_A = 30

[[step]]
job = "postprocess"
name = "sharpen"
halves = "refine"
"""

    from cloudem.jobs.artefacts import sizes_of

    def read(path: Path) -> None:
        for step in read_workflow(str(path)).steps:
            step.job.work(sizes_of(step.job))

    files = {"one.toml": one, "several.toml": several, "workflow.toml": workflow}
    return Kind({name: text.encode() for name, text in files.items()}, read)


def model() -> Kind:
    """Atomic models, read, and turned into a small map."""
    from cloudem.algorithms.density import density_of_atoms
    from cloudem.io.formats.atomic_model import read_atoms

    atoms = [("N", "N", 1.5), ("CA", "C", 2.5), ("C", "C", 3.2), ("O", "O", 3.9)]
    pdb = "REMARK 350 BIOMOLECULE: 1\nREMARK 350 APPLY THE FOLLOWING TO CHAINS: A, B\n"
    for i in range(3):
        row = [1.0 if i == j else 0.0 for j in range(3)]
        pdb += f"REMARK 350   BIOMT{i + 1}   1 {row[0]:9.6f} {row[1]:9.6f} {row[2]:9.6f} {0:14.5f}\n"
    cif = """data_TEST
_entry.id TEST
_cell.length_a 50.0
_cell.length_b 50.0
_cell.length_c 50.0
_cell.angle_alpha 90
_cell.angle_beta 90
_cell.angle_gamma 90
_symmetry.space_group_name_H-M 'P 1'
loop_
_entity.id
_entity.type
1 polymer
2 water
loop_
_struct_asym.id
_struct_asym.entity_id
A 1
B 1
W 2
loop_
_pdbx_struct_assembly.id
_pdbx_struct_assembly.details
_pdbx_struct_assembly.method_details
_pdbx_struct_assembly.oligomeric_details
_pdbx_struct_assembly.oligomeric_count
1 author_defined_assembly ? dimeric 2
loop_
_pdbx_struct_assembly_gen.assembly_id
_pdbx_struct_assembly_gen.oper_expression
_pdbx_struct_assembly_gen.asym_id_list
1 1,2 A,B
loop_
_pdbx_struct_oper_list.id
_pdbx_struct_oper_list.type
"""
    cif += "".join(f"_pdbx_struct_oper_list.matrix[{i}][{j}]\n" for i in "123" for j in "123")
    cif += "".join(f"_pdbx_struct_oper_list.vector[{i}]\n" for i in "123")
    cif += "1 identity 1 0 0 0 1 0 0 0 1 0 0 0\n2 symmetry -1 0 0 0 -1 0 0 0 1 10 10 0\nloop_\n"
    cif += "".join(
        f"_atom_site.{name}\n"
        for name in (
            "group_PDB", "id", "type_symbol", "label_atom_id", "label_alt_id", "label_comp_id", "label_asym_id",
            "label_entity_id", "label_seq_id", "Cartn_x", "Cartn_y", "Cartn_z", "occupancy", "B_iso_or_equiv",
            "auth_seq_id", "auth_asym_id", "pdbx_PDB_model_num",
        )
    )  # fmt: skip
    serial = 0
    for chain in "AB":
        for number, residue in enumerate(("ALA", "GLY", "SER"), 1):
            for name, element, x in atoms:
                serial += 1
                place = (x + 3 * number, 2.0 * number + ord(chain) - 64, -1.0 * serial / 3)
                pdb += (
                    f"ATOM  {serial:5d}  {name:<3s} {residue} {chain}{number:4d}    "
                    f"{place[0]:8.3f}{place[1]:8.3f}{place[2]:8.3f}{1:6.2f}{20 + serial:6.2f}          {element:>2s}\n"
                )
                cif += f"ATOM {serial} {element} {name} . {residue} {chain} 1 {number} {place[0]:.3f} {place[1]:.3f} "
                cif += f"{place[2]:.3f} 1.00 {20 + serial}.0 {number} {chain} 1\n"
    pdb += "HETATM 9999  O   HOH W   1      10.000  10.000  10.000  1.00 30.00           O\nEND\n"
    cif += "HETATM 9999 O O . HOH W 2 . 9.0 9.0 9.0 1.00 30.0 1 W 1\n"

    def read(path: Path) -> None:
        atoms = read_atoms(path)
        with contextlib.suppress(CloudemError):  # no such assembly: the map is to be made all the same
            atoms = read_atoms(path, "1")
        density_of_atoms(atoms, 32, 4.0)

    packed = gzip.compress(cif.encode(), mtime=0)
    return Kind({"model.cif": cif.encode(), "model.pdb": pdb.encode(), "packed.cif.gz": packed}, read)


def certificates() -> Kind:
    """The three files of a cluster's certificates, and the secret that nodes get them from."""
    from cloudem.execution.dask.security import FILES, make_certificates, security_of
    from cloudem.runs.agent import certificates_as_secret, certificates_from_secret

    with tempfile.TemporaryDirectory() as folder:
        make_certificates(Path(folder) / "new", 30)
        files = {name: (Path(folder) / "new" / name).read_bytes() for name in FILES}
        files["secret.json"] = certificates_as_secret(Path(folder) / "new")

    def read(path: Path) -> None:
        for name in FILES:
            (path.parent / name).chmod(0o600)
        if path.name in FILES:
            security_of(path.parent)
        else:
            certificates_from_secret(path.read_bytes(), Path(tempfile.mkdtemp(dir=path.parent)) / "new")

    return Kind(files, read, together=True)


def lease() -> Kind:
    """What says who writes somewhere: any content is a lease, if only that of somebody unknown."""
    from cloudem.io.storage.lease import Holder

    def read(path: Path) -> None:
        holder = Holder.parse(path.read_bytes())
        assert isinstance(holder.dead, bool)
        assert str(holder) + repr(holder.length_s)

    return Kind({"lease.json": Holder.me(60.0).encode()}, read)


def prices() -> Kind:
    """A file of prices, and the speed of this machine that was measured."""
    from dataclasses import asdict

    from cloudem.cloud.catalogue import Catalogue, Document, document, read_document
    from cloudem.cloud.planning.calibration import LOCAL, speeds

    shipped = Catalogue.load()
    names = sorted(shipped.types)[:3]
    rows = tuple(row for row in shipped.rows if row.instance_type in names)[:6]
    some = Document({n: shipped.types[n] for n in names}, rows, dict(list(shipped._rates.items())[:2]))
    own = asdict(speeds(Path("/nonexistent/speed.json")).families[LOCAL])

    def read(path: Path) -> None:
        if path.name == "speed.json":
            speeds(path)
        else:
            read_document(path)

    return Kind({"prices.json": json.dumps(document(some)).encode(), "speed.json": json.dumps(own).encode()}, read)


def runs() -> Kind:
    """What a rented run keeps."""
    from cloudem.cloud.money import Charge, NodeEnded, NodeStarted, Note, StepStarted
    from cloudem.cloud.nodes import Pool
    from cloudem.cloud.planning.estimate import Range
    from cloudem.cloud.reconcile import Attempt
    from cloudem.runs.records import Head, NodeStatus, RunRecord, RunState, RunStore, Wishes

    pool = Pool("c7a.4xlarge", "eu-central-1a", "spot")
    with tempfile.TemporaryDirectory() as folder:
        store = RunStore(folder)
        steps = ({"job": "mask", "map": "m.mrc", "out": "o"},)
        record = RunRecord(name="first-20260102-030405", created=1e9, owner="me@here", provider="local", region="local",
                           steps=steps, plan={"nodes": [1, 2.5]}, version="0")  # fmt: skip
        store.create(record, Wishes(max_usd=2.0, deadline=2e9))
        node = NodeStatus(slot="head", id="n1", pool="c7a spot", state="running", since=1e9)
        store.write_state(RunState(at=1e9, status="running", nodes=(node,), progress=("iteration 3",), spent_usd=1.5))
        (Path(folder) / "head.json").write_text(Head(scheduler="tls://10.0.0.1:8786", at=1e9).model_dump_json())
        store.write_attempts([Attempt("t", "worker-0", 1, 5.0, "sent", "", (pool,))])
        store.finish(0, {"seconds": 3, "out": "o"})
        store.append(
            NodeStarted(1.0, "n1", "head", pool, 0.1), StepStarted(2.0, "mask", Range(1, 2, 3), None),
            Charge(3.0, "requests", 0.2), NodeEnded(4.0, "n1", "ended"), Note(5.0, "begins"),
        )  # fmt: skip
        (Path(folder) / "notices").mkdir()
        (Path(folder) / "notices" / "n1.json").write_text('{"taken": 7.5}')
        files = {
            str(path.relative_to(folder)): path.read_bytes() for path in Path(folder).rglob("*.json") if path.is_file()
        }

    def read(path: Path) -> None:
        found = RunStore(
            str(path.parent if path.parent.name not in ("steps", "ledger", "notices") else path.parents[1])
        )
        asked = {"run": found.record, "wanted": found.wanted, "state": found.state, "head": found.head,
                 "attempts": found.attempts, "0": found.finished, "n1": found.notices}  # fmt: skip
        asked.get(path.stem, found.ledger)()

    return Kind(files, read, together=True)


def nodes() -> Kind:
    """What a node is told at its start and what its machine keeps."""
    from cloudem.cloud.local import machine
    from cloudem.cloud.metadata import Metadata

    class Told(Metadata):
        def __init__(self, said: str) -> None:
            super().__init__()
            self.said = said

        def get(self, path: str) -> str | None:
            return self.said

    start = {"provider": "local", "run": "r", "project": "/p", "deadline": 2e9, "environment": {"A": "b"}}
    framed = {"write_files": [{"path": "/x", "content": json.dumps(start)}]}
    files = {
        "start.json": json.dumps(start), "framed.json": "#cloud-config\n" + json.dumps(framed),
        "notice.json": '{"action": "terminate", "time": "2026-11-21T06:13:00Z"}', "machine.json": json.dumps(start),
    }  # fmt: skip

    def read(path: Path) -> None:
        if path.stem == "machine":
            machine.read(path)
        elif path.stem == "notice":
            Told(path.read_text(errors="replace")).interruption()
        else:
            Told(path.read_text(errors="replace")).start()

    return Kind({name: text.encode() for name, text in files.items()}, read)


KINDS: dict[str, Callable[[], Kind]] = {
    make.__name__: make for make in (star, cs, toml, model, certificates, lease, prices, runs, nodes)
}
