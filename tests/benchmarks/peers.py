"""Other programs that match a template to an exposure on its pixels, beside which ours is judged and timed."""

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from astropy.io import fits
from scipy.signal import fftconvolve

from alertprod.images.exposure import Exposure
from alertprod.images.mask import plane_bits
from alertprod.psf.model import FWHM_PER_SIGMA

HOTPANTS_REACH = 10
"""Radius of the kernels that HOTPANTS is told to use, pixels."""


class NotApplicable(Exception):
    """This method cannot do this field; the message says why."""


@dataclass(slots=True, kw_only=True)
class Matched:
    """What a peer made of a pair.

    `image` is the matched template, `variance` its noise; `difference` and its `noise` (a standard deviation) are there
    where the peer subtracts by itself. `reach` is how far bad pixels spread. Seconds are those of the peer alone.
    """

    image: np.ndarray
    variance: np.ndarray | None = None
    difference: np.ndarray | None = None
    noise: np.ndarray | None = None
    reach: int
    wall_s: float
    cpu_s: float


Peer = Callable[[Exposure, Exposure], Matched]


def match_photutils(science: Exposure, template: Exposure) -> Matched:
    """Match with photutils' constant kernel: the ratio of the two PSFs' transforms, tapered.

    Raises
    ------
    NotApplicable
        Raised if photutils is not installed.
    """
    try:
        from photutils.psf_matching import SplitCosineBellWindow, make_kernel
    except ImportError as error:
        msg = f"photutils is not there: {error}; it comes with the extra alertprod[bench]"
        raise NotApplicable(msg) from error

    started = time.perf_counter(), time.process_time()
    x, y = science.psf.average_position
    size = min(science.psf.size, template.psf.size)
    target, source = (_crop(e.psf.compute_kernel_image(x=x, y=y), size) for e in (science, template))
    # The taper that photutils recommends for space telescopes starts where ground-based seeing has no power left.
    kernel = make_kernel(source, target, window=SplitCosineBellWindow(alpha=0.35, beta=0.3))
    bad = ~template.masked_image.usable(plane_bits("NO_DATA"))
    image, variance = (np.where(bad, 0.0, plane) for plane in (template.image, template.variance))
    convolved = fftconvolve(image, kernel, mode="same")
    noise = fftconvolve(variance, kernel**2, mode="same")
    return Matched(
        image=convolved.astype(np.float32),
        variance=np.maximum(noise, 0.0).astype(np.float32),
        reach=size // 4,
        wall_s=time.perf_counter() - started[0],
        cpu_s=time.process_time() - started[1],
    )


def match_hotpants(science: Exposure, template: Exposure, *, saturation: float) -> Matched:
    """Match with HOTPANTS, as its authors advise: Gaussians from the two widths.

    Parameters
    ----------
    saturation
        Of both exposures, in their units.

    Raises
    ------
    NotApplicable
        Raised if it is not on the PATH.
    """
    program = shutil.which("hotpants")
    if program is None:
        msg = "hotpants is not on the PATH"
        raise NotApplicable(msg)
    with tempfile.TemporaryDirectory(prefix="hotpants-") as folder:
        arguments = _write_hotpants_input(Path(folder), science, template, saturation)
        started = time.perf_counter(), os.times()
        subprocess.run([program, *arguments], check=True, capture_output=True, timeout=1800)
        ended = os.times()
        wall_s = time.perf_counter() - started[0]
        image, noise, matched = (
            fits.getdata(Path(folder) / f"{name}.fits").astype(np.float32)
            for name in ("difference", "noise", "matched")
        )
    before = started[1]
    return Matched(
        image=matched,
        difference=image,
        noise=noise,
        reach=HOTPANTS_REACH,
        wall_s=wall_s,
        cpu_s=ended.children_user + ended.children_system - before.children_user - before.children_system,
    )


def _crop(image: np.ndarray, size: int) -> np.ndarray:
    margin = (image.shape[0] - size) // 2
    return image[margin : margin + size, margin : margin + size]


def _write_hotpants_input(folder: Path, science: Exposure, template: Exposure, saturation: float) -> list[str]:
    """Write the images that HOTPANTS reads and return its arguments."""
    bad = plane_bits("BAD", "SAT", "CR", "NO_DATA")
    for name, exposure in (("science", science), ("template", template)):
        usable = exposure.masked_image.usable(bad)
        fits.writeto(folder / f"{name}.fits", np.where(np.isfinite(exposure.image), exposure.image, 0.0))
        noise = np.sqrt(np.where(np.isfinite(exposure.variance), exposure.variance, 1e12))
        fits.writeto(folder / f"{name}_noise.fits", noise.astype(np.float32))
        fits.writeto(folder / f"{name}_mask.fits", (~usable).astype(np.int16))
    sigma = [e.psf.compute_fwhm() / FWHM_PER_SIGMA for e in (science, template)]
    convolve_template = sigma[0] >= sigma[1]
    match = max(np.sqrt(abs(sigma[0] ** 2 - sigma[1] ** 2)), 0.7)
    upper = str(saturation)
    lower = str(-10.0 * float(np.sqrt(np.nanmedian(template.variance) + np.nanmedian(science.variance))))
    stamps = str(max(4, round(science.shape[0] / 200)))
    return [
        "-inim", str(folder / "science.fits"), "-tmplim", str(folder / "template.fits"),
        "-outim", str(folder / "difference.fits"), "-oni", str(folder / "noise.fits"),
        "-oci", str(folder / "matched.fits"),
        "-ini", str(folder / "science_noise.fits"), "-tni", str(folder / "template_noise.fits"),
        "-imi", str(folder / "science_mask.fits"), "-tmi", str(folder / "template_mask.fits"),
        "-iu", upper, "-tu", upper, "-il", lower, "-tl", lower, "-c", "t" if convolve_template else "i", "-n", "i",
        "-r", str(HOTPANTS_REACH), "-rss", "16", "-nsx", stamps, "-nsy", stamps, "-ko", "2", "-bgo", "2", "-v", "0",
        "-ng", "3", "6", f"{0.5 * match:.3f}", "4", f"{match:.3f}", "2", f"{2.0 * match:.3f}",
    ]  # fmt: skip
