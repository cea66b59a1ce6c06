"""Close sources of one sign are told apart by the dip between them; what is one source stays one."""

import numpy as np
import pytest

from alertprod.detection import _blend_loops, _loops
from alertprod.detection.blends import DIP_SHARE, MIN_DIP, PEAK_SHARE, split_blends
from alertprod.detection.detect import detect
from alertprod.detection.matched_filter import compute_significance, make_filter_kernel
from alertprod.images.mask import plane_bits
from alertprod.images.masked_image import MaskedImage
from alertprod.psf.analytic import GaussianPsf, MoffatPsf

SIGMA = 1.8
NOISE = 2.0
FLUX_PER_SNR = NOISE * np.sqrt(4 * np.pi) * SIGMA
"""Of a point source in a Gaussian PSF, sky noise alone."""

PSF = GaussianPsf.from_sigma(SIGMA)


def find(image, psf=PSF, **settings):
    found = detect(image, psf, **settings)
    return found, set(zip(found.x.tolist(), found.y.tolist(), strict=True))


def count_parts(image, psf=PSF):
    """Return how many islands there are beyond five sigmas, and how many parts they are split into."""
    kernel, bad_bits = make_filter_kernel(psf), plane_bits("BAD")
    significance = compute_significance(image, kernel, bad_bits=bad_bits)
    pixels, bits = _loops.threshold_bits(significance, np.float32(5.0), _loops.POSITIVE | _loops.NEGATIVE)
    parts = split_blends(
        significance,
        image,
        kernel**2,
        bad_bits=bad_bits,
        pixels=pixels,
        bits=bits,
        is_peak=_loops.find_peaks(significance, pixels, bits),
        min_coverage=0.5,
    )
    return _loops.label_islands(pixels, bits, significance.shape[1])[1], len(np.unique(parts))


@pytest.fixture
def row(make_image):
    """Draw sources in a row from (40, 50), at distances in PSF sigmas and of significances."""

    def row(places, snr, **settings):
        stars = [(40 + place * SIGMA, 50.3, s * FLUX_PER_SNR) for place, s in zip(places, snr, strict=True)]
        return make_image((100, 140), PSF, stars, noise=NOISE, **settings)

    return row


@pytest.mark.parametrize("seed", range(5))
def test_two_bright_sources_eight_sigmas_apart_are_two(row, seed):
    image = row([0, 8], [300, 300], seed=seed)
    found, places = find(image)
    assert places == {(40, 50), (54, 50)}
    # Each has the pixels on its side.
    for i in range(2):
        _, x = found.footprint_pixels(i)
        assert (x < 47.2).all() or (x > 46.8).all()


@pytest.mark.parametrize(("distance", "n"), [(2.0, 1), (3.0, 1), (3.7, 1), (4.5, 2), (6.0, 2), (10.0, 2)])
def test_equal_sources_are_two_from_the_distance_at_which_the_dip_is_a_third(row, distance, n):
    # The filtered profile has sqrt(2) sigma: 2 exp(-d² / 16) in the middle is 0.7 (1 + exp(-d² / 4)) at d = 4.1 sigma.
    assert len(find(row([0, distance], [200, 200], seed=3))[0]) == n


def test_several_in_a_row_are_several(row):
    assert len(find(row([0, 6, 12, 18], [200, 120, 300, 150], seed=4))[0]) == 4


@pytest.mark.parametrize(("share", "n"), [(0.3, 2), (0.1, 2), (0.7 * PEAK_SHARE, 1)])
def test_the_fainter_may_be_a_twentieth_of_the_brighter(row, share, n):
    # So close that the faintest is still no island of its own, and has a dip of half its height.
    image = row([0, 6.5], [600, share * 600], seed=5)
    assert count_parts(image) == (1, n)
    assert len(find(image)[0]) == n


def test_negative_sources_transposed_and_scaled_ones_are_told_apart_alike(row):
    image = row([0, 7, 13], [300, 200, 80], seed=6)
    _, places = find(image)
    assert len(places) == 3
    negative, _ = find(MaskedImage(-image.image, image.mask, image.variance))
    assert set(zip(negative.x.tolist(), negative.y.tolist(), strict=True)) == places
    _, scaled = find(MaskedImage(1e-6 * image.image, image.mask, 1e-12 * image.variance))
    assert scaled == places
    _, transposed = find(MaskedImage(*(np.ascontiguousarray(p.T) for p in (image.image, image.mask, image.variance))))
    assert {(y, x) for x, y in transposed} == places


def test_both_signs_stay_one(row):
    image = row([0, 7, 12], [300, 300, -200], seed=7)
    found, _ = find(image)
    assert len(found) == 1
    assert found.has_both_signs[0]


# -- one source is one --


def make_bright_stars(psf, *, n, snr, seed):
    """Stars far apart with the photon noise of their own."""
    rng = np.random.default_rng(seed)
    side = 96
    image = np.zeros((side, side * n))
    for i in range(n):
        stamp, box = psf.compute_stellar_image(x=side * i + 48 + rng.uniform(-0.5, 0.5), y=48 + rng.uniform(-0.5, 0.5))
        image[box.slices] += snr * FLUX_PER_SNR * stamp
    variance = NOISE**2 + image
    image += rng.standard_normal(image.shape) * np.sqrt(variance)
    return MaskedImage(image.astype("f4"), np.zeros(image.shape, np.int32), variance.astype("f4"))


