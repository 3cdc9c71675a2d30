import mrcfile
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloudem.algorithms.simulate import Recording, Simulator, dose_envelope, noise_amplitude, random_particles
from cloudem.errors import MissingColumnError, ParameterError
from cloudem.io.formats.mrc import read_volume
from cloudem.io.formats.mrc_writer import write_volume
from cloudem.kernels.ctf import ctf
from cloudem.model.optics import OpticsGroup
from cloudem.model.particles import Particles
from cloudem.model.poses import euler_to_matrix

PIXEL = 3.0
CLEAN = Recording(snr=None)


def particles_of(poses, defocus=1.5e4, shifts=None):
    """Particles with given Euler angles (b, 3) and shifts (b, 2), one CTF."""
    poses = np.asarray(poses, float)
    shifts = np.zeros((len(poses), 2)) if shifts is None else np.asarray(shifts, float)
    return Particles((OpticsGroup("a", 300.0, 2.7e7, 0.1),), {}).with_columns(
        optics_group=np.zeros(len(poses), int),
        defocus_u=np.full(len(poses), defocus),
        defocus_v=np.full(len(poses), defocus - 300),
        defocus_angle=np.full(len(poses), 0.4),
        rot=poses[:, 0],
        tilt=poses[:, 1],
        psi=poses[:, 2],
        shift_x=shifts[:, 0],
        shift_y=shifts[:, 1],
    )


def exact_transform(volume, particles, row, kx, ky):
    """Image model of conventions.py by a plain Fourier sum over the voxels, float64."""
    box = volume.shape[0]
    a = euler_to_matrix(*(particles[name][row] for name in ("rot", "tilt", "psi")))
    frequency = np.stack([kx, ky, np.zeros_like(kx)], axis=1) @ a
    z, y, x = np.indices(volume.shape).reshape(3, -1) - box // 2
    phase = np.exp(-2j * np.pi / box * (frequency @ np.array([x, y, z])))
    slice_ = phase @ volume.ravel().astype(np.float64)
    shift = np.array([particles["shift_x"][row], particles["shift_y"][row]]) / PIXEL
    slice_ *= np.exp(-2j * np.pi / box * (kx * shift[0] + ky * shift[1]))
    optics = particles.optics[0]
    return (
        slice_
        * ctf(
            kx,
            ky,
            PIXEL,
            box,
            voltage=optics.voltage,
            spherical_aberration=optics.spherical_aberration,
            amplitude_contrast=optics.amplitude_contrast,
            defocus_u=particles["defocus_u"][row : row + 1],
            defocus_v=particles["defocus_v"][row : row + 1],
            defocus_angle=particles["defocus_angle"][row : row + 1],
        )[0]
    )


def test_images_are_the_image_model(blob):
    """Every frequency below Nyquist, the origin too, within 2e-3 of the strongest off it."""
    poses = [[0.3, 1.1, -0.7], [2.0, 0.4, 1.0], [-1.2, 2.5, 0.0]]
    particles = particles_of(poses, shifts=[[5.0, -3.0], [0.0, 0.0], [-7.3, 1.1]])
    images = Simulator(blob, PIXEL, particles, CLEAN).some_images(np.arange(3))
    rng = np.random.default_rng(0)
    kx, ky = np.r_[0, rng.integers(-15, 16, 150)], np.r_[0, rng.integers(-15, 16, 150)]
    for row, image in enumerate(images):
        got = np.fft.fft2(np.fft.ifftshift(image.astype(np.float64)))[ky, kx]
        want = exact_transform(blob, particles, row, kx, ky)
        np.testing.assert_allclose(got, want, atol=2e-3 * abs(want[1:]).max())


def test_untilted_image_is_the_sum_along_z(blob):
    """Strong defocus aside: with a pure amplitude object at focus, the projection itself comes out."""
    particles = particles_of([[0, 0, 0]], defocus=0.0)
    optics = OpticsGroup("a", 300.0, 0.0, 1.0)
    flat = Particles((optics,), particles.columns).with_columns(defocus_v=[0.0])
    image = Simulator(blob, PIXEL, flat, CLEAN).some_images(np.arange(1))[0]
    want = blob.sum(axis=0)
    assert np.corrcoef(image.ravel(), want.ravel())[0, 1] > 0.9999
    assert image.mean() == pytest.approx(want.mean(), rel=1e-3)


