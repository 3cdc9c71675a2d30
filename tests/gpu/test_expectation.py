"""The expectation step gives the same whether its heavy arrays lie on the host or on the device."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from cloudem.algorithms.aberrations import NO_ABERRATIONS, Aberrations
from cloudem.algorithms.align import Prior
from cloudem.algorithms.batch import Batch
from cloudem.algorithms.bricks import pack_reference
from cloudem.algorithms.expectation import IterationPlan, Model, contrast, expect
from cloudem.algorithms.noise import power_spectrum
from cloudem.algorithms.reconstruct import empty_sums, reference_volume
from cloudem.algorithms.search import search_grid
from cloudem.algorithms.view_density import density_gradient
from cloudem.backend.arrays import on_device
from cloudem.jobs.refine3d import tasks
from cloudem.jobs.refine3d.tasks import Item, Known, Reference, align_group, model_of
from cloudem.kernels.ctf import ctf_terms, ctf_values
from cloudem.kernels.fourier import fill_half_disc, half_disc, real_images
from cloudem.kernels.slices import padded_box
from cloudem.model.poses import random_rotations
from cloudem.model.symmetry import operators
from tests.phantom import blobs

BOX, PIXEL_SIZE, IMAGES = 32, 3.0, 4
PLAN = IterationPlan(
    box=BOX, pixel_size=PIXEL_SIZE, radius=13.0, k_score=10, k_insert=12, k_search=7, step=0.25,
    shift_radius=3.0, shift_step=1.5, candidates=3, poses=2, first=False,
)  # fmt: skip


@pytest.fixture(scope="module")
def scene():
    """A density, images of it, their CTF terms and the variance of their noise."""
    random = np.random.default_rng(1)
    phantom, disc = blobs(reach=9), half_disc(BOX, BOX // 2 - 1)
    terms = ctf_terms(
        voltage=300, spherical_aberration=2.7e7, amplitude_contrast=0.1, defocus_angle=np.zeros(IMAGES),
        defocus_u=random.uniform(1e4, 2e4, IMAGES), defocus_v=random.uniform(1e4, 2e4, IMAGES),
    )  # fmt: skip
    signal = phantom.slices(random_rotations(IMAGES, random), disc.kx, disc.ky, BOX)
    signal *= ctf_values(disc.kx, disc.ky, terms, 1 / (BOX * PIXEL_SIZE))
    images = real_images(fill_half_disc(signal, disc, BOX))
    noise = 0.5 * images.std()
    images += random.normal(scale=noise, size=images.shape)
    return phantom.density(BOX), images.astype(np.float32), terms, noise**2 * BOX**2 / 2


def prepare(scene, place):
    density, images, terms, sigma2 = scene
    volume, group = place(reference_volume(density, BOX // 2 - 1)), operators("C1")
    grid = search_grid(volume, padded_box(BOX) / BOX, BOX, PLAN.k_search, PLAN.radius, PLAN.step, group)
    model = Model(volume, grid, np.full((2, BOX // 2 + 1), sigma2), Prior(4.0), group)
    optics = np.arange(IMAGES, dtype=np.int32) % 2
    odd = np.zeros((2, 12))
    odd[1, 2:4] = 300.0, -200.0  # coma of one of two groups, and the magnification of both
    aberrations = Aberrations(odd, np.array([np.eye(2), [[1.02, 0.01], [0.01, 0.99]]]))
    table = (terms, np.ones(IMAGES), optics, np.zeros(IMAGES, bool))
    return model, Batch(place(images), *table, None, aberrations=aberrations)


def run(scene, place):
    """Run an iteration with a search of all images, and one with a search of some."""
    model, batch = prepare(scene, place)
    sums = empty_sums(BOX, PLAN.k_insert, beside=batch.images)
    first = expect(batch, PLAN, model, sums)
    model = replace(model, own_share=np.full(BOX // 2 + 1, 1e-3))
    known = replace(batch, poses=first.poses, weights=first.weights, settled=np.arange(IMAGES) % 2 == 0)
    second = expect(known, PLAN, model, sums)
    return first, second, sums


def test_expectation(cupy, scene):
    *here, sums = run(scene, np.asarray)
    *there, device_sums = run(scene, cupy.asarray)
    # rounding decides whether a pose takes a last step, which is short against its standard error
    for a, b in zip(here, there, strict=True):
        np.testing.assert_array_equal(a.poses.images, b.poses.images)
        np.testing.assert_allclose(a.poses.rotations, b.poses.rotations, atol=5e-3)
        np.testing.assert_allclose(a.poses.shifts, b.poses.shifts, atol=2e-2)
        np.testing.assert_allclose(a.weights, b.weights, atol=1e-2)
        np.testing.assert_allclose(a.residual, b.residual, rtol=1e-3, atol=1e-3)
        for result in (b.poses.rotations, b.weights, b.residual):
            assert type(result) is np.ndarray
    for a, b in zip((sums.data, sums.weight), (device_sums.data, device_sums.weight), strict=True):
        assert isinstance(b, cupy.ndarray)
        assert np.abs(a - cupy.asnumpy(b)).max() < 1e-2 * np.abs(a).max()


def test_contrast(cupy, scene):
    here, there = (
        contrast(batch, PLAN, model) for model, batch in (prepare(scene, np.asarray), prepare(scene, cupy.asarray))
    )
    assert type(there) is np.ndarray
    np.testing.assert_allclose(here, there, rtol=1e-4)


def test_power_spectrum(cupy, scene):
    images, optics = scene[1], np.arange(IMAGES, dtype=np.int32) % 2
    here, there = (power_spectrum(place(images), optics, 3) for place in (np.asarray, cupy.asarray))
    for a, b in zip(here, there, strict=True):
        assert type(b) is np.ndarray
        np.testing.assert_allclose(a, b, rtol=1e-5)


def aligned(scene, device, monkeypatch):
    """Run a task whose images and poses come from no store; return the model, and what the task adds."""
    density, images, terms, sigma2 = scene
    everything, plan = np.arange(IMAGES), replace(PLAN, candidates=1, poses=1)
    known = Known(0, np.ones(IMAGES), np.zeros(IMAGES, bool), None)
    monkeypatch.setattr(tasks, "choose_device", lambda: device)
    monkeypatch.setattr(tasks, "read_known", lambda url, indices: known)
    monkeypatch.setattr(tasks, "image_batches", lambda dataset, indices: [(indices, images)])
    optics = everything.astype(np.int32) % 2
    dataset = SimpleNamespace(terms=terms, ctf_scale=np.ones(IMAGES), optics_group=optics, aberrations=NO_ABERRATIONS)
    dataset.anchors = lambda indices: None
    values = pack_reference(reference_volume(density, PLAN.k_score), PLAN.k_score, padded_box(BOX) / BOX)
    share, gradient = np.zeros(BOX // 2 + 1), density_gradient(np.zeros((0, 3)), np.eye(3)[None])
    reference = Reference(values, PLAN.k_score, np.full((2, BOX // 2 + 1), sigma2), 4.0, 1.0, share, gradient)
    model = model_of(reference, plan, "C1")
    return model, align_group(Item(1, everything), dataset, model, "", plan)


def test_of_a_task_nothing_larger_than_its_line_is_moved(cupy, scene, monkeypatch):
    model, here = aligned(scene, "cpu", monkeypatch)
    moved = []

    def counted(move):
        def counting(values, *rest):
            if move is to_host or not on_device(values):
                moved.append(getattr(values, "nbytes", 0))
            return move(values, *rest)

        return counting

    to_host = cupy.asnumpy
    for move in (cupy.asarray, to_host):
        monkeypatch.setattr(cupy, move.__name__, counted(move))
    device_model, there = aligned(scene, "gpu", monkeypatch)
    assert isinstance(device_model.volume, cupy.ndarray)
    (part,), (device_part,) = here.sums.values(), there.sums.values()
    for a, b in ((part.data, device_part.data), (part.weight, device_part.weight)):
        assert type(b) is np.ndarray
        assert a.dtype == b.dtype
        assert np.abs(a - b).max() < 1e-2 * np.abs(a).max()
    assert part.data.nbytes in moved
    assert max(moved) < empty_sums(BOX, PLAN.k_insert).weight.nbytes
    np.testing.assert_array_equal(cupy.asnumpy(device_model.volume), model.volume)
