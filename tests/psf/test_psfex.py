import io
import pickle
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits

from alertprod.psf.analytic import MoffatPsf
from alertprod.psf.psfex import PsfexPsf, evaluate_terms, polynomial_terms

TABLE = Path(__file__).parents[1] / "data" / "psfex_3.21.1.psf"


def make_psfex_table(components, *, degree=2, sampling=0.7, zero=(1000.5, 800.5), scale=(900.0, 700.0), **cards):
    """Write the table as PSFEx does: cards and one row with PSF_MASK."""
    n_terms, n, _ = components.shape
    column = fits.Column(
        name="PSF_MASK",
        format=f"{components.size}E",
        dim=f"({n},{n},{n_terms})",
        array=components.astype(np.float32)[None],
    )
    hdu = fits.BinTableHDU.from_columns([column], name="PSF_DATA")
    values = {"LOADED": 120, "ACCEPTED": 98, "CHI2": 1.1, "POLNAXIS": 2, "POLNGRP": 1, "POLDEG1": degree}
    for axis, name in enumerate(("X_IMAGE", "Y_IMAGE")):
        values |= {f"POLGRP{axis + 1}": 1, f"POLNAME{axis + 1}": name}
        values |= {f"POLZERO{axis + 1}": zero[axis], f"POLSCAL{axis + 1}": scale[axis]}
    values |= {"PSF_FWHM": 3.0, "PSF_SAMP": sampling, "PSFNAXIS": 3, "PSFAXIS1": n, "PSFAXIS2": n, "PSFAXIS3": n_terms}
    for key, value in (values | cards).items():
        if value is not None:
            hdu.header[key] = value
    stream = io.BytesIO()
    fits.HDUList([fits.PrimaryHDU(), hdu]).writeto(stream)
    stream.seek(0)
    return fits.open(stream)[1]


