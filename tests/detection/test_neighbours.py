"""A point source beside the masked residual of a saturated star is a source of its own; a residual's lobes are not."""

import numpy as np
import pytest

from alertprod.detection.detect import detect, detect_signs
from alertprod.images.mask import plane_bits
from alertprod.psf.analytic import GaussianPsf

SIGMA = 1.8
NOISE = 2.0
FLUX_PER_SNR = NOISE * np.sqrt(4 * np.pi) * SIGMA
"""Of a point source in a Gaussian PSF, sky noise alone."""

PSF = GaussianPsf.from_sigma(SIGMA)
STAR = (60, 60)
CORE, MASKED = 9.0, 14.0
"""Radii of a well that is full, and of what the kernel spreads it over."""

GROWTH = 2
"""Of the footprints before both signs are joined: the task's."""


@pytest.fixture
def beside_star(make_image):
    """Draw sources (x, y, S/N) beside the residual of a saturated star: uneven, of both signs, over the mask's brim."""

    def draw(sources, *, planes=("SAT", "SAT_TEMPLATE"), amplitude=40.0, seed=1):
        stars = [(x, y, snr * FLUX_PER_SNR) for x, y, snr in sources]
        image = make_image((120, 140), PSF, stars, noise=NOISE, seed=seed)
        v, u = np.mgrid[:120, :140]
        radius, angle = np.hypot(u - STAR[0], v - STAR[1]), np.arctan2(v - STAR[1], u - STAR[0])
        # Three lobes of each sign, fading outwards.
        residual = amplitude * np.cos(3.0 * angle + 2.5) * np.exp(-(((radius - MASKED) / 3.5) ** 2))
        image.image += residual.astype(np.float32)
        image.mask[radius <= CORE] |= plane_bits(planes[0])
        image.mask[radius <= MASKED] |= plane_bits(planes[1])
        return image

    return draw


def find(image):
    found = detect_signs(image, PSF, grow=GROWTH).sources
    return {(x, y): s for x, y, s in zip(found.x.tolist(), found.y.tolist(), found.significance, strict=True)}, found


@pytest.mark.parametrize("angle", [0.0, 0.6, 1.2, 2.0, 3.0, 4.5])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_a_source_26_pixels_from_a_saturated_star_is_its_own_whatever_residual_it_touches(beside_star, angle, sign):
    x, y = round(STAR[0] + 26 * np.cos(angle)), round(STAR[1] + 26 * np.sin(angle))
    found, footprints = find(beside_star([(float(x), float(y), sign * 39.0)]))
    assert (x, y) in found
    # Noise, and what the residual has there.
    assert found[x, y] == pytest.approx(39.0, abs=4.0)
    # It is apart from all that was detected on the mask.
    own = list(found).index((x, y))
    assert footprints.n_peaks[own] == 1


def test_the_residual_alone_stays_one_source(beside_star):
    _, footprints = find(beside_star([]))
    assert len(footprints) == 1
    assert footprints.has_both_signs.all()


@pytest.mark.parametrize("seed", range(4))
def test_lobes_of_a_residual_are_no_sources_whatever_the_noise(beside_star, seed):
    _, footprints = find(beside_star([], amplitude=15.0, seed=seed))
    assert len(footprints) == 1


def test_a_faint_bump_stays_with_the_residual(beside_star):
    found, _ = find(beside_star([(60.0, 86.0, 8.0), (34.0, 60.0, 8.0), (60.0, 34.0, -8.0)]))
    assert not {(60, 86), (34, 60), (60, 34)} & set(found)


def test_a_wide_dipole_on_clean_pixels_stays_one(make_image):
    stars = [(50.0, 50.0, 60 * FLUX_PER_SNR), (62.0, 50.0, -60 * FLUX_PER_SNR)]
    assert len(detect(make_image((100, 120), PSF, stars, noise=NOISE, seed=2), PSF)) == 1


def test_a_narrow_dipole_across_a_dead_column_stays_one(make_image):
    stars = [(50.0, 50.0, 200 * FLUX_PER_SNR), (51.0, 50.3, -200 * FLUX_PER_SNR)]
    image = make_image((100, 120), PSF, stars, noise=NOISE, seed=2)
    image.mask[:, 53] |= plane_bits("BAD")
    assert len(detect(image, PSF)) == 1
