import pickle

import numpy as np
import pytest
from astropy.io import fits
from hypothesis import given, settings
from hypothesis import strategies as st

from alertprod.geometry.wcs import SkyWcs
from alertprod.resample.mapping import PixelMapping

SHAPE = (600, 700)
BOUND = 1e-3


def tangent(*, ra=0.0, dec=0.0, rotation=0.0, scale=0.2):
    return SkyWcs.from_tangent(ra_deg=ra, dec_deg=dec, x=349.5, y=299.5, scale_arcsec=scale, rotation_deg=rotation)


def distorted(kind, *, ra=0.0, dec=0.0):
    """Return a plane whose distortion reaches several pixels at the corners."""
    header = fits.Header()
    header["NAXIS"], header["NAXIS1"], header["NAXIS2"] = 2, SHAPE[1], SHAPE[0]
    header["CRVAL1"], header["CRVAL2"], header["CRPIX1"], header["CRPIX2"] = ra, dec, 350.0, 300.0
    header["CD1_1"], header["CD1_2"], header["CD2_1"], header["CD2_2"] = -0.2 / 3600, 0.0, 0.0, 0.2 / 3600
    header["RADESYS"] = "ICRS"
    header["CTYPE1"], header["CTYPE2"] = f"RA---{kind}", f"DEC--{kind}"
    if kind == "TAN-SIP":
        header["A_ORDER"], header["B_ORDER"] = 3, 3
        header["A_2_0"], header["A_0_2"], header["A_3_0"] = 4e-5, -2e-5, 2e-8
        header["B_1_1"], header["B_0_2"], header["B_1_2"] = 3e-5, 1e-5, -2e-8
    else:
        for axis in (1, 2):
            header[f"PV{axis}_1"], header[f"PV{axis}_4"], header[f"PV{axis}_6"], header[f"PV{axis}_7"] = (
                1.0,
                0.6,
                -0.4,
                3.0,
            )
    return SkyWcs.from_header(header)


def full_transform(target, source, *, x, y):
    ra, dec = target.pixel_to_sky(x=x, y=y)
    return source.sky_to_pixel(ra_deg=ra, dec_deg=dec)


PAIRS = {
    "tangent planes": (tangent(rotation=30.0), tangent(ra=0.02, dec=0.01, scale=0.26)),
    "across RA 0": (tangent(ra=359.999), tangent(ra=0.001)),
    "round the north pole": (tangent(dec=90.0), tangent(ra=77.0, dec=89.99)),
    "round the south pole": (tangent(ra=200.0, dec=-89.995), tangent(dec=-90.0, scale=0.3)),
    "a wide field": (tangent(scale=20.0), tangent(ra=1.5, dec=-1.0, scale=21.0, rotation=5.0)),
    "from SIP": (tangent(rotation=2.0), distorted("TAN-SIP")),
    "to SIP": (distorted("TAN-SIP", dec=89.9), tangent(dec=89.9)),
    "from TPV": (tangent(dec=-30.0), distorted("TPV", dec=-30.0)),
    "SIP to TPV": (distorted("TAN-SIP"), distorted("TPV")),
}


@pytest.mark.parametrize("name", PAIRS)
def test_positions_agree_with_the_full_transformation_within_the_bound(name):
    target, source = PAIRS[name]
    mapping = PixelMapping.between(target, source, SHAPE, max_error_pixels=BOUND)
    rng = np.random.default_rng(5)
    x, y = rng.uniform(-0.5, SHAPE[1] - 0.5, 2000), rng.uniform(-0.5, SHAPE[0] - 0.5, 2000)
    x_true, y_true = full_transform(target, source, x=x, y=y)
    x_here, y_here = mapping.evaluate(x=x, y=y)
    assert np.hypot(x_here - x_true, y_here - y_true).max() <= BOUND


@pytest.mark.parametrize("name", ["tangent planes", "round the north pole", "a wide field", "SIP to TPV"])
def test_area_ratio_is_that_of_the_pixels_on_the_sky(name):
    target, source = PAIRS[name]
    mapping = PixelMapping.between(target, source, SHAPE)
    rng = np.random.default_rng(6)
    x, y = rng.uniform(0, SHAPE[1] - 1, 50), rng.uniform(0, SHAPE[0] - 1, 50)
    x_source, y_source = mapping.evaluate(x=x, y=y)
    expected = target.compute_pixel_area_arcsec2(x=x, y=y) / source.compute_pixel_area_arcsec2(x=x_source, y=y_source)
    # Central differences over 32 pixels of these polynomials: (16 px)^2 times their third derivatives, < 1e-4.
    np.testing.assert_allclose(mapping.compute_area_ratio(x=x, y=y), expected, rtol=1e-4)


