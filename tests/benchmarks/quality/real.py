"""Real images of a folder that is not part of the project: whatever is absent is skipped and named.

On a pair on which nothing changed every detection is false; along a series most stars are constant; and of one pair the
kernel that decorrelates it is known from another program.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from astropy.io import fits
from benchmarks.quality.noise import MAX_LAG, Pulls, compute_correlation, compute_lags, compute_width
from benchmarks.quality.pool import Measure
from benchmarks.quality.score import Row
from benchmarks.quality.score import is_flagged as find_flagged
from benchmarks.quality.sheet import (
    Picture,
    Section,
    cut_panel,
    make_table,
    save_contact_sheets,
    scale_pulls,
    scale_sky,
    to_html,
    to_json,
)
from benchmarks.quality.targets import TOLERANCE, Verdict
from rich.console import Console
from rich.progress import Progress

from alertprod.errors import AlertprodError, BadSubtraction
from alertprod.factory import create_task
from alertprod.images.exposure import Exposure
from alertprod.images.fits_io import load_exposure
from alertprod.images.mask import plane_bits
from alertprod.images.profile import load_profile
from alertprod.resample.merge import merge_tiles
from alertprod.resample.warp import warp_exposure
from alertprod.service.differencing import Differenced, difference_exposures
from alertprod.subtraction.decorrelate import compute_whitening_kernel
from alertprod.view.stretch import compute_center_and_noise

NULL_SOURCES = 10
"""Fewer unflagged DiaSources than this are wanted where nothing changed."""

NOT_SKY = ("DETECTED", "DETECTED_NEGATIVE", "BAD", "SAT", "CR", "NO_DATA", "EDGE", "INTRP", "SAT_TEMPLATE")

LEAST_EPOCHS = 10
"""Of a light curve."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """Two images of a folder; the template is warped where it is not on the science image's pixels."""

    name: str
    science: str
    template: str
    profile: str
    template_profile: str | None = None
    aligned: bool = True
    is_null: bool = False
    is_linear: bool = True
    """Off where one of the two has no scale of flux in common with the other: then it is to be refused."""


PAIRS = (
    Pair(
        name="eso085_null 4-5",
        science="eso085_null/aligned_eso085-030-004.fit.gz",
        template="eso085_null/aligned_eso085-030-005.fit.gz",
        profile="eso085",
        is_null=True,
    ),
    Pair(
        name="eso085_null 5-4",
        science="eso085_null/aligned_eso085-030-005.fit.gz",
        template="eso085_null/aligned_eso085-030-004.fit.gz",
        profile="eso085",
        is_null=True,
    ),
    Pair(
        name="goto_virgo 2-1",
        science="goto_virgo/epoch2.fits.gz",
        template="goto_virgo/epoch1.fits.gz",
        profile="goto",
    ),
    Pair(
        name="goto_virgo 1-2",
        science="goto_virgo/epoch1.fits.gz",
        template="goto_virgo/epoch2.fits.gz",
        profile="goto",
    ),
    Pair(
        name="toritos",
        science="toritos_pgc128075/coadd.fits.gz",
        template="toritos_pgc128075/reference.fits.gz",
        profile="toritos",
        template_profile="ukstu",
        aligned=False,
        # A photographic plate: its stars' fluxes over the CCD's fall from 20 for the faint to 1 for the brightest.
        is_linear=False,
    ),
)