@pytest.mark.parametrize("snr", [30, 300, 3000])
@pytest.mark.parametrize("filtered_with", [1.0, 0.8, 1.25])
def test_noise_in_the_wings_of_a_bright_source_is_no_source(snr, filtered_with):
    stars = make_bright_stars(MoffatPsf(fwhm=4.2, beta=2.5, size=65), n=40, snr=snr, seed=snr)
    n_islands, n_parts = count_parts(stars, MoffatPsf(fwhm=filtered_with * 4.2, beta=3.0))
    assert n_islands == n_parts >= 40


class Ringed(GaussianPsf):
    """A PSF with a ring that has a bump, of 2 % of the peak, which nobody's model has."""

    def compute_offset_image(self, *, x, y, dx, dy):
        image = super().compute_offset_image(x=x, y=y, dx=dx, dy=dy)
        v, u = np.mgrid[: image.shape[0], : image.shape[0]] - image.shape[0] // 2
        r, angle = np.hypot(u - dx, v - dy), np.arctan2(v - dy, u - dx)
        return image + 0.02 * image.max() * np.exp(-0.5 * ((r - 12.0) / 1.5) ** 2) * np.cos(angle) ** 8


def test_a_ring_that_the_psf_model_lacks_is_no_source():
    n_islands, n_parts = count_parts(make_bright_stars(Ringed.from_sigma(SIGMA, size=41), n=10, snr=2000, seed=1))
    assert n_islands == n_parts


@pytest.mark.parametrize("snr", [15, 60, 400])
@pytest.mark.parametrize("length", [15.0, 50.0])
def test_a_trail_is_one(make_image, snr, length):
    for seed in range(12):
        angle = 0.3 * seed
        steps = np.arange(-0.5 * length, 0.5 * length, 0.25)
        points = [(70 + s * np.cos(angle), 70 + s * np.sin(angle), 1.0) for s in steps]
        trail = make_image((140, 140), PSF, points)
        # Of this significance on its ridge, where a filter's width of it counts.
        peak = trail.image.max() / (NOISE / (np.sqrt(4 * np.pi) * SIGMA) * 0.5**0.5) / (4 * np.pi * SIGMA**2) ** 0.5
        image = make_image((140, 140), PSF, noise=NOISE, seed=seed)
        image.image += trail.image * np.float32(snr / peak)
        n_islands, n_parts = count_parts(image)
        assert n_islands == n_parts, seed


@pytest.mark.parametrize("width", [1, 3, 5])
def test_a_masked_column_across_a_source_is_no_dip(row, width):
    for snr in (100, 1000):
        image = row([0], [snr], seed=8)
        image.mask[:, 40 : 40 + width] = plane_bits("BAD")
        image.image[:, 40 : 40 + width] = np.nan
        n_islands, n_parts = count_parts(image)
        assert n_islands == n_parts


def test_the_compiled_flood_does_what_its_twin_does():
    rng = np.random.default_rng(9)
    for _ in range(30):
        ny, nx = 12, 17
        # Steps of one, so that there are equal levels too.
        level = np.round(rng.uniform(5, 60, (ny, nx)))
        flat = np.flatnonzero(rng.random(ny * nx) < 0.8)
        bits = np.ones(len(flat), np.uint8)
        island, _ = _loops.label_islands(flat, bits, nx)
        is_peak = _loops.find_peaks(level, flat, bits) & (rng.random(len(flat)) < 0.9)
        arguments = (level.ravel()[flat], flat, island, is_peak, nx, MIN_DIP, DIP_SHARE, PEAK_SHARE)
        np.testing.assert_array_equal(_blend_loops.flood(*arguments), flood_by_sets(*arguments))


def flood_by_sets(level, pixels, island, is_peak, nx, min_dip, dip_share, peak_share):
    """The definition, with sets of pixels."""
    owner: dict[int, int] = {}
    members: dict[int, set[int]] = {}
    for i in np.lexsort((pixels, -level)).tolist():
        y, x = divmod(int(pixels[i]), nx)
        near = [
            j
            for j in range(len(pixels))
            if j in owner and island[j] == island[i] and max(abs(pixels[j] // nx - y), abs(pixels[j] % nx - x)) == 1
        ]
        if not near:
            owner[i], members[i] = i, {i}
            continue
        near.sort()
        highest = max(near, key=lambda j: (level[j], -j))
        # Of equal summits the highest neighbour's, then the first.
        summits = [owner[highest], *(owner[j] for j in near)]
        top = max(summits, key=lambda s: level[s])
        for summit in set(summits) - {top}:
            dip = level[summit] - level[i]
            if not (
                is_peak[summit]
                and level[summit] >= peak_share * level[top]
                and dip > max(min_dip, dip_share * level[summit])
            ):
                for j in members.pop(summit):
                    owner[j] = top
                    members[top].add(j)
        owner[i] = owner[highest]
        members[owner[i]].add(i)
    return np.array([owner[i] for i in range(len(pixels))])
