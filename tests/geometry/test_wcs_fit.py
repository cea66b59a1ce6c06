import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS

from alertprod.geometry.box import Box
from alertprod.geometry.sphere import separation_arcsec
from alertprod.geometry.wcs import SkyWcs
from alertprod.geometry.wcs_fit import WcsFitConfig, fit_wcs

SHAPE = (1200, 1600)
BOX = Box.from_shape(SHAPE)
SCALE = 0.25


def make_distorted(*, ra=150.0, dec=2.0, order=3):
    """A plane whose corners are up to ten pixels from where a linear one has them."""
    header = SkyWcs.from_tangent(
        ra_deg=ra, dec_deg=dec, x=700.0, y=650.0, scale_arcsec=SCALE, rotation_deg=33.0
    ).to_header()
    header["CTYPE1"], header["CTYPE2"] = "RA---TAN-SIP", "DEC--TAN-SIP"
    header["A_ORDER"], header["B_ORDER"] = order, order
    header["A_2_0"], header["A_0_2"], header["B_1_1"], header["B_0_2"] = 8e-6, 5e-6, -5e-6, 8e-6
    if order > 2:
        header["A_3_0"], header["B_1_2"] = 4e-9, -3e-9
    return SkyWcs.from_header(header)


def scatter_points(n, *, seed=1, box=BOX):
    rng = np.random.default_rng(seed)
    return rng.uniform(box.x_min, box.x_max - 1, n), rng.uniform(box.y_min, box.y_max - 1, n)


def place(wcs, x, y, *, noise_arcsec=0.0, seed=2):
    ra, dec = wcs.pixel_to_sky(x=x, y=y)
    rng = np.random.default_rng(seed)
    east, north = rng.normal(0.0, noise_arcsec / 3600, (2, len(x)))
    return {"ra_deg": ra + east / np.cos(np.radians(dec)), "dec_deg": dec + north}


def farthest_pixels(fitted, truth, box=BOX):
    """Largest distance over the whole box, rim included."""
    x, y = np.meshgrid(np.linspace(box.x_min, box.x_max - 1, 15), np.linspace(box.y_min, box.y_max - 1, 13))
    return separation_arcsec(*fitted.pixel_to_sky(x=x, y=y), *truth.pixel_to_sky(x=x, y=y)).max() / SCALE


@pytest.mark.parametrize(("ra", "dec"), [(150.0, 2.0), (0.0, -60.0), (359.999, 0.0), (40.0, 89.99), (10.0, -90.0)])
def test_a_distorted_plane_is_recovered_anywhere_on_the_sky(ra, dec):
    truth = make_distorted(ra=ra, dec=dec)
    x, y = scatter_points(120)
    fit = fit_wcs(x=x, y=y, **place(truth, x, y), box=BOX)
    assert fit.order >= 3
    assert fit.used.all()
    assert farthest_pixels(fit.wcs, truth) < 1e-4
    assert fit.scatter_arcsec < 1e-5


def test_an_undistorted_plane_needs_no_distortion():
    truth = SkyWcs.from_tangent(ra_deg=20.0, dec_deg=-5.0, x=3.0, y=-9.0, scale_arcsec=SCALE, rotation_deg=110.0)
    x, y = scatter_points(200)
    fit = fit_wcs(x=x, y=y, **place(truth, x, y, noise_arcsec=0.02), box=BOX)
    assert fit.order == 1
    assert "SIP" not in fit.wcs.to_header()["CTYPE1"]


def test_scatter_is_that_of_the_points_and_the_fit_averages_it_down():
    truth, noise, n = make_distorted(order=2), 0.05, 400
    x, y = scatter_points(n)
    fit = fit_wcs(x=x, y=y, **place(truth, x, y, noise_arcsec=noise), box=BOX)
    assert fit.order == 2
    # 2 n - 12 degrees of freedom; three-sigma rejection takes 0.8 % of the width with what it cuts.
    assert fit.scatter_arcsec == pytest.approx(noise, rel=5 / np.sqrt(4 * n) + 0.01)
    # The rim of six terms per axis has at most 6^2 / 4 times the mean leverage.
    assert farthest_pixels(fit.wcs, truth) * SCALE < 5 * noise * np.sqrt(9 * 6 / n)


