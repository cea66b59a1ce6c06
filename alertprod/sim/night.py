"""A night of a small camera: exposures, template tiles on another pixel grid, events, and the truth.

Everything follows from the seed. Exposures of one night can be rendered in any order and in any
process: each has a random stream of its own.
"""

import json
import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits
from astropy.table import Table, vstack
from astropy.time import Time

from alertprod.geometry.wcs import SkyWcs
from alertprod.images.exposure import ExposureInfo
from alertprod.images.fits_io import save_exposure
from alertprod.images.mask import plane_bits
from alertprod.images.profile import NATIVE_PROFILE, PROFILES_DIRECTORY
from alertprod.sim.render import Detector, Rendering, Seeing, render_exposure
from alertprod.sim.scene import Scene, SceneConfig

SECONDS_PER_DAY = 86400.0
_EDGE_PIXELS = 30
"""Injected sources nearer to the edge are not counted as measurable: kernels and PSFs are truncated there."""


@dataclass(frozen=True, slots=True)
class NightConfig:
    """The camera and its night."""

    seed: int = 1
    n_visits: int = 7
    n_detectors: int = 2
    size: int = 1024
    """Side of a detector in pixels."""
    scale_arcsec: float = 0.2
    gap_pixels: int = 40
    ra_deg: float = 359.97
    """Just off RA 0, so that every demonstration crosses it."""
    dec_deg: float = -31.2
    rotation_deg: float = 20.0
    exposure_time_s: float = 30.0
    cadence_s: float = 40.0
    start_mjd_tai: float = 61000.2
    instrument: str = "simcam"
    band: str = "r"
    seeing_fwhm: float = 4.4
    """Mean of the visits, pixels."""
    template_fwhm_arcsec: float = 0.72
    template_scale_arcsec: float = 0.2333
    template_rotation_deg: float = -8.0
    template_size: int = 900
    template_overlap: int = 60
    template_depth: float = 10.0
    scene: SceneConfig = field(default_factory=SceneConfig)
    detector: Detector = field(default_factory=Detector)