def test_equal_grids_map_onto_themselves():
    mapping = PixelMapping.between(tangent(dec=-60.0), tangent(dec=-60.0), SHAPE)
    x, y = np.meshgrid(np.arange(0, 700, 7.0), np.arange(0, 600, 7.0))
    x_here, y_here = mapping.evaluate(x=x, y=y)
    np.testing.assert_allclose(x_here, x, atol=1e-7)
    np.testing.assert_allclose(y_here, y, atol=1e-7)
    np.testing.assert_allclose(mapping.compute_area_ratio(x=x, y=y), 1.0, atol=1e-8)


def test_a_tighter_bound_is_kept_by_a_finer_lattice():
    target, source = PAIRS["SIP to TPV"]
    loose = PixelMapping.between(target, source, SHAPE, max_error_pixels=1e-2)
    tight = PixelMapping.between(target, source, SHAPE, max_error_pixels=3e-4)
    assert tight.step < loose.step
    x, y = np.meshgrid(np.arange(3.0, 700, 11), np.arange(3.0, 600, 11))
    x_true, y_true = full_transform(target, source, x=x, y=y)
    x_here, y_here = tight.evaluate(x=x, y=y)
    # The inverted SIP polynomial is itself good to 1e-4 pixels.
    assert np.hypot(x_here - x_true, y_here - y_true).max() <= 3e-4 + 1e-4


def test_a_bound_below_the_inversion_of_distortions_is_refused():
    with pytest.raises(ValueError, match="at best"):
        PixelMapping.between(tangent(rotation=10.0), distorted("TAN-SIP"), SHAPE, max_error_pixels=1e-13)


def test_the_other_side_of_the_sky_maps_nowhere():
    mapping = PixelMapping.between(tangent(ra=10.0, dec=20.0), tangent(ra=190.0, dec=-20.0), (50, 60))
    x, y = mapping.evaluate(x=30.0, y=25.0)
    assert np.isnan(x)
    assert np.isnan(y)


def test_where_a_distortion_cannot_be_inverted_there_is_no_position():
    # Half a degree off, hundreds of image sizes from the polynomial's home.
    target = tangent(ra=3.0, dec=0.5)
    mapping = PixelMapping.between(target, distorted("TAN-SIP"), (64, 64), source_shape=SHAPE)
    x, y = mapping.evaluate(x=np.arange(64.0), y=np.arange(64.0))
    inside = (x > -0.5) & (x < SHAPE[1] - 0.5) & (y > -0.5) & (y < SHAPE[0] - 0.5)
    assert not inside.any()


@settings(max_examples=25, deadline=None)
@given(
    scale=st.floats(0.5, 2.0),
    angle=st.floats(0.0, 6.3),
    flip=st.booleans(),
    x=st.floats(-50.0, 50.0),
    y=st.floats(-50.0, 50.0),
)
def test_an_affine_mapping_is_exact(scale, angle, flip, x, y):
    matrix = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    if flip:
        matrix = matrix[:, ::-1]
    mapping = PixelMapping.from_affine(matrix, x=x, y=y, shape=(40, 90))
    points = np.array([[0.0, 0.0], [89.0, 39.0], [33.3, 17.7], [-4.0, 50.0]])
    x_here, y_here = mapping.evaluate(x=points[:, 0], y=points[:, 1])
    np.testing.assert_allclose(np.stack([x_here, y_here], axis=1), points @ matrix.T + [x, y], atol=1e-9)
    np.testing.assert_allclose(mapping.compute_jacobian(x=20.0, y=10.0), matrix, atol=1e-11)
    np.testing.assert_allclose(mapping.compute_area_ratio(x=20.0, y=10.0), scale**2, rtol=1e-10)


def test_a_single_row_of_pixels_can_be_mapped():
    mapping = PixelMapping.between(tangent(), tangent(rotation=90.0), (1, 5))
    x_true, y_true = full_transform(tangent(), tangent(rotation=90.0), x=4.0, y=0.0)
    assert mapping.evaluate(x=4.0, y=0.0) == pytest.approx((float(x_true), float(y_true)), abs=BOUND)


def test_nodes_that_do_not_cover_the_image_are_refused():
    nodes = np.zeros((3, 3))
    with pytest.raises(ValueError, match="do not cover"):
        PixelMapping(nodes, nodes, step=16, shape=(100, 20))
    with pytest.raises(ValueError, match="at least"):
        PixelMapping(nodes[:2], nodes[:2], step=16, shape=(10, 10))


def test_a_mapping_is_pickled_and_cannot_be_changed():
    mapping = PixelMapping.between(*PAIRS["tangent planes"], SHAPE)
    again = pickle.loads(pickle.dumps(mapping))
    assert again.evaluate(x=3.0, y=4.0) == mapping.evaluate(x=3.0, y=4.0)
    assert again.shape == SHAPE
    with pytest.raises(ValueError, match="read-only"):
        mapping.nodes[0][0, 0] = 1.0