def test_wrong_pairs_are_rejected_and_do_not_pull():
    truth = make_distorted()
    x, y = scatter_points(150)
    sky = place(truth, x, y, noise_arcsec=0.01)
    sky["dec_deg"][::10] += 0.6 / 3600
    fit = fit_wcs(x=x, y=y, **sky, box=BOX)
    assert not fit.used[::10].any()
    assert fit.used.sum() > 125
    np.testing.assert_allclose(fit.north_arcsec[::10], -0.6, atol=0.06)
    assert farthest_pixels(fit.wcs, truth) < 0.12


@pytest.mark.parametrize(("n", "most"), [(4, 1), (11, 1), (14, 2), (25, 3), (200, 4)])
def test_order_is_what_the_points_bear(n, most):
    x, y = scatter_points(n)
    fit = fit_wcs(x=x, y=y, **place(make_distorted(), x, y, noise_arcsec=0.001), box=BOX)
    assert fit.order <= most


def test_points_in_a_corner_do_not_run_wild_in_the_others():
    truth = make_distorted()
    x, y = scatter_points(100, box=Box(x_min=0, y_min=0, x_max=300, y_max=300))
    fit = fit_wcs(x=x, y=y, **place(truth, x, y, noise_arcsec=0.05), box=BOX)
    assert fit.order == 1
    assert farthest_pixels(fit.wcs, truth) < 60.0


def test_rows_that_are_not_finite_are_left_out():
    truth = make_distorted()
    x, y = scatter_points(60)
    sky = place(truth, x, y)
    x[3], y[5], sky["ra_deg"][7] = np.nan, np.inf, np.inf
    fit = fit_wcs(x=x, y=y, **sky, box=BOX)
    assert not fit.used[[3, 5, 7]].any()
    assert fit.used.sum() == 57
    assert farthest_pixels(fit.wcs, truth) < 1e-4


def test_the_order_of_the_points_does_not_matter():
    x, y = scatter_points(80)
    sky = place(make_distorted(), x, y, noise_arcsec=0.02)
    fit = fit_wcs(x=x, y=y, **sky, box=BOX)
    back = fit_wcs(x=x[::-1], y=y[::-1], **{name: values[::-1] for name, values in sky.items()}, box=BOX)
    np.testing.assert_array_equal(back.used[::-1], fit.used)
    assert farthest_pixels(back.wcs, fit.wcs) < 1e-6


def test_cards_read_back_and_their_inverse_polynomials_invert():
    truth = make_distorted()
    x, y = scatter_points(120)
    fitted = fit_wcs(x=x, y=y, **place(truth, x, y), box=BOX).wcs
    header = fits.Header.fromstring(fitted.to_header().tostring())
    assert farthest_pixels(SkyWcs.from_header(header), truth) < 1e-4
    assert header["AP_ORDER"] > 2
    # What a program does that knows the cards and does not iterate: eq. 5 and 6 of the convention.
    wcs = WCS(header)
    reference = wcs.wcs.crpix - 1.0
    u, v = (wcs.wcs_world2pix(np.stack(truth.pixel_to_sky(x=x, y=y), axis=1), 0) - reference).T
    back_x = reference[0] + u + np.polynomial.polynomial.polyval2d(u, v, wcs.sip.ap)
    back_y = reference[1] + v + np.polynomial.polynomial.polyval2d(u, v, wcs.sip.bp)
    assert np.hypot(back_x - x, back_y - y).max() < 0.01


def test_too_few_points_and_points_on_a_line_are_refused():
    truth = make_distorted()
    x, y = scatter_points(3)
    with pytest.raises(ValueError, match=r"3 points .* 4 are needed"):
        fit_wcs(x=x, y=y, **place(truth, x, y), box=BOX)
    x = np.linspace(0, 1000, 20)
    with pytest.raises(ValueError, match="on a line"):
        fit_wcs(x=x, y=0.5 * x, **place(truth, x, 0.5 * x), box=BOX)


@pytest.mark.parametrize("wrong", [{"sip_order": 0}, {"sip_order": 10}, {"min_matches": 2}, {"sip_iter": 0}])
def test_settings_that_cannot_be_are_refused(wrong):
    with pytest.raises(ValueError, match="|".join(wrong)):
        WcsFitConfig(**wrong)