class Night:
    """The plan of a night; rendering fills its folder.

    Parameters
    ----------
    directory
        ``visits/`` and ``templates/`` are made in it.
    config
        The camera and its night.
    """

    def __init__(self, directory: Path, config: NightConfig) -> None:
        self.directory = directory
        self.config = config
        width = self._field_width_arcsec() + 40.0
        self.scene = Scene(
            replace(config.scene, seed=config.seed), ra_deg=config.ra_deg, dec_deg=config.dec_deg, width_arcsec=width
        )
        rng = np.random.default_rng([config.seed, 2])
        self._dither_arcsec = rng.uniform(-6.0, 6.0, size=(config.n_visits, 2))
        self._fwhm = config.seeing_fwhm * rng.uniform(0.93, 1.12, size=config.n_visits)
        self._ellipticity = rng.normal(0.0, 0.02, size=(config.n_visits, 2))

    @property
    def templates_directory(self) -> Path:
        """Where the tiles are."""
        return self.directory / "templates"

    def visit_id(self, visit: int) -> int:
        """Return the 13-digit id of the night's visit number `visit` (from 0)."""
        date = Time(self.config.start_mjd_tai, format="mjd", scale="tai").to_datetime()
        return int(f"{date:%Y%m%d}") * 100_000 + visit + 1

    def exposure_path(self, visit: int, detector: int) -> Path:
        """Return where an exposure is (to be) written."""
        return self.directory / "visits" / f"{self.config.instrument}_{self.visit_id(visit)}_{detector:03d}.fits"

    def event(self, visit: int, detector: int, *, shutter_open_mjd_tai: float | None = None) -> dict[str, Any]:
        """Return the `visit_ready` event of an exposure, as JSON would carry it."""
        config = self.config
        opened = self._shutter_open(visit) if shutter_open_mjd_tai is None else shutter_open_mjd_tai
        closed = opened + config.exposure_time_s / SECONDS_PER_DAY
        ra, dec = self._pointing(visit)
        return {
            "instrument": config.instrument,
            "visit": self.visit_id(visit),
            "detector": detector,
            "band": config.band,
            "physical_filter": f"{config.instrument}_{config.band}",
            "shutter_open_mjd_tai": opened,
            "shutter_close_mjd_tai": closed,
            "exposure_time_s": config.exposure_time_s,
            "ra_deg": ra,
            "dec_deg": dec,
            "rotation_deg": config.rotation_deg,
            "calexp_uri": str(self.exposure_path(visit, detector).resolve()),
            "observation_reason": "simulated night",
            "target_name": f"seed {config.seed}",
            "n_detectors": config.n_detectors,
            "sent_at_mjd_tai": closed,
        }

    def restamp(self, visit: int, *, shutter_open_mjd_tai: float) -> list[dict[str, Any]]:
        """Let a visit that was rendered before be taken at another time: rewrite its headers, return its events."""
        close = shutter_open_mjd_tai + self.config.exposure_time_s / SECONDS_PER_DAY
        events = []
        for detector in range(self.config.n_detectors):
            with fits.open(self.exposure_path(visit, detector), mode="update") as hdus:
                hdus[0].header["MJD-BEG"] = shutter_open_mjd_tai
                hdus[0].header["MJD-END"] = close
            events.append(self.event(visit, detector, shutter_open_mjd_tai=shutter_open_mjd_tai))
        return events

    def tiles(self) -> Iterator[tuple[str, SkyWcs]]:
        """Yield name and WCS of each template tile: one tangent plane cut into overlapping squares."""
        config = self.config
        step = config.template_size - config.template_overlap
        half_field = self._field_width_arcsec() / 2 / config.template_scale_arcsec
        n = int(np.ceil((2 * half_field + config.template_overlap) / step))
        first = -0.5 * (n * step - config.template_overlap)
        corner_x, corner_y = self._field_corners_on_tile_plane()
        for row in range(n):
            for column in range(n):
                x, y = first + column * step, first + row * step
                if not _overlaps(x, y, config.template_size, corner_x, corner_y):
                    continue
                yield f"{config.band}_{row}_{column}", self._tile_plane().shifted(dx=-x, dy=-y)

    def render_tile(self, name: str, wcs: SkyWcs) -> Path:
        """Render and write one template tile."""
        config = self.config
        shape = (config.template_size, config.template_size)
        seeing = Seeing(
            fwhm=config.template_fwhm_arcsec / config.template_scale_arcsec, e1=0.01, e2=0.015, variation=0.03
        )
        ratio = (config.template_scale_arcsec / config.scale_arcsec) ** 2
        detector = replace(
            config.detector,
            depth=config.template_depth,
            sky_counts=config.detector.sky_counts * ratio,
            n_cosmic_rays=0,
            n_bad_columns=0,
        )
        info = ExposureInfo(instrument=config.instrument, band=config.band, target_name=f"tile {name}")
        rng = np.random.default_rng([config.seed, 3, *name.encode()])
        rendering = render_exposure(
            self.scene.template(), wcs=wcs, shape=shape, seeing=seeing, detector=detector, info=info, rng=rng
        )
        path = self.templates_directory / f"tile_{name}.fits"
        path.parent.mkdir(parents=True, exist_ok=True)
        save_exposure(rendering.exposure, path)
        return path

    def render_visit(self, visit: int, detector: int) -> tuple[Path, Table]:
        """Render and write one exposure; return its path and the truth of what changed in it."""
        config = self.config
        info = ExposureInfo(
            instrument=config.instrument,
            visit=self.visit_id(visit),
            detector=detector,
            band=config.band,
            physical_filter=f"{config.instrument}_{config.band}",
            shutter_open_mjd_tai=self._shutter_open(visit),
            shutter_close_mjd_tai=self._shutter_open(visit) + config.exposure_time_s / SECONDS_PER_DAY,
            exposure_time_s=config.exposure_time_s,
            rotation_deg=config.rotation_deg,
        )
        info.ra_deg, info.dec_deg = self._pointing(visit)
        seeing = Seeing(
            fwhm=float(self._fwhm[visit]),
            e1=float(self._ellipticity[visit, 0]),
            e2=float(self._ellipticity[visit, 1]),
        )
        rng = np.random.default_rng([config.seed, 4, visit, detector])
        rendering = render_exposure(
            self.scene.at(float(visit)),
            wcs=self._detector_wcs(visit, detector),
            shape=(config.size, config.size),
            seeing=seeing,
            detector=config.detector,
            info=info,
            rng=rng,
        )
        path = self.exposure_path(visit, detector)
        path.parent.mkdir(parents=True, exist_ok=True)
        save_exposure(rendering.exposure, path)
        return path, self._truth(visit, detector, rendering)

    def _truth(self, visit: int, detector: int, rendering: Rendering) -> Table:
        """List what differs from the templates on this exposure, with the S/N a perfect method would see."""
        exposure = rendering.exposure
        if exposure.wcs is None or exposure.psf is None:  # rendering always sets both
            raise RuntimeError("a rendered exposure has no WCS or PSF")
        now = self.scene.at(float(visit))
        x, y = exposure.wcs.sky_to_pixel(ra_deg=now.ra_deg, dec_deg=now.dec_deg)
        change = now.flux_njy - now.template_flux_njy
        ny, nx = exposure.shape
        inside = (x > -0.5) & (x < nx - 0.5) & (y > -0.5) & (y < ny - 0.5) & (change != 0)
        bad = plane_bits("SAT", "BAD", "CR", "NO_DATA")
        rows = []
        for i in np.flatnonzero(inside):
            column, row = round(x[i]), round(y[i])
            around = (slice(max(0, row - 1), row + 2), slice(max(0, column - 1), column + 2))
            # A template of depth d adds 1/d of the exposure's variance.
            variance = rendering.true_variance[row, column] * (1.0 + 1.0 / self.config.template_depth)
            noise_area = 1.0 / float((exposure.psf.compute_kernel_image(x=x[i], y=y[i]) ** 2).sum())
            sigma = float(np.sqrt(variance * noise_area)) * exposure.photo_calib.njy_per_count
            margin = min(x[i], y[i], nx - 1 - x[i], ny - 1 - y[i])
            rows.append(
                {
                    "visit": self.visit_id(visit),
                    "detector": detector,
                    "kind": str(now.kind[i]),
                    "number": int(now.number[i]),
                    "ra_deg": float(now.ra_deg[i]),
                    "dec_deg": float(now.dec_deg[i]),
                    "x": float(x[i]),
                    "y": float(y[i]),
                    "flux_njy": float(change[i]),
                    "snr": float(abs(change[i]) / sigma),
                    "is_measurable": bool(margin > _EDGE_PIXELS and not (exposure.mask[around] & bad).any()),
                }
            )
        return Table(rows=rows) if rows else Table()

    def _shutter_open(self, visit: int) -> float:
        return self.config.start_mjd_tai + visit * self.config.cadence_s / SECONDS_PER_DAY

    def _pointing(self, visit: int) -> tuple[float, float]:
        plane = SkyWcs.from_tangent(ra_deg=self.config.ra_deg, dec_deg=self.config.dec_deg, x=0, y=0, scale_arcsec=1.0)
        dx, dy = self._dither_arcsec[visit]
        ra, dec = plane.pixel_to_sky(x=dx, y=dy)
        return float(ra) % 360.0, float(dec)

    def _detector_wcs(self, visit: int, detector: int) -> SkyWcs:
        config = self.config
        ra, dec = self._pointing(visit)
        pitch = config.size + config.gap_pixels
        middle = (config.size - 1) / 2
        return SkyWcs.from_tangent(
            ra_deg=ra,
            dec_deg=dec,
            x=middle - (detector - (config.n_detectors - 1) / 2) * pitch,
            y=middle,
            scale_arcsec=config.scale_arcsec,
            rotation_deg=config.rotation_deg,
        )

    def _tile_plane(self) -> SkyWcs:
        config = self.config
        return SkyWcs.from_tangent(
            ra_deg=config.ra_deg,
            dec_deg=config.dec_deg,
            x=0.0,
            y=0.0,
            scale_arcsec=config.template_scale_arcsec,
            rotation_deg=config.template_rotation_deg,
        )

    def _field_width_arcsec(self) -> float:
        """Diameter of the circle that holds every detector of every dither."""
        config = self.config
        width = config.n_detectors * (config.size + config.gap_pixels)
        return float(np.hypot(width, config.size)) * config.scale_arcsec + 20.0

    def _field_corners_on_tile_plane(self) -> tuple[np.ndarray, np.ndarray]:
        """Points that cover the field densely, on the tiles' common plane."""
        config = self.config
        xs, ys = [], []
        grid = np.linspace(-60, config.size + 60, 12)
        gx, gy = np.meshgrid(grid, grid)
        for detector in range(config.n_detectors):
            ra, dec = self._detector_wcs(0, detector).pixel_to_sky(x=gx.ravel(), y=gy.ravel())
            x, y = self._tile_plane().sky_to_pixel(ra_deg=ra, dec_deg=dec)
            xs.append(x)
            ys.append(y)
        return np.concatenate(xs), np.concatenate(ys)