def test_shift_moves_the_image_by_whole_pixels(blob):
    particles = particles_of([[0.5, 0.6, 0.7]] * 2, shifts=[[0, 0], [2 * PIXEL, -3 * PIXEL]])
    here, there = Simulator(blob, PIXEL, particles, CLEAN).some_images(np.arange(2))
    np.testing.assert_allclose(there, np.roll(here, (-3, 2), (0, 1)), atol=1e-4 * abs(here).max())


@settings(derandomize=True, max_examples=6, deadline=None)
@given(st.integers(1, 9), st.integers(0, 3))
def test_images_do_not_depend_on_the_batch(blob, batch, seed):
    particles = random_particles(9, Recording(), seed)
    simulator = Simulator(blob, PIXEL, particles, Recording(), seed)
    batches = list(simulator.images(batch))
    assert max(len(images) for images in batches) <= batch
    np.testing.assert_allclose(np.concatenate(batches), simulator.some_images(np.arange(9)), atol=1e-5)


@pytest.mark.parametrize("snr", [0.05, 1.0])
def test_signal_to_noise_is_a_ratio_of_pixel_variances(blob, snr):
    particles = random_particles(60, Recording(), 1)
    noisy = Simulator(blob, PIXEL, particles, Recording(snr=snr), 1)
    noise = Simulator(blob, PIXEL, particles, Recording(snr=0.0), 1)
    every = np.arange(60)
    background = noise.some_images(every)
    signal = noisy.some_images(every) - background
    assert background.var() == pytest.approx(1.0, rel=0.02)
    assert signal.var(axis=(1, 2)).mean() == pytest.approx(snr, rel=0.01)


def test_coloured_noise_has_the_stated_spectrum(blob):
    recording = Recording(snr=0.0, noise_ratio=8.0, noise_length=60.0)
    images = Simulator(blob, PIXEL, random_particles(150, recording, 2), recording, 2).some_images(np.arange(150))
    power = np.mean(abs(np.fft.rfft2(images)) ** 2, axis=0)
    wanted = noise_amplitude(48, PIXEL, 8.0, 60.0) ** 2 * 48**2
    ratio = (power / wanted)[1:, 1:24]
    assert ratio.mean() == pytest.approx(1, abs=0.01)
    assert ratio.std() < 0.12
    assert images.var() == pytest.approx(1, rel=0.02)
    assert wanted[0, 1] / wanted[0, 24] > 5


def test_envelopes_attenuate_high_frequencies(blob):
    particles = particles_of([[0.3, 1.1, -0.7]])
    plain = Simulator(blob, PIXEL, particles, CLEAN).some_images(np.arange(1))
    spectra = []
    for recording in (Recording(snr=None, b_factor=100.0), Recording(snr=None, dose=40.0)):
        image = Simulator(blob, PIXEL, particles, recording).some_images(np.arange(1))
        spectra.append(np.fft.rfft2(image)[0] / np.fft.rfft2(plain)[0])
    k = np.array([5, 11, 19])
    s = k / (48 * PIXEL)
    np.testing.assert_allclose(spectra[0][0, k].real, np.exp(-100 / 4 * s**2), atol=5e-3)
    np.testing.assert_allclose(spectra[1][0, k].real, dose_envelope(s, 40.0, 300.0), atol=5e-3)


def test_dose_envelope_has_its_limits():
    s = np.array([0.0, 0.05, 0.2, 0.33])
    np.testing.assert_array_equal(dose_envelope(s, 0.0, 300.0), 1)
    np.testing.assert_allclose(dose_envelope(s, 1e-6, 300.0), 1, atol=1e-5)
    some = dose_envelope(s, 50.0, 300.0)
    assert (np.diff(some) < 0).all()
    assert (dose_envelope(s, 50.0, 200.0)[1:] < some[1:]).all()
    # for a long exposure, only the first Ne electrons carry signal
    critical = 0.245 * 0.33**-1.665 + 2.81
    assert dose_envelope(s, 1e4, 300.0)[3] == pytest.approx(np.sqrt(critical / 1e4), rel=1e-3)


def test_drawn_particles_follow_their_recording():
    recording = Recording(shift_sigma=5.0, per_micrograph=40, defocus_min=8e3, defocus_max=2e4, astigmatism=300.0)
    particles = random_particles(4000, recording, 1)
    assert len(np.unique(particles["micrograph"])) == 100
    mean = (particles["defocus_u"] + particles["defocus_v"]) / 2
    assert mean.min() > 8e3 - 500
    assert mean.max() < 2e4 + 500
    assert (particles["defocus_u"] >= particles["defocus_v"]).all()
    assert particles["shift_x"].std() == pytest.approx(5, rel=0.05)
    assert np.bincount(particles["half_set"]).tolist() == [0, 2000, 2000]
    matrices = euler_to_matrix(particles["rot"], particles["tilt"], particles["psi"])
    np.testing.assert_allclose(matrices.mean(axis=0), 0, atol=0.04)
    again = random_particles(4000, recording, 1)
    np.testing.assert_array_equal(again["rot"], particles["rot"])
    assert not np.array_equal(random_particles(4000, recording, 2)["rot"], particles["rot"])