def run_real(data: Path, out: Path, console: Console, remarks: Console) -> int:
    """Measure on every data set of the folder; return 1 where a target is missed."""
    if not data.is_dir():
        remarks.print(f"skipped: there is no folder {data}", markup=False)
        return 0
    sections: list[Section] = []
    pictures: list[Picture] = []
    jobs: list[tuple[str, Callable[[], tuple[Section, list[Picture]]]]] = [
        (pair.name, lambda pair=pair: _measure_pair(data, pair)) for pair in PAIRS
    ]
    jobs += [("saao_kb13475", lambda: _measure_series(data)), ("decam_decorrelation", lambda: _measure_whitening(data))]
    with Progress(console=remarks, disable=not remarks.is_terminal) as progress:
        bar = progress.add_task("", total=len(jobs))
        for name, job in jobs:
            progress.update(bar, description=name)
            try:
                section, shown = job()
            except FileNotFoundError as error:
                remarks.print(f"{name} skipped: {error.filename or error} is not there", markup=False)
            except AlertprodError as error:
                remarks.print(f"{name} failed: {error}", markup=False)
                sections.append(_fail(name, error))
            else:
                sections.append(section)
                pictures += shown
                console.print(make_table(name, [section], everything=True))
            progress.advance(bar)
    meta: dict[str, object] = {"images": "real"}
    (out / "real.json").write_text(to_json(sections, meta), encoding="utf-8")
    (out / "real.html").write_text(to_html(sections, pictures, meta), encoding="utf-8")
    save_contact_sheets(pictures, out)
    return int(any(v.met is False for s in sections for v in s.verdicts.values()))


def _fail(name: str, error: AlertprodError) -> Section:
    measure = Measure(name="subtracted", value=0.0, error=np.nan, n=1, note=str(error))
    verdict = Verdict(target="1", met=False)
    return Section(regime=name, method="ours", measures=[measure], verdicts={"subtracted": verdict}, n_fields=1)


def _report_refusal(name: str, *, met: bool, note: str) -> Section:
    measure = Measure(name="refused", value=float(met), error=np.nan, n=1, note=note)
    verdict = Verdict(target="1", met=met)
    return Section(regime=name, method="ours", measures=[measure], verdicts={"refused": verdict}, n_fields=1)


def _load(data: Path, name: str, profile: str) -> Exposure:
    path = data / name
    if not path.exists():
        raise FileNotFoundError(2, "no such file", str(path))
    return load_exposure(path, load_profile(profile))


def subtract(science: Exposure, template: Exposure) -> Differenced:
    """Do what the offline command does with a pair."""
    task = create_task({"subtract.al.mode": "auto"}, source="benchmark")
    info = replace(science.info, visit=science.info.visit or 0, detector=science.info.detector or 0)
    return difference_exposures(task, replace(science, info=info), template, id_factory=task.makeIdFactory(0, 44))


def _measure_pair(data: Path, pair: Pair) -> tuple[Section, list[Picture]]:
    science = _load(data, pair.science, pair.profile)
    template = _load(data, pair.template, pair.template_profile or pair.profile)
    if not pair.aligned:
        template = merge_tiles([warp_exposure(template, science.wcs, science.shape, n_threads=2)])
    try:
        done = subtract(science, template)
    except BadSubtraction as error:
        if pair.is_linear:
            raise
        return _report_refusal(pair.name, met=True, note=str(error)), []
    if not pair.is_linear:
        return _report_refusal(pair.name, met=False, note="subtracted though the two have no scale in common"), []
    measures = measure_difference(done)
    verdicts = _judge_noise(measures)
    if pair.is_null:
        n = next(m.value for m in measures if m.name == "DiaSources unflagged")
        verdicts["DiaSources unflagged"] = Verdict(target=f"< {NULL_SOURCES}", met=bool(n < NULL_SOURCES))
    section = Section(regime=pair.name, method="ours", measures=measures, verdicts=verdicts, n_fields=1)
    return section, list(_cut_sources(pair.name, 0, done))


def _judge_noise(measures: list[Measure]) -> dict[str, Verdict]:
    by_name = {m.name: m for m in measures}
    width = by_name["pull width, sky, as a point source sees it"]
    # Where pixels were resampled the variance is raised to what a point source sees: that is the width to be right.
    met = bool(abs(width.value - 1.0) - TOLERANCE * width.error <= 0.01)
    return {width.name: Verdict(target="1 +- 0.01", met=met)}


