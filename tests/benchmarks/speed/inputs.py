"""What is measured: an exposure of a simulated field and the template tiles under it, on disk."""

import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

from astropy.io import fits

from alertprod.images.profile import load_profile
from alertprod.service.clock import mjd_tai_from_unix
from alertprod.sim.night import Night, NightConfig, make_night
from alertprod.sim.scene import SceneConfig
from alertprod.store.template_index import INDEX_NAME, index_templates
from alertprod.stream.messages import VisitReady

SCALE_ARCSEC = 0.2

REFERENCE_SIDE = 4096
"""Counts of stars and galaxies are those of an exposure of this side, and go with the area."""

N_STARS, N_GALAXIES = 4000, 2000

LEAST_STARS = 200
"""Small exposures have as many stars as this all the same: some must be fit for a kernel."""

STAR_FLUX_NJY = (2e3, 8.8e6)
"""Stars saturate from 7.8e6 nJy on: of 4000 between these limits, two do."""

TRANSIENT_FLUX_NJY = (4e3, 8e4)
"""At the peak; most are past it or before it."""

_SECONDS_PER_DAY = 86400.0


@dataclass(frozen=True, slots=True)
class Inputs:
    """A field on disk; its exposure goes by as many names as are asked for, each a visit."""

    night: Night

    @property
    def index_path(self) -> Path:
        """The index of the template tiles."""
        return self.night.templates_directory / INDEX_NAME

    @property
    def profile_path(self) -> Path:
        """The camera's profile."""
        return self.night.directory / "profile.toml"

    def provide(self, visit: int, *, now_unix_s: float) -> VisitReady:
        """Return the event of a visit whose shutter closed a second ago; its file is there when this returns."""
        night, path = self.night, self.night.exposure_path(visit, 0)
        if not path.exists():
            shutil.copyfile(night.exposure_path(0, 0), path)
            fits.setval(path, "VISIT", value=night.visit_id(visit))
        opened = mjd_tai_from_unix(now_unix_s) - (night.config.exposure_time_s + 1.0) / _SECONDS_PER_DAY
        changes = {"visit": night.visit_id(visit), "calexp_uri": str(path.resolve())}
        return VisitReady(**(night.event(0, 0, shutter_open_mjd_tai=opened) | changes))


def make_inputs(folder: Path, *, size: int, n_transients: int, seed: int) -> Inputs:
    """Render a field into a folder of its own below this one, or find it there.

    Parameters
    ----------
    size
        Side of the exposure, pixels.
    n_transients
        In the exposure, about: placed at random in a somewhat larger field, and some are too faint at the moment.
    """

    def per_arcmin2(n: float, side: int) -> float:
        return n / (side * SCALE_ARCSEC / 60.0) ** 2

    config = NightConfig(
        seed=seed,
        n_visits=1,
        n_detectors=1,
        scale_arcsec=SCALE_ARCSEC,
        size=size,
        template_size=size,
        scene=SceneConfig(
            stars_per_arcmin2=max(per_arcmin2(N_STARS, REFERENCE_SIDE), per_arcmin2(LEAST_STARS, size)),
            galaxies_per_arcmin2=per_arcmin2(N_GALAXIES, REFERENCE_SIDE),
            star_flux_njy=STAR_FLUX_NJY,
            transients_per_arcmin2=per_arcmin2(n_transients, size),
            transient_flux_njy=TRANSIENT_FLUX_NJY,
            variables_per_arcmin2=0.0,
            n_movers=0,
        ),
    )
    directory = folder / f"{size}-{n_transients}-{seed}"
    description = directory / "night.json"
    # Through JSON, where tuples are lists: what was drawn by another version of this file is drawn again.
    if not description.exists() or json.loads(description.read_text()) != json.loads(json.dumps(asdict(config))):
        shutil.rmtree(directory, ignore_errors=True)
        make_night(directory, config)
    inputs = Inputs(Night(directory, config))
    if not inputs.index_path.exists():
        index_templates(
            str(inputs.night.templates_directory.resolve()),
            load_profile(str(inputs.profile_path)),
            index_uri=str(inputs.index_path.resolve()),
        )
    return inputs
