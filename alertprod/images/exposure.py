"""An exposure: one detector of one visit (or one template tile) with everything that describes it."""

from dataclasses import dataclass, field, replace

from alertprod._typing import FloatArray, IntArray
from alertprod.geometry.box import Box
from alertprod.geometry.wcs import SkyWcs
from alertprod.images.ap_corr import ApCorrMap
from alertprod.images.correlated_noise import CorrelatedNoise, make_noise
from alertprod.images.masked_image import MaskedImage
from alertprod.images.photo_calib import PhotoCalib
from alertprod.psf.model import PointSpreadFunction


@dataclass(slots=True, kw_only=True)
class ExposureInfo:
    """What is known of how an exposure was taken; None where nobody says.

    Times are MJD in TAI, angles degrees in ICRS, `gain` electrons per image unit, `saturation` and
    `read_noise` in image units and electrons.
    """

    instrument: str = ""
    visit: int | None = None
    detector: int | None = None
    band: str | None = None
    physical_filter: str | None = None
    shutter_open_mjd_tai: float | None = None
    shutter_close_mjd_tai: float | None = None
    exposure_time_s: float | None = None
    ra_deg: float | None = None
    dec_deg: float | None = None
    rotation_deg: float | None = None
    gain: float | None = None
    read_noise: float | None = None
    saturation: float | None = None
    observation_reason: str | None = None
    target_name: str | None = None
    provenance: dict[str, str] = field(default_factory=dict)
    """Free facts on how the planes came about ("variance": "from gain and read noise"), for headers and logs."""

    @property
    def midpoint_mjd_tai(self) -> float | None:
        """Middle of the exposure: of shutter open and close, else open + half the exposure time."""
        if self.shutter_open_mjd_tai is None:
            return None
        if self.shutter_close_mjd_tai is not None:
            return 0.5 * (self.shutter_open_mjd_tai + self.shutter_close_mjd_tai)
        if self.exposure_time_s is not None:
            return self.shutter_open_mjd_tai + 0.5 * self.exposure_time_s / 86400.0
        return None


@dataclass(slots=True, kw_only=True)
class Exposure:
    """Pixels, world coordinates, point spread function and calibration of one detector.

    Pixel values are in image units; `photo_calib` takes them to nJy. `wcs` and `psf` are None where
    a file has none and nobody has supplied one yet; `ap_corr_map` where fluxes need no aperture correction.
    `noise_kernel` is the kernel of unit sum through which white noise has this image's noise, where its pixels are known not
    to be independent (`alertprod.resample.noise`); `noise` is that of an image made of several, as a difference. Neither is
    kept in files.
    """

    masked_image: MaskedImage
    wcs: SkyWcs | None = None
    psf: PointSpreadFunction | None = None
    photo_calib: PhotoCalib = field(default_factory=PhotoCalib)
    info: ExposureInfo = field(default_factory=ExposureInfo)
    ap_corr_map: ApCorrMap | None = None
    noise_kernel: FloatArray | None = None
    noise: CorrelatedNoise | None = None

    @property
    def image(self) -> FloatArray:
        """The image plane, shape ``(ny, nx)``."""
        return self.masked_image.image

    @property
    def mask(self) -> IntArray:
        """The mask plane."""
        return self.masked_image.mask

    @property
    def variance(self) -> FloatArray:
        """The variance plane."""
        return self.masked_image.variance

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.masked_image.shape

    @property
    def correlated_noise(self) -> CorrelatedNoise | None:
        """What is known of the noise beyond the variance plane, None where pixels count as independent."""
        if self.noise is None and self.noise_kernel is not None:
            return make_noise(self.variance, self.noise_kernel)
        return self.noise

    @property
    def box(self) -> Box:
        """The pixels' box, from (0, 0)."""
        return self.masked_image.box

    def copy(self) -> "Exposure":
        """Return an exposure with fresh planes and info; what describes them is immutable and shared."""
        return replace(self, masked_image=self.masked_image.copy(), info=replace(self.info))
