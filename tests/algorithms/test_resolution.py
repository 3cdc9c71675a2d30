import mrcfile
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import fft, ndimage

from cloudem.algorithms import resolution as res
from cloudem.algorithms.mask import estimate_mask, soft_sphere
from cloudem.errors import InconsistentDataError, ParameterError
from cloudem.kernels.shells import fourier_shell_correlation

BOX, PIXEL = 48, 2.0


def white(seed, box=BOX):
    return np.random.default_rng(seed).standard_normal((box,) * 3, np.float32)


def falling(b_factor, seed=0):
    """White noise with the fall-off exp(-B s^2 / 4): a map whose Guinier plot is a line."""
    s2 = (res.frequency_radius(BOX) / (BOX * PIXEL)) ** 2
    transform = np.fft.rfftn(white(seed)) * np.exp(-b_factor / 4 * s2)
    return np.fft.irfftn(transform, s=(BOX,) * 3, axes=(0, 1, 2)).astype(np.float32)


def test_a_map_agrees_with_itself_and_an_empty_one_with_nothing():
    a = white(1)
    curves = res.masked_fsc(a, a, soft_sphere(BOX, 15, 4))
    np.testing.assert_allclose(curves.unmasked, 1, atol=1e-5)
    np.testing.assert_allclose(curves.masked, 1, atol=1e-5)
    assert curves.randomise_from == BOX // 2 + 1
    np.testing.assert_array_equal(curves.corrected, curves.masked)
    empty = np.zeros_like(a)
    for pair in ((empty, empty), (a, empty)):
        for curve in res.masked_fsc(*pair, soft_sphere(BOX, 15, 4))[:4]:
            np.testing.assert_array_equal(curve, 0)


def test_correction_takes_out_what_a_tight_mask_brings_in(blob):
    """Signal to shell 8, noise beyond: a tight hard mask correlates the noise, the corrected FSC does not."""
    signal = res.low_pass(blob, PIXEL, BOX * PIXEL / 8, edge=0.1)
    halves = [signal + 0.3 * signal.std() * white(seed) for seed in (1, 2)]
    tight = (signal > 0.3 * signal.max()).astype(np.float32)
    curves = res.masked_fsc(*halves, tight, seed=3)
    beyond = slice(curves.randomise_from + 4, None)
    assert 6 <= curves.randomise_from <= 10
    assert curves.masked[beyond].max() > 0.3
    assert curves.phase_randomised[beyond].max() > 0.3
    assert abs(curves.corrected[beyond]).mean() < 0.1
    assert abs(curves.unmasked[beyond]).max() < 0.143


