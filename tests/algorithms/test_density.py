import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from cloudem.algorithms.density import demo_molecule, density_of_atoms
from cloudem.algorithms.resolution import resolution_at
from cloudem.errors import ParameterError
from cloudem.io.formats.atomic_model import read_atoms
from cloudem.io.formats.mrc import read_volume
from cloudem.kernels.shells import fourier_shell_correlation
from cloudem.model.atoms import Atoms, displaced_volume, form_factor, ice_density

BOX, PIXEL = 24, 1.7


def some_atoms(count=12, seed=3):
    rng = np.random.default_rng(seed)
    elements = np.array(["C", "N", "O", "S"])[rng.integers(0, 4, count)]
    ones = np.ones(count)
    return Atoms(rng.uniform(-8, 8, (count, 3)), elements, 0.7 * ones, rng.uniform(0, 80, count), ones)


def exact_transform(atoms, solvent):
    """The Fourier series of the box, from each atom's scattering factor and phase, float64."""
    k = np.fft.fftfreq(BOX, PIXEL)
    kz, ky, kx = np.meshgrid(k, k, k[: BOX // 2], indexing="ij")
    s2 = kx**2 + ky**2 + kz**2
    total = np.zeros(s2.shape, complex)
    hydrogen = sum(a * np.exp(-b * s2 / 4) for a, b in form_factor("H")) * np.exp(-8 * np.pi**2 * 1.05**2 / 3 * s2 / 4)
    for position, element, bound, b_factor, occupancy in zip(*atoms, strict=True):
        factor = sum(a * np.exp(-b * s2 / 4) for a, b in form_factor(str(element))) + bound * hydrogen
        if solvent:
            volume = displaced_volume(str(element)) + bound * displaced_volume("H")
            factor = factor - ice_density() * volume * np.exp(-np.pi * volume ** (2 / 3) * s2)
        phase = np.exp(-2j * np.pi * (kx * position[0] + ky * position[1] + kz * position[2]))
        total += occupancy * factor * np.exp(-b_factor * s2 / 4) * phase
    return total


@pytest.mark.parametrize("solvent", [True, False])
def test_transform_is_that_of_the_scattering_factors(solvent):
    """Every coefficient below Nyquist, within 1e-3 of the largest; atoms with B = 0 among them."""
    atoms = some_atoms()
    atoms.b_factors[0] = 0.0
    density = density_of_atoms(atoms, BOX, PIXEL, solvent=solvent, centre=False)
    assert density.dtype == np.float32
    got = np.fft.rfftn(np.fft.ifftshift(density))[:, :, : BOX // 2] * PIXEL**3
    want = exact_transform(atoms, solvent)
    inside = np.ones(BOX, bool)
    inside[BOX // 2] = False
    np.testing.assert_allclose(got[inside][:, inside], want[inside][:, inside], atol=1e-3 * max(abs(want).max(), 1.0))


def test_integral_is_the_sum_of_f0():
    atoms = some_atoms(40)
    factors = [
        sum(a for a, _ in form_factor(str(e))) + 0.7 * sum(a for a, _ in form_factor("H")) for e in atoms.elements
    ]
    got = density_of_atoms(atoms, BOX, PIXEL, solvent=False).sum(dtype=np.float64) * PIXEL**3
    assert got == pytest.approx(sum(factors), rel=1e-4)


@pytest.mark.parametrize("shift", [(1, 0, 0), (-2, 3, 1)])
def test_atoms_moved_by_voxels_move_the_map(shift):
    atoms = some_atoms()
    here = density_of_atoms(atoms, BOX, PIXEL, centre=False)
    moved = atoms._replace(positions=atoms.positions + PIXEL * np.array(shift))
    there = density_of_atoms(moved, BOX, PIXEL, centre=False)
    np.testing.assert_allclose(there, np.roll(here, shift[::-1], (0, 1, 2)), atol=2e-4 * here.max())


def test_the_centre_of_mass_is_the_origin_voxel():
    atoms = some_atoms()._replace(elements=np.array(["C"] * 12), b_factors=np.full(12, 30.0))
    atoms = atoms._replace(positions=0.5 * atoms.positions + 100.0)
    density = density_of_atoms(atoms, BOX, PIXEL, solvent=False).astype(np.float64)
    for axis in np.indices(density.shape) - BOX // 2:
        assert (density * axis).sum() / density.sum() == pytest.approx(0, abs=0.02)


def test_axes_are_z_y_x():
    one = Atoms(np.array([[3 * PIXEL, -2 * PIXEL, PIXEL]]), np.array(["C"]), np.zeros(1), np.full(1, 40.0), np.ones(1))
    density = density_of_atoms(one, BOX, PIXEL, centre=False)
    assert np.unravel_index(density.argmax(), density.shape) == (13, 10, 15)


def test_protein_stands_out_of_ice_and_more_so_out_of_vacuum():
    molecule = demo_molecule(80.0)
    ice, vacuum = (density_of_atoms(molecule, 32, 3.0, solvent=solvent) for solvent in (True, False))
    assert 0 < ice.sum() < 0.7 * vacuum.sum()


def test_a_model_that_does_not_fit_is_refused():
    with pytest.raises(ParameterError, match=r"reaches \d+ Å .* give a box of at least \d+"):
        density_of_atoms(demo_molecule(100.0), 16, 3.0)
    with pytest.raises(ParameterError, match="even"):
        density_of_atoms(some_atoms(), 25, 2.0)


def test_demo_molecule_is_deterministic_globular_and_without_symmetry():
    first, again, other = demo_molecule(100.0, 1), demo_molecule(100.0, 1), demo_molecule(100.0, 2)
    np.testing.assert_array_equal(first.positions, again.positions)
    assert first.positions.shape != other.positions.shape or not np.allclose(first.positions, other.positions)
    assert np.linalg.norm(first.positions, axis=1).max() < 1.15 * 50
    assert len(first.elements) > 2000
    density = density_of_atoms(first, 48, 3.0, b_factor=100.0)
    centred = first._replace(positions=first.positions - first.centre_of_mass())
    for turn in ([np.pi, 0, 0], [0, np.pi, 0], [0, 0, np.pi], [0, 0, np.pi / 2], [0, 0, 2 * np.pi / 3]):
        turned = centred._replace(positions=centred.positions @ Rotation.from_rotvec(turn).as_matrix().T)
        fsc = fourier_shell_correlation(density, density_of_atoms(turned, 48, 3.0, b_factor=100.0))
        assert abs(fsc[6:]).mean() < 0.3


def test_apoferritin_agrees_with_the_density_made_elsewhere(shared_data):
    """model_O.mrc is 4V1W turned by 6.0° about y and 0.6° about z; in that frame the two agree to 8 Å and beyond."""
    atoms = read_atoms(shared_data / "apoferritin/4v1w.cif")
    turn = Rotation.from_rotvec(np.deg2rad([0.09, 5.97, 0.58])).as_matrix()
    atoms = atoms._replace(positions=(atoms.positions - atoms.centre_of_mass()) @ turn.T)
    reference = read_volume(shared_data / "apoferritin/relion_extract/model_O.mrc")
    density = density_of_atoms(atoms, 64, reference.pixel_size, b_factor=200.0)
    fsc = fourier_shell_correlation(density, reference.data)
    assert fsc[:21].min() > 0.95
    assert resolution_at(fsc, 64, reference.pixel_size, 0.5) < 6.1