def measure_difference(done: Differenced) -> list[Measure]:
    """Return what can be said of a difference without a truth."""
    difference, sources = done.difference, done.sources
    good = difference.masked_image.usable(plane_bits(*NOT_SKY))
    pulls = np.full(difference.shape, np.nan, dtype=np.float32)
    pulls[good] = difference.image[good] / np.sqrt(difference.variance[good])
    sky = Pulls.of(pulls[good])
    width, error = compute_width(sky)
    correlation = done.figures.get("noise_correlation", 1.0)
    raised = correlation if correlation > 1.1 else 1.0
    lags = compute_lags(*compute_correlation(pulls))
    flagged = find_flagged(sources)
    n, unflagged = sources.n_rows, int((~flagged).sum())
    return [
        Measure(name="DiaSources", value=n, error=np.sqrt(n), n=n),
        Measure(name="DiaSources unflagged", value=unflagged, error=np.sqrt(unflagged), n=n),
        Measure(name="DiaSources negative", value=float(sources["is_negative"].sum()), error=np.nan, n=n),
        Measure(name="dipoles", value=float(sources["is_dipole"].sum()), error=np.nan, n=n),
        Measure(name="pull width, sky", value=width, error=error, n=sky.n),
        Measure(name="pull width, sky, as a point source sees it", value=width * raised, error=error * raised, n=sky.n),
        Measure(name="pull mean, sky", value=sky.total / max(sky.n, 1), error=1 / np.sqrt(max(sky.n, 1)), n=sky.n),
        Measure(name="autocorrelation x 1", value=float(lags[0, MAX_LAG + 1]), error=1 / np.sqrt(sky.n), n=sky.n),
        Measure(name="autocorrelation y 1", value=float(lags[1, MAX_LAG]), error=1 / np.sqrt(sky.n), n=sky.n),
        *(Measure(name=f"figure {k}", value=v, error=np.nan, n=1) for k, v in sorted(done.figures.items())),
    ]


def _cut_sources(regime: str, number: int, done: Differenced) -> Iterator[Picture]:
    """Cut out every unflagged DiaSource, most significant first."""
    sources = done.sources
    with np.errstate(invalid="ignore"):
        pulls = done.difference.image / np.sqrt(done.difference.variance)
    center, noise = compute_center_and_noise(done.science.image)
    chosen = np.flatnonzero(~find_flagged(sources))
    for i in chosen[np.argsort(-np.abs(sources["snr"][chosen]))][:120]:
        row = Row(
            what="DiaSource", x=float(sources["x"][i]), y=float(sources["y"][i]), snr=float(sources["snr"][i]),
            facts={
                "flux/err": f"{sources['psf_flux'][i] / sources['psf_flux_err'][i]:.1f}",
                "chi2/n": f"{sources['psf_chi2'][i] / max(int(sources['psf_ndata'][i]), 1):.2f}",
                "dipole": bool(sources["is_dipole"][i]),
                "science S/N": f"{sources['science_flux'][i] / sources['science_flux_err'][i]:.0f}",
            },
        )  # fmt: skip
        panels = (
            scale_sky(cut_panel(done.science.image, row), center=center, noise=noise),
            scale_sky(cut_panel(done.template.image, row), center=0.0, noise=noise),
            scale_pulls(cut_panel(pulls, row)),
        )
        yield Picture(regime=regime, seed=number, method="ours", row=row, panels=panels)