def make_components(degree=2, n=31, sampling=0.7):
    steps = (np.arange(n) - n // 2) * sampling
    u, v = steps[None, :], steps[:, None]
    base = np.exp(-0.5 * (u**2 + v**2) / 1.5**2)
    rng = np.random.default_rng(3)
    shapes = [base, base * u, base * v, base * u * v, base * (u**2 - 2), base * (v**2 - 2)]
    return np.stack([base, *(0.05 * rng.normal() * shapes[k % 6] for k in range(1, len(polynomial_terms(degree))))])


def draw_by_loops(model, *, size, sampling, dx, dy):
    """Return the model on pixels, sample by sample, as PSFEx's documentation has it: Lanczos-4, weights summing to 1."""
    n = model.shape[0]

    def weights(pixel, offset):
        place = n // 2 + (pixel - size // 2 - offset) / sampling
        w = np.array([np.sinc(k - place) * np.sinc((k - place) / 4) if abs(k - place) < 4 else 0.0 for k in range(n)])
        return w / w.sum()

    image = np.zeros((size, size))
    for j in range(size):
        for i in range(size):
            image[j, i] = weights(j, dy) @ model @ weights(i, dx)
    return image / image.sum()


def test_terms_are_in_the_order_of_psfex():
    # Bertin's polynomial library: the first variable runs fastest within the total degree.
    assert polynomial_terms(2) == [(0, 0), (1, 0), (2, 0), (0, 1), (1, 1), (0, 2)]
    assert polynomial_terms((1, 2)) == [(0, 0), (1, 0), (0, 1), (1, 1), (0, 2), (1, 2)]
    assert evaluate_terms(2, u=2.0, v=3.0).tolist() == [1, 2, 4, 3, 6, 9]


def test_a_table_is_drawn_at_its_fits_position():
    components = make_components()
    psf = PsfexPsf.from_hdu(make_psfex_table(components))
    assert psf.average_position == (999.5, 799.5)
    x, y = 1400.0, 300.0  # FITS 1401, 301
    u, v = (1401.0 - 1000.5) / 900.0, (301.0 - 800.5) / 700.0
    factors = [1, u, u * u, v, u * v, v * v]
    model = sum(f * c for f, c in zip(factors, components.astype(np.float32).astype(float), strict=True))
    expected = draw_by_loops(model, size=psf.size, sampling=0.7, dx=0.3, dy=-0.2)
    np.testing.assert_allclose(psf.compute_offset_image(x=x, y=y, dx=0.3, dy=-0.2), expected, atol=1e-12)


def test_the_image_fits_within_the_model():
    psf = PsfexPsf.from_hdu(make_psfex_table(make_components()))
    assert psf.size == 2 * int(15 * 0.7) + 1
    assert PsfexPsf(make_components()[:1], sampling=1.0).size == 31


def test_a_constant_psf_without_polynomial_is_read():
    hdu = make_psfex_table(make_components()[:1], POLNAXIS=0, POLNGRP=0)
    psf = PsfexPsf.from_hdu(hdu)
    np.testing.assert_array_equal(psf.compute_kernel_image(x=-100, y=3e4), psf.compute_kernel_image(x=100, y=200))


def test_one_variable_and_separate_groups_are_read():
    components = make_components()
    only_y = PsfexPsf.from_hdu(
        make_psfex_table(components[:3], POLNAXIS=1, POLNAME1="Y_IMAGE", POLZERO1=500.5, POLSCAL1=300.0)
    )
    assert only_y.degree == (0, 2)
    assert np.array_equal(only_y.compute_kernel_image(x=9, y=20), only_y.compute_kernel_image(x=90, y=20))
    assert not np.array_equal(only_y.compute_kernel_image(x=9, y=20), only_y.compute_kernel_image(x=9, y=200))
    groups = PsfexPsf.from_hdu(make_psfex_table(components[:4], POLGRP2=2, POLNGRP=2, POLDEG1=1, POLDEG2=1))
    assert groups.degree == (1, 1)


@pytest.mark.parametrize("degree", [0, 1, 3, (1, 2), (2, 0)])
def test_a_table_written_is_read_as_it_was(degree):
    components = make_components(degree).astype(np.float32)
    psf = PsfexPsf(components, degree=degree, zero=(511.5, 400.0), scale=(512.0, 400.0), sampling=0.7)
    stream = io.BytesIO()
    fits.HDUList([fits.PrimaryHDU(), psf.to_hdu()]).writeto(stream)
    stream.seek(0)
    again = PsfexPsf.from_hdu(fits.open(stream)["PSF_DATA"])
    for x, y in ((0.0, 0.0), (700.0, 100.0)):
        np.testing.assert_allclose(
            again.compute_offset_image(x=x, y=y, dx=0.1, dy=0.4), psf.compute_offset_image(x=x, y=y, dx=0.1, dy=0.4)
        )
    assert again.degree == degree
    assert again.average_position == psf.average_position


@pytest.mark.parametrize("fwhm", [2.4, 4.4])
def test_a_sampled_profile_is_drawn_between_its_samples(fwhm):
    sampling = fwhm / 4
    half = int(np.ceil(4 * fwhm / sampling))
    fine = MoffatPsf(fwhm=4.0, beta=3.0, size=2 * half + 1).compute_kernel_image(x=0, y=0)
    psf = PsfexPsf(fine[None], sampling=sampling)
    truth = MoffatPsf(fwhm=fwhm, beta=3.0, size=psf.size).compute_offset_image(x=0, y=0, dx=0.4, dy=-0.3)
    # Lanczos-4 with normalised weights is off by its second moment times the curvature, 0.3 % of the peak.
    np.testing.assert_allclose(psf.compute_offset_image(x=0, y=0, dx=0.4, dy=-0.3), truth, atol=4e-3 * truth.max())


def test_flux_units_of_the_components_do_not_matter():
    components = make_components()
    a, b = PsfexPsf(components, degree=2), PsfexPsf(1e4 * components, degree=2)
    np.testing.assert_allclose(a.compute_kernel_image(x=0.3, y=0.2), b.compute_kernel_image(x=0.3, y=0.2))


def test_transposed_components_give_the_transposed_psf():
    components = make_components((1, 1))
    psf = PsfexPsf(components, degree=(1, 1), scale=(100.0, 200.0))
    swapped = PsfexPsf(components[[0, 2, 1, 3]].transpose(0, 2, 1), degree=(1, 1), scale=(200.0, 100.0))
    image = psf.compute_offset_image(x=30.0, y=-50.0, dx=0.1, dy=0.3)
    np.testing.assert_allclose(swapped.compute_offset_image(x=-50.0, y=30.0, dx=0.3, dy=0.1), image.T)


def test_the_model_is_read_only_and_pickled():
    psf = PsfexPsf(make_components(), degree=2)
    with pytest.raises(ValueError, match="read-only"):
        psf.components[0, 0, 0] = 1.0
    again = pickle.loads(pickle.dumps(psf))
    np.testing.assert_array_equal(again.compute_kernel_image(x=1, y=2), psf.compute_kernel_image(x=1, y=2))


@pytest.mark.parametrize(
    ("cards", "problem"),
    [
        ({"POLNAXIS": 3}, "POLNAXIS"),
        ({"POLNAME2": "MAG_AUTO"}, "POLNAME2"),
        ({"POLNAME1": "Y_IMAGE", "POLNAME2": "X_IMAGE"}, "POLNAME1"),
        ({"POLDEG1": 3}, "PSF_MASK has"),
        ({"POLDEG1": -1}, "degree"),
        ({"POLDEG1": 10**9}, "degree"),
        ({"POLDEG1": "two"}, "POLDEG1"),
        ({"POLSCAL1": 0.0}, "scale"),
        ({"POLZERO1": None}, "POLZERO1"),
        ({"PSF_SAMP": -1.0}, "sampling"),
        ({"PSFAXIS1": 30}, "PSFAXIS"),
        ({"PSFAXIS1": 10**6, "PSFAXIS2": 10**6}, "PSFAXIS"),
        ({"PSFAXIS2": "many"}, "PSFAXIS2"),
    ],
)
def test_tables_that_make_no_sense_are_refused(cards, problem):
    with pytest.raises(ValueError, match=problem):
        PsfexPsf.from_hdu(make_psfex_table(make_components(), **cards))


@pytest.mark.parametrize("value", [np.nan, np.inf, 0.0])
def test_models_without_usable_samples_are_refused(value):
    components = make_components()
    components[:] = value
    with pytest.raises(ValueError, match=r"finite|sums"):
        PsfexPsf(components, degree=2)


def moffat_of_the_stored_table(x, y):
    """Return the PSF of the 220 stars (S/N 200 to 1000, 1000 x 1000 pixels) that PSFEx 3.21.1 made the table from."""
    u, v = x / 1000.0 - 0.5, y / 1000.0 - 0.5
    fwhm, ellipticity = 4.0 * (1.0 + 0.1 * (u + v * v)), 0.1 + 0.3 * u * u
    return MoffatPsf(fwhm=fwhm, beta=3.0, ellipticity=ellipticity, position_angle_deg=30.0, size=51)


def test_a_table_by_psfex_itself_gives_the_psf_it_was_made_from():
    with fits.open(TABLE) as hdul:
        psf = PsfexPsf.from_hdu(hdul["PSF_DATA"])
    assert psf.sampling == pytest.approx(0.9)
    assert psf.degree == 2
    for x, y in ((500.0, 500.0), (150.0, 150.0), (850.0, 150.0), (150.0, 850.0), (850.0, 850.0)):
        truth = moffat_of_the_stored_table(x, y)
        for dx, dy in ((0.0, 0.0), (0.5, 0.5), (0.3, -0.2)):
            image = psf.compute_offset_image(x=x, y=y, dx=dx, dy=dy)
            half = psf.size // 2
            true = truth.compute_offset_image(x=x, y=y, dx=dx, dy=dy)[25 - half : 26 + half, 25 - half : 26 + half]
            # Lanczos-4 0.3 %, the noise of PSFEx's fit about 1 % towards the corners; a position that is off by the
            # one pixel between FITS and Python, or terms in another order, would show as 3 % and more.
            np.testing.assert_allclose(image, true / true.sum(), atol=0.015 * true.max())
        assert psf.compute_fwhm(x=x, y=y) == pytest.approx(truth.compute_fwhm(), rel=0.012)


def test_many_stars_are_those_drawn_one_by_one():
    rng = np.random.default_rng(5)
    components = np.stack(
        [MoffatPsf(fwhm=3.0, size=25).compute_kernel_image(x=0, y=0), *rng.normal(0, 1e-4, (2, 25, 25))]
    )
    psf = PsfexPsf(components, degree=1, zero=(100.0, 80.0), scale=(90.0, 70.0), sampling=0.8)
    x, y = rng.uniform(0, 200, (2, 7))
    y[3] = np.inf
    images = psf.compute_stellar_images(x=x, y=y)
    assert np.isnan(images[3]).all()
    for i in (0, 1, 2, 4, 5, 6):
        np.testing.assert_allclose(images[i], psf.compute_stellar_image(x=x[i], y=y[i])[0], atol=1e-14)