def test_a_dip_does_not_begin_the_correction_of_a_map_against_a_model():
    """Shell 5 alone is lost, and all from shell 11 on: the FSC recovers from the first, and not from the second."""
    shell = np.rint(res.frequency_radius(BOX))
    lost = (shell == 5) | (shell >= 11)
    model, other = (np.fft.rfftn(white(seed)) for seed in (1, 2))
    volumes = [np.fft.irfftn(t, s=(BOX,) * 3, axes=(0, 1, 2)).astype(np.float32)
               for t in (model, np.where(lost, other, model))]  # fmt: skip
    mask = soft_sphere(BOX, 15, 4)
    assert res.masked_fsc(*volumes, mask).randomise_from == 5
    curves = res.masked_fsc(*volumes, mask, for_good=True)
    assert curves.randomise_from == 11
    np.testing.assert_array_equal(curves.corrected[:13], curves.masked[:13])
    same, nothing = (res.masked_fsc(volumes[0], v, mask, for_good=True) for v in (volumes[0], 0 * volumes[0]))
    assert (same.randomise_from, nothing.randomise_from) == (BOX // 2 + 1, 1)


@pytest.mark.parametrize("resolution", [4.0, 12.0])
def test_noise_alone_has_no_resolution(resolution):
    """Independent noise, white or filtered as a refinement leaves it, with the mask that is found in its mean."""
    halves = [res.low_pass(white(seed, 64), PIXEL, resolution) * soft_sphere(64, 28, 3) for seed in (1, 2)]
    mask = estimate_mask((halves[0] + halves[1]) / 2, PIXEL, diameter=112.0)
    curves = res.masked_fsc(*halves, mask)
    assert curves.corrected[10:].max() < 0.143
    assert res.resolution_at(curves.corrected, 64, PIXEL) > 20


def test_curves_depend_on_the_seed_alone(blob):
    halves = [blob + 0.3 * white(seed) for seed in (1, 2)]
    mask = soft_sphere(BOX, 14, 4)
    first, again, other = (res.masked_fsc(*halves, mask, seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first.phase_randomised, again.phase_randomised)
    assert not np.array_equal(first.phase_randomised, other.phase_randomised)
    np.testing.assert_array_equal(first.masked, other.masked)


def test_the_number_of_threads_changes_no_bit(blob):
    halves, mask = [blob + 0.3 * white(seed) for seed in (1, 2)], soft_sphere(BOX, 14, 4)
    found = []
    for workers in (1, 2, 3):
        with fft.set_workers(workers):
            found.append(
                [*res.masked_fsc(*halves, mask)[:4], *res.masked_fsc(*halves, None)[:4], res.low_pass(blob, 2, 9)]
            )
    for other in found[1:]:
        for ours, theirs in zip(found[0], other, strict=True):
            np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("reach", [9, BOX])
def test_masked_curves_are_those_of_whole_transforms(blob, reach):
    """The mask fills some planes and rows, or all."""
    halves = [blob + 0.3 * white(seed) for seed in (1, 2)]
    mask = np.roll(soft_sphere(BOX, min(reach, 14), 4), (3, -2, 1), (0, 1, 2)) if reach < BOX else white(9) ** 2
    curves = res.masked_fsc(*halves, mask, seed=4)
    seeds = np.random.SeedSequence(4).generate_state(2)
    turned = [res.randomise_phases(h, curves.randomise_from, int(s)) for h, s in zip(halves, seeds, strict=True)]
    expected = [
        fourier_shell_correlation(*halves),
        *(fourier_shell_correlation(*(half * mask for half in pair)) for pair in (halves, turned)),
    ]
    for ours, theirs in zip(curves[:3], expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_a_mask_without_a_voxel_leaves_nothing(blob):
    curves = res.masked_fsc(blob + white(1), blob + white(2), np.zeros_like(blob))
    np.testing.assert_array_equal(curves.masked, 0)
    np.testing.assert_array_equal(curves.phase_randomised, 0)


def test_without_a_mask_all_curves_are_the_unmasked_one(blob):
    curves = res.masked_fsc(blob + white(1), blob + white(2), None)
    np.testing.assert_array_equal(curves.corrected, curves.unmasked)
    np.testing.assert_array_equal(curves.masked, curves.unmasked)


def test_randomised_phases_keep_amplitudes_and_low_shells():
    a = white(3)
    b = res.randomise_phases(a, 9, seed=5)
    assert b.dtype == np.float32
    fa, fb = np.fft.rfftn(a), np.fft.rfftn(b)
    np.testing.assert_allclose(abs(fa), abs(fb), atol=2e-3 * abs(fa).max())
    fsc = fourier_shell_correlation(a, b)
    np.testing.assert_allclose(fsc[:9], 1, atol=1e-5)
    assert abs(fsc[9:]).max() < 0.15
    assert abs(fourier_shell_correlation(res.randomise_phases(a, 9, 6), b)[9:]).max() < 0.15


def test_bad_half_maps_are_named():
    a = white(1)
    with pytest.raises(InconsistentDataError, match=r"half-map 2 has the shape \(24, 24, 24\)"):
        res.masked_fsc(a, white(1, 24), None)
    bad = a.copy()
    bad[0, 0, 0] = np.nan
    with pytest.raises(InconsistentDataError, match="half-map 2 holds NaN"):
        res.masked_fsc(a, bad, None)
    with pytest.raises(ParameterError, match="25 shells"):
        res.multiply_shells(a, np.ones(24))


def test_resolution_is_interpolated():
    fsc = np.array([1, 1, 0.9, 0.5, 0.1, 0.3])
    assert res.resolution_at(fsc, 10, 2.0, 0.5) == pytest.approx(20 / 3)
    assert res.resolution_at(fsc, 10, 2.0, 0.3) == pytest.approx(20 / 3.5)
    assert res.resolution_at(fsc, 10, 2.0, 0.05) == 4.0
    assert res.resolution_at(np.array([1, 0.0, 1, 1, 1, 1]), 10, 2.0) == 20.0
    assert res.resolution_at(np.array([1, 1, np.nan, 1, 1, 1]), 10, 2.0, 0.5) == pytest.approx(20 / 1.5)


@settings(derandomize=True, max_examples=50, deadline=None)
@given(st.lists(st.floats(-1, 1), min_size=2, max_size=20), st.floats(0.01, 0.9), st.floats(0.01, 0.09))
def test_a_lower_threshold_never_gives_a_worse_resolution(values, threshold, less):
    fsc = np.array([1.0, *values])
    box = 2 * len(values)
    high, low = (res.resolution_at(fsc, box, PIXEL, t) for t in (threshold + less, threshold))
    assert 2 * PIXEL <= low <= high + 1e-9 <= box * PIXEL + 1e-8


def test_weight_is_the_expected_correlation_with_the_truth():
    np.testing.assert_allclose(
        res.fsc_weight(np.array([1, 0.143, 0, -0.5, np.nan, 1.01])), [1, 0.5002, 0, 0, 0, 1], atol=1e-4
    )


@pytest.mark.parametrize("b_factor", [0.0, 60.0, 150.0])
def test_guinier_fit_finds_the_fall_off(b_factor):
    fit = res.b_factor(falling(b_factor), np.ones(BOX // 2 + 1), PIXEL, 4.0)
    assert fit.b_factor == pytest.approx(b_factor, abs=3.0)
    assert fit.shells == (10, 25)


def test_guinier_fit_weighs_noise_down():
    """The same line must come out of a noisy map, whose amplitudes level off, once they are FSC-weighted."""
    signal = falling(100.0)
    halves = [signal + 0.5 * white(seed) for seed in (9, 10)]
    fsc = res.masked_fsc(*halves, None).corrected
    full = (halves[0] + halves[1]) / 2
    assert res.b_factor(full, fsc, PIXEL, 5.0).b_factor == pytest.approx(100, abs=12)
    assert res.b_factor(full, np.ones_like(fsc), PIXEL, 5.0).b_factor < 75


def test_guinier_fit_needs_enough_shells():
    fsc = np.ones(BOX // 2 + 1)
    assert res.b_factor(falling(50.0), fsc, PIXEL, 18.0) == res.GuinierFit(0.0, 0.0, (5, 5))
    assert res.b_factor(np.zeros((BOX,) * 3, np.float32), fsc, PIXEL, 4.0).b_factor == 0.0
    widened = res.b_factor(falling(50.0), fsc, PIXEL, 9.5)
    assert widened.shells == (5, 11)


def test_sharpening_undoes_the_fall_off():
    blurred, sharp = falling(100.0), falling(0.0)
    got = res.sharpen(blurred, np.ones(BOX // 2 + 1), PIXEL, 5.0, 100.0, edge=0.1)
    want = res.low_pass(sharp, PIXEL, 5.0, edge=0.1)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, want, atol=0.05 * want.std())
    assert np.isfinite(res.sharpen(blurred, np.ones(BOX // 2 + 1), PIXEL, 5.0, 1e6)).all()


def test_low_pass_keeps_below_and_removes_above():
    filtered = res.low_pass(white(4), PIXEL, BOX * PIXEL / 12, edge=2.0)
    kept = res.shell_amplitudes(filtered) / res.shell_amplitudes(white(4))
    np.testing.assert_allclose(kept[:11], 1, atol=0.02)
    np.testing.assert_allclose(kept[14:], 0, atol=1e-5)
    assert kept[12] == pytest.approx(0.5, abs=0.05)


def test_postprocess_agrees_with_relion(blob, relion, tmp_path):
    """Unmasked and masked curves within 0.01; where phases are random, RELION draws others, so within their scatter."""
    signal = res.multiply_shells(blob, np.exp(-40.0 / 4 * (np.arange(25) / (BOX * PIXEL)) ** 2))
    halves = [signal + 0.6 * signal.std() * white(seed) for seed in (1, 2)]
    mask = ndimage.gaussian_filter((blob > 0.1 * blob.max()).astype(np.float32), 2)
    for name, data in (("half1_unfil", halves[0]), ("half2_unfil", halves[1]), ("mask", np.clip(mask, 0, 1))):
        mrcfile.write(tmp_path / f"{name}.mrc", data, voxel_size=PIXEL)
    (tmp_path / "pp").mkdir()
    command = (
        "--i half1_unfil.mrc --i2 half2_unfil.mrc --mask mask.mrc --angpix 2 --o pp/pp --auto_bfac --autob_lowres 10"
    )
    relion("postprocess", *command.split(), "--autob_highres", "5")
    text = (tmp_path / "pp/pp.star").read_text()
    rows = text.split("PhaseRandomizedMaskedMaps #8")[1].split("data_guinier")[0].split("#")[0]
    theirs = np.array([line.split() for line in rows.splitlines() if len(line.split()) == 8], float)
    ours = res.masked_fsc(*halves, mask, seed=1)
    count = len(theirs)
    np.testing.assert_allclose(ours.unmasked[1:count], theirs[1:, 5], atol=0.01)
    np.testing.assert_allclose(ours.masked[1:count], theirs[1:, 6], atol=0.01)
    from_A = float(text.split("_rlnRandomiseFrom")[1].split()[0])
    assert ours.randomise_from == round(BOX * PIXEL / from_A)
    scatter = 4 / np.sqrt(2 * np.pi * np.arange(1, count) ** 2 * mask.mean())
    assert (abs(ours.phase_randomised[1:count] - theirs[1:, 7]) < scatter + 0.02).all()
    assert (abs(ours.corrected[1:count] - theirs[1:, 3]) < 2 * scatter + 0.02).all()
    shell = BOX * PIXEL / float(text.split("_rlnFinalResolution")[1].split()[0])
    assert abs(BOX * PIXEL / res.resolution_at(ours.corrected, BOX, PIXEL) - shell) < 1.5
    theirs_b = -float(text.split("_rlnBfactorUsedForSharpening")[1].split()[0])
    curve = np.r_[theirs[:, 3], np.zeros(BOX // 2 + 1 - count)]  # their weights: random phases move the fit
    assert res.b_factor((halves[0] + halves[1]) / 2, curve, PIXEL, 5.0).b_factor == pytest.approx(theirs_b, rel=0.05)


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=9))
def test_the_visible_share_is_between_nothing_and_all(fsc):
    share = res.fsc_weight(np.array(fsc))
    assert np.all((share >= 0) & (share <= 1))
    assert np.all(share[np.array(fsc) <= 0] == 0)
    assert res.fsc_weight(np.array([1.0]))[0] == 1