def _measure_series(data: Path) -> tuple[Section, list[Picture]]:
    """Subtract every epoch of the SAAO series; follow its stars through the differences."""
    paths = sorted((data / "saao_kb13475").glob("AKB*.fits.fz"))
    if not paths:
        raise FileNotFoundError(2, "no such files", str(data / "saao_kb13475" / "AKB*.fits.fz"))
    tile = _load(data, "saao_kb13475/template.fits", "saao")
    task = create_task({}, source="benchmark")
    stars = task.characterize.findStars(task.characterize.subtractSky(tile))
    ra, dec = tile.wcs.pixel_to_sky(x=stars.x, y=stars.y)
    fluxes, errors = (np.full((len(stars), len(paths)), np.nan) for _ in range(2))
    widths, counts, unflagged, correlations, failed = [], [], [], [], []
    pictures: list[Picture] = []
    for epoch, path in enumerate(paths):
        science = load_exposure(path, load_profile("saao"))
        try:
            done = subtract(science, merge_tiles([warp_exposure(tile, science.wcs, science.shape, n_threads=2)]))
        except AlertprodError as error:
            failed.append(f"{path.name}: {error}")
            continue
        by_name = {m.name: m for m in measure_difference(done)}
        widths.append(by_name["pull width, sky, as a point source sees it"].value)
        counts.append(by_name["DiaSources"].value)
        unflagged.append(by_name["DiaSources unflagged"].value)
        correlations.append(by_name["autocorrelation x 1"].value)
        x, y = done.difference.wcs.sky_to_pixel(ra_deg=ra, dec_deg=dec)
        inside = (x > 15) & (x < science.shape[1] - 16) & (y > 15) & (y < science.shape[0] - 16)
        clean = inside.copy()
        clean[inside] = is_clean(done.difference, x[inside], y[inside])
        measured = done.photometer(x=x[clean], y=y[clean])
        fluxes[clean, epoch], errors[clean, epoch] = measured.psf_flux, measured.psf_flux_err
        if epoch % 10 == 0:
            pictures += list(_cut_sources("saao_kb13475", epoch, done))[:24]
    measures = [
        Measure(name="epochs subtracted", value=len(widths), error=np.nan, n=len(paths), note="; ".join(failed)),
        _describe("DiaSources an epoch", counts),
        _describe("DiaSources unflagged an epoch", unflagged),
        _describe("pull width, sky, as a point source sees it", widths),
        _describe("autocorrelation x 1", correlations),
        *summarise_light_curves(fluxes, errors, stars.snr),
    ]
    section = Section(
        regime="saao_kb13475", method="ours", measures=measures, verdicts=_judge_noise(measures), n_fields=len(paths)
    )
    return section, pictures


def is_clean(difference: Exposure, x, y):
    """Return where the 5 x 5 pixels about a position are all good."""
    bits = plane_bits("BAD", "SAT", "CR", "NO_DATA", "EDGE", "SAT_TEMPLATE")
    column, row = np.rint(x).astype(int), np.rint(y).astype(int)
    bad = (difference.mask & bits) != 0
    return np.array([not bad[j - 2 : j + 3, i - 2 : i + 3].any() for i, j in zip(column, row, strict=True)], dtype=bool)


def _describe(name: str, values: list[float]) -> Measure:
    array = np.array(values, dtype=float)
    if not array.size:
        return Measure(name=name, value=np.nan, error=np.nan, n=0)
    return Measure(
        name=name, value=float(array.mean()), error=float(array.std() / np.sqrt(array.size)), n=array.size,
        note=f"from {array.min():.3f} to {array.max():.3f}, median {np.median(array):.3f}",
    )  # fmt: skip