def test_bad_input_is_named(blob):
    particles = particles_of([[0, 0, 0]])
    with pytest.raises(ParameterError, match="even side"):
        Simulator(blob[1:, 1:, 1:], PIXEL, particles, CLEAN)
    with pytest.raises(ParameterError, match="without contrast"):
        Simulator(np.zeros_like(blob), PIXEL, particles, Recording())
    with pytest.raises(MissingColumnError, match="rlnAngleTilt"):
        Simulator(blob, PIXEL, particles.without_columns(["tilt"]), CLEAN)


def test_projections_agree_with_relion(blob, relion, tmp_path):
    """Euler angles, shifts, CTF and sign as relion_project has them; it projects up to Nyquist, so that is left out."""
    rng = np.random.default_rng(3)
    poses = np.c_[rng.uniform(-3, 3, 12), rng.uniform(0.1, 3, 12), rng.uniform(-3, 3, 12)]
    particles = particles_of(poses, shifts=rng.normal(0, 5, (12, 2)))
    ours = Simulator(blob, PIXEL, particles, CLEAN).some_images(np.arange(12))
    write_volume(tmp_path / "map.mrc", blob, PIXEL)
    _write_star(tmp_path / "poses.star", particles)
    relion("project", "--i", "map.mrc", "--ang", "poses.star", "--ctf", "--pad", "4", "--o", "theirs")
    theirs = mrcfile.read(tmp_path / "theirs.mrcs")
    assert _correlations(ours, theirs).min() > 0.9999


def test_ribosome_projections_agree_with_relion(shared_data, relion, tmp_path):
    from cloudem.io.formats.relion import read_particles_star

    folder = shared_data / "ribosome"
    lines = (folder / "poses_96_2000.star").read_text().splitlines(keepends=True)
    images = [number for number, line in enumerate(lines) if "@" in line]
    (tmp_path / "few.star").write_text("".join(lines[: images[8]]))
    relion("project", "--i", str(folder / "map_96.mrc"), "--ang", "few.star", "--ctf", "--pad", "4", "--o", "theirs")
    volume = read_volume(folder / "map_96.mrc")
    particles = read_particles_star(tmp_path / "few.star").particles
    ours = Simulator(volume.data, volume.pixel_size, particles, CLEAN).some_images(np.arange(8))
    assert _correlations(ours, mrcfile.read(tmp_path / "theirs.mrcs")).min() > 0.9999


def _correlations(ours, theirs):
    box = ours.shape[1]
    k = np.hypot(np.fft.fftfreq(box, 1 / box)[:, None], np.arange(box // 2 + 1))
    kept = np.fft.irfft2(np.where(np.rint(k) < box // 2, np.fft.rfft2(theirs), 0), s=(box, box))
    return np.array([np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in zip(ours, kept, strict=True)])


def _write_star(path, particles):
    degrees = {name: np.rad2deg(particles[name]) for name in ("rot", "tilt", "psi", "defocus_angle")}
    names = "ImageName OpticsGroup AngleRot AngleTilt AnglePsi OriginXAngst OriginYAngst DefocusU DefocusV DefocusAngle"
    text = "data_optics\n\nloop_\n_rlnOpticsGroup\n_rlnOpticsGroupName\n_rlnImagePixelSize\n_rlnImageSize\n"
    text += "_rlnImageDimensionality\n_rlnVoltage\n_rlnSphericalAberration\n_rlnAmplitudeContrast\n"
    text += f"1 a {PIXEL} 48 2 300 2.7 0.1\n\ndata_particles\n\nloop_\n"
    text += "".join(f"_rln{name}\n" for name in names.split())
    for i in range(len(particles)):
        row = [degrees[name][i] for name in ("rot", "tilt", "psi")]
        row += [
            -particles["shift_x"][i],
            -particles["shift_y"][i],
            particles["defocus_u"][i],
            particles["defocus_v"][i],
        ]
        text += (
            f"{i + 1:06d}@x.mrcs 1 " + " ".join(f"{value:.6f}" for value in [*row, degrees["defocus_angle"][i]]) + "\n"
        )
    path.write_text(text)
