import io

import numpy as np
import pytest
from astropy.io import fits

from alertprod.psf.analytic import GaussianPsf, MoffatPsf
from alertprod.psf.fits_cards import compute_polynomial_psf, psf_from_hdus, psf_to_hdus
from alertprod.psf.model import PointSpreadFunction
from alertprod.psf.psfex import PsfexPsf


class VaryingGaussian(PointSpreadFunction):
    """A Gaussian whose width grows linearly along x; no kind that files know."""

    def __init__(self, *, fwhm, growth=0.0):
        self.fwhm, self.growth = fwhm, growth

    @property
    def size(self):
        return 27

    @property
    def average_position(self):
        return (500.0, 300.0)

    def compute_offset_image(self, *, x, y, dx, dy):
        fwhm = self.fwhm * (1.0 + self.growth * (x - 500.0) / 500.0)
        return GaussianPsf(fwhm=fwhm, size=self.size).compute_offset_image(x=x, y=y, dx=dx, dy=dy)


def store(psf):
    """Write a PSF to a file and read it back."""
    header, hdus = psf_to_hdus(psf)
    image = fits.ImageHDU(np.zeros((4, 5), dtype=np.float32), header=header, name="IMAGE")
    stream = io.BytesIO()
    fits.HDUList([fits.PrimaryHDU(), image, *hdus]).writeto(stream)
    stream.seek(0)
    hdul = fits.open(stream)
    return psf_from_hdus(hdul, hdul["IMAGE"].header)


@pytest.mark.parametrize(
    "psf",
    [
        GaussianPsf(fwhm=3.1, ellipticity=0.12, position_angle_deg=-33.0, size=19),
        MoffatPsf(fwhm=2.9, beta=3.7, ellipticity=0.05, position_angle_deg=80.0, size=43),
    ],
)
def test_an_analytic_psf_goes_to_cards_and_back(psf):
    assert psf_to_hdus(psf)[1] == []
    again = store(psf)
    assert type(again) is type(psf)
    np.testing.assert_array_equal(
        again.compute_offset_image(x=1, y=1, dx=0.1, dy=0.2), psf.compute_offset_image(x=1, y=1, dx=0.1, dy=0.2)
    )
    assert again.average_position == (2.0, 1.5)


def test_a_psfex_psf_goes_to_a_table_and_back():
    samples = MoffatPsf(fwhm=4.0, size=31).compute_kernel_image(x=0, y=0).astype(np.float32)
    psf = PsfexPsf(np.stack([samples, 0.1 * samples.T, 0 * samples]), degree=1, scale=(10.0, 10.0), sampling=0.8)
    again = store(psf)
    assert isinstance(again, PsfexPsf)
    np.testing.assert_allclose(again.compute_kernel_image(x=3, y=4), psf.compute_kernel_image(x=3, y=4), rtol=1e-12)


@pytest.mark.parametrize("fwhm", [2.4, 4.0])
def test_a_psf_of_another_kind_is_approximated(fwhm):
    psf = VaryingGaussian(fwhm=fwhm, growth=0.08)
    again = store(psf)
    assert again.average_position == psf.average_position
    for x, y in ((500.0, 300.0), (50.0, 10.0), (900.0, 550.0)):
        truth = psf.compute_offset_image(x=x, y=y, dx=0.3, dy=-0.4)
        # Lanczos-4 between the samples 0.3 % of the peak; the third order of an 8 % growth 0.1 %.
        np.testing.assert_allclose(
            again.compute_offset_image(x=x, y=y, dx=0.3, dy=-0.4), truth, atol=5e-3 * truth.max()
        )
        assert again.compute_fwhm(x=x, y=y) == pytest.approx(psf.compute_fwhm(x=x, y=y), rel=2e-3)


def test_a_narrow_psf_is_sampled_in_half_pixels():
    assert compute_polynomial_psf(VaryingGaussian(fwhm=2.4)).sampling == 0.5
    assert compute_polynomial_psf(VaryingGaussian(fwhm=4.0)).sampling == 1.0


def test_a_file_without_psf_gives_none():
    assert psf_from_hdus(fits.HDUList([fits.PrimaryHDU()]), fits.Header()) is None


def test_the_table_comes_before_the_cards():
    header, _ = psf_to_hdus(GaussianPsf(fwhm=3.0))
    table = PsfexPsf(np.ones((1, 3, 3))).to_hdu()
    assert isinstance(psf_from_hdus(fits.HDUList([fits.PrimaryHDU(), table]), header), PsfexPsf)


@pytest.mark.parametrize(
    "cards",
    [
        {"PSFTYPE": "AIRY"},
        {"PSFTYPE": 3},
        {"PSFTYPE": "GAUSSIAN", "PSFFWHM": None},
        {"PSFTYPE": "GAUSSIAN", "PSFFWHM": "wide"},
        {"PSFTYPE": "GAUSSIAN", "PSFFWHM": True},
        {"PSFTYPE": "GAUSSIAN", "PSFFWHM": -2.0},
        {"PSFTYPE": "MOFFAT", "PSFFWHM": 2.0, "PSFBETA": 0.5},
        {"PSFTYPE": "GAUSSIAN", "PSFFWHM": 2.0, "PSFELL": 1.2},
        {"PSFTYPE": "GAUSSIAN", "PSFFWHM": 2.0, "PSFSIZE": 20},
        {"PSFTYPE": "GAUSSIAN", "PSFFWHM": 2.0, "PSFSIZE": 20.5},
        {"PSFTYPE": "GAUSSIAN", "PSFFWHM": 2.0, "PSFSIZE": 10**7},
    ],
)
def test_cards_that_make_no_sense_are_refused(cards):
    header = fits.Header({key: value for key, value in cards.items() if value is not None})
    with pytest.raises(ValueError, match="is"):
        psf_from_hdus(fits.HDUList([fits.PrimaryHDU()]), header)


def test_a_psf_data_that_is_an_image_is_refused():
    hdul = fits.HDUList([fits.PrimaryHDU(), fits.ImageHDU(np.zeros((3, 3)), name="PSF_DATA")])
    with pytest.raises(ValueError, match="not a binary table"):
        psf_from_hdus(hdul, fits.Header())


@pytest.mark.filterwarnings("ignore:File may have been truncated")
def test_a_truncated_table_is_refused():
    stream = io.BytesIO()
    samples = np.ones((1, 41, 41))
    fits.HDUList([fits.PrimaryHDU(), PsfexPsf(samples).to_hdu()]).writeto(stream)
    data = stream.getvalue()
    hdul = fits.open(io.BytesIO(data[: len(data) - 5760]))
    with pytest.raises(ValueError, match="PSF"):
        psf_from_hdus(hdul, fits.Header())


@pytest.mark.filterwarnings("ignore:File may have been truncated")
def test_a_table_that_declares_a_huge_row_is_refused_unread():
    hdu = PsfexPsf(np.ones((1, 3, 3))).to_hdu()
    stream = io.BytesIO()
    fits.HDUList([fits.PrimaryHDU(), hdu]).writeto(stream)
    data = stream.getvalue()
    # 36 bytes a row become 10^11; the card keeps its place.
    card = f"{'NAXIS1':8}= {36:20d}".encode()
    assert data.count(card) == 1
    hdul = fits.open(io.BytesIO(data.replace(card, f"{'NAXIS1':8}= {10**11:20d}".encode())))
    with pytest.raises(ValueError, match="PSF_DATA"):
        psf_from_hdus(hdul, fits.Header())