def summarise_light_curves(fluxes, errors, snr) -> list[Measure]:
    """Return chi-squared per degree of freedom of constant flux, the median over stars by brightness.

    A few stars vary: the median does not care.
    """
    seen = np.isfinite(fluxes) & np.isfinite(errors) & (errors > 0)
    enough = seen.sum(axis=1) >= LEAST_EPOCHS
    measures = []
    if not enough.any():
        return [Measure(name="light curves, chi2/dof", value=np.nan, error=np.nan, n=0)]
    weight = np.where(seen, 1.0 / np.where(seen, errors, 1.0) ** 2, 0.0)
    values = np.where(seen, fluxes, 0.0)
    # Weighted sums over the epochs of each star.
    total = np.maximum(weight.sum(axis=1), 1e-300)
    mean = (weight * values).sum(axis=1) / total
    chi2 = (weight * (values - mean[:, None]) ** 2).sum(axis=1) / np.maximum(seen.sum(axis=1) - 1, 1)
    edges = np.quantile(snr[enough], [0.0, 1 / 3, 2 / 3, 1.0])
    for name, low, high in zip(("faint", "middle", "bright"), edges[:-1], edges[1:], strict=True):
        chosen = enough & (snr >= low) & (snr <= high)
        sample = chi2[chosen]
        measures.append(
            Measure(
                name=f"light curves, chi2/dof, {name} stars", value=float(np.median(sample)),
                error=float(1.2533 * 1.4826 * np.median(np.abs(sample - np.median(sample))) / np.sqrt(len(sample))), n=len(sample),
                note=f"S/N {low:.0f} to {high:.0f} on the template, {(sample < 2).mean():.2f} of them below 2",
            )
        )  # fmt: skip
    return measures


def _measure_whitening(data: Path) -> tuple[Section, list[Picture]]:
    """Decorrelate a difference of two stacks of five: whiteness, and the kernel that another program found."""
    folder = data / "decam_decorrelation"

    def read(name: str) -> np.ndarray:
        path = folder / f"{name}.fits.gz"
        if not path.exists():
            raise FileNotFoundError(2, "no such file", str(path))
        return fits.getdata(path).astype(float)

    difference, theirs, final = read("FinalDifference"), read("DeCorrKernel"), read("FinalMatchKernel")
    kernels, variances = [], []
    for night, convolved in (("04", False), ("18", True)):
        for letter in "abcde":
            own = np.ones((1, 1)) if letter == "a" else read(f"DEC-OBS{night}{letter}.MatchKernel")
            kernels.append(_convolve_full(own, final) if convolved else own)
            image = read(f"DEC-OBS{night}{letter}.mini")
            variances.append((1.4826 * np.median(np.abs(image - np.median(image)))) ** 2 / 25.0)
    ours = compute_whitening_kernel(kernels, variances)
    white = _convolve_same(difference, ours)
    before, after, reference = (_correlation(image) for image in (difference, white, read("FinalDifference.DeCorr")))
    half = min(ours.shape[0], theirs.shape[0]) // 2
    a, b = (k[k.shape[0] // 2 - half : k.shape[0] // 2 + half + 1, k.shape[0] // 2 - half : k.shape[0] // 2 + half + 1]
            for k in (ours, theirs))  # fmt: skip
    measures = [
        Measure(name="largest autocorrelation before", value=before, error=np.nan, n=difference.size),
        Measure(name="largest autocorrelation after, ours", value=after, error=np.nan, n=difference.size),
        Measure(name="largest autocorrelation after, theirs", value=reference, error=np.nan, n=difference.size),
        Measure(name="largest difference of the kernels", value=float(np.abs(a - b).max()), error=np.nan, n=a.size),
    ]
    section = Section(
        regime="decam_decorrelation", method="ours", measures=measures,
        verdicts={"largest autocorrelation after, ours": Verdict(target="<= theirs + 0.02", met=bool(after <= reference + 0.02))},
        n_fields=1,
    )  # fmt: skip
    return section, []


def _convolve_full(a, b):
    from scipy.signal import fftconvolve

    return fftconvolve(a, b)


def _convolve_same(image, kernel):
    from scipy.signal import fftconvolve

    return fftconvolve(image, kernel, mode="same")


def _correlation(image) -> float:
    """Return the largest correlation at any lag of what is no source."""
    inner = image[30:-30, 30:-30]
    noise = 1.4826 * np.median(np.abs(inner - np.median(inner)))
    sky = np.where(np.abs(inner - np.median(inner)) < 3.5 * noise, inner, np.nan)
    lags = compute_lags(*compute_correlation((sky - np.nanmean(sky)) / noise))
    lags[0, : MAX_LAG + 1] = 0.0
    return float(np.abs(lags).max())