def make_night(
    directory: Path,
    config: NightConfig,
    *,
    processes: int = 2,
    progress: Callable[[int, int, str], None] | None = None,
    on_templates: Callable[[], None] | None = None,
) -> Night:
    """Render a whole night into `directory`.

    Writes ``visits/*.fits``, ``templates/*.fits``, ``truth.ecsv``, ``events.jsonl``, ``night.json``, and the profile
    of the camera as ``profile.toml``.

    Parameters
    ----------
    processes
        Worker processes; results do not depend on it.
    progress
        Called with (done, total, what) after each image.
    on_templates
        Called once, when all tiles are there and the exposures are still being rendered.
    """
    directory.mkdir(parents=True, exist_ok=True)
    native = (PROFILES_DIRECTORY / f"{NATIVE_PROFILE}.toml").read_text(encoding="utf-8")
    (directory / "profile.toml").write_text(f'{native}\n[ids]\npacker = "rubin"    # visits are YYYYMMDDnnnnn\n')
    night = Night(directory, config)
    tiles = list(night.tiles())
    exposures = [(visit, detector) for visit in range(config.n_visits) for detector in range(config.n_detectors)]
    total = len(tiles) + len(exposures)
    truth: dict[tuple[int, int], Table] = {}
    done, n_tiles_left = 0, len(tiles)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max_workers=processes, mp_context=context) as pool:
        jobs: dict[Any, tuple[int, int] | None] = {}
        for name, _ in tiles:
            jobs[pool.submit(_render_tile, directory, config, name)] = None
        for visit, detector in exposures:
            jobs[pool.submit(_render_visit, directory, config, visit, detector)] = (visit, detector)
        for job in as_completed(jobs):
            key, result = jobs[job], job.result()
            if key is not None:
                truth[key] = result
            done += 1
            n_tiles_left -= key is None
            if key is None and n_tiles_left == 0 and on_templates is not None:
                on_templates()
            if progress is not None:
                progress(done, total, "template tile" if key is None else "exposure")
    tables = [truth[key] for key in exposures if len(truth[key])]
    (vstack(tables) if tables else Table()).write(directory / "truth.ecsv", overwrite=True)
    events = "".join(json.dumps(night.event(*key)) + "\n" for key in exposures)
    (directory / "events.jsonl").write_text(events)
    (directory / "night.json").write_text(json.dumps(asdict(config), indent=2) + "\n")
    return night


def _render_tile(directory: Path, config: NightConfig, name: str) -> Path:
    night = Night(directory, config)
    # By its name: a WCS that travels between processes is written and read again, and not the same to the last bit.
    return night.render_tile(name, dict(night.tiles())[name])


def _render_visit(directory: Path, config: NightConfig, visit: int, detector: int) -> Table:
    return Night(directory, config).render_visit(visit, detector)[1]


def _overlaps(x: float, y: float, size: int, points_x: np.ndarray, points_y: np.ndarray) -> bool:
    return bool(((points_x > x) & (points_x < x + size) & (points_y > y) & (points_y < y + size)).any())
