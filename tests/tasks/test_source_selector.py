import numpy as np
import pytest
from lsst.pex.config import FieldValidationError

from alertprod.measurement.catalog import Catalog
from alertprod.tasks.match_sources import SourceMatches
from alertprod.tasks.reference_loader import REFERENCE_COLUMNS
from alertprod.tasks.source_selector import ObjectSizeStarSelectorConfig, ObjectSizeStarSelectorTask, find_stellar_locus
from alertprod.tasks.sources import make_source_catalog

FWHM = 3.4


def make_field(*, n_stars=120, n_galaxies=200, n_hits=15, seed=1, intrinsic=0.01):
    """Stars on a locus, galaxies of all sizes above it, cosmic rays below; widths as noisy as their fluxes."""
    rng = np.random.default_rng(seed)
    n = n_stars + n_galaxies + n_hits
    snr = 10 ** rng.uniform(1.1, 2.8, n)
    width = np.concatenate(
        [
            FWHM * np.exp(rng.normal(0, intrinsic, n_stars)),
            FWHM * np.sqrt(1.0 + rng.uniform(0.6, 2.0, n_galaxies) ** 2),
            np.full(n_hits, 1.3),
        ]
    )
    width *= np.exp(rng.normal(0, 1.0, n) / snr)
    is_star = np.arange(n) < n_stars
    x, y = rng.uniform(0, 1000, (2, n))
    return make_source_catalog(x=x, y=y, flux=snr * 10, flux_err=np.full(n, 10.0), snr=snr, fwhm=width), is_star


def select(sources, matches=None, **fields):
    config = ObjectSizeStarSelectorConfig()
    for name, value in fields.items():
        setattr(config, name, value)
    return ObjectSizeStarSelectorTask(config).run(sources, matches)


def test_stars_are_told_from_galaxies_and_cosmic_rays():
    sources, is_star = make_field()
    result = select(sources)
    # Three sigma lose 0.3 % of the stars; galaxies at S/N 13 to 20 scatter into the locus.
    assert result.selected[is_star].mean() > 0.95
    bright = sources["snr"] > 40
    assert not result.selected[~is_star & bright].any()
    assert result.selected[~is_star].mean() < 0.15
    np.testing.assert_array_equal(result.sourceCat["source_id"], sources["source_id"][result.selected])


def test_the_locus_is_found_among_three_times_as_many_galaxies():
    sources, _ = make_field(n_galaxies=400, intrinsic=0.02)
    width, scatter = find_stellar_locus(fwhm=sources["fwhm"], snr=sources["snr"])
    assert width == pytest.approx(FWHM, rel=0.01)
    assert 0.01 <= scatter < 0.04


def test_sizes_in_other_units_select_the_same():
    sources, _ = make_field(intrinsic=0.02)
    wider = sources.select(np.arange(sources.n_rows))
    wider["fwhm"] *= 2.0
    np.testing.assert_array_equal(select(wider).selected, select(sources).selected)


def test_signal_to_noise_flags_and_neighbours_count():
    sources, _ = make_field(n_galaxies=0, n_hits=0)
    everything = select(sources).selected
    bright = select(sources, signalToNoiseMin=50.0, signalToNoiseMax=200.0).selected
    snr = sources["snr"]
    # Of the narrower range the locus is another by a percent or so: its edge moves.
    assert not bright[(snr < 50) | (snr > 200)].any()
    assert (bright | (snr < 50) | (snr > 200) | ~everything).mean() > 0.97
    sources["flag"][:10] = True
    sources["contamination"][10:20], sources["contamination"][20:30] = 0.5, 0.01
    selected = select(sources).selected
    assert not selected[:20].any()
    assert selected[20:30].sum() >= 8


def test_sources_of_unknown_width_or_significance():
    sources, _ = make_field()
    sources["fwhm"] = np.nan
    assert select(sources).selected.all()
    sources["snr"][:5] = np.nan
    np.testing.assert_array_equal(np.flatnonzero(~select(sources).selected), np.arange(5))


def test_too_few_sources_have_no_locus():
    sources, _ = make_field(n_stars=2, n_galaxies=2, n_hits=0)
    assert select(sources, signalToNoiseMin=0.0).selected.all()


def test_no_source_is_no_error():
    sources, _ = make_field(n_stars=0, n_galaxies=0, n_hits=0)
    assert select(sources).sourceCat.n_rows == 0


def test_extreme_colours_and_variables_are_left_to_the_control_sample():
    sources, _ = make_field(n_galaxies=0, n_hits=0)
    sources["g_minus_r"][:4] = [-0.4, 2.5, 0.7, np.nan]
    sources["is_variable"][4] = True
    sources["fwhm"][:5] = FWHM
    assert select(sources).selected[:5].tolist() == [False, False, True, True, False]
    assert select(sources, includeVariable=True, grMin=-1.0, grMax=3.0).selected[:5].all()


def match_rows(sources, rows, *, colors, variable):
    first = Catalog(REFERENCE_COLUMNS, len(rows))
    first["g_minus_r"], first["is_variable"] = colors, variable
    return SourceMatches(
        first=first,
        second=sources.select(rows),
        first_rows=np.arange(len(rows)),
        second_rows=rows,
        separation_arcsec=np.zeros(len(rows)),
    )


def test_matches_limit_the_choice_and_bring_colours():
    sources, _ = make_field(n_galaxies=0, n_hits=0)
    sources["fwhm"] = FWHM
    sources["g_minus_r"][8] = 0.3
    rows = np.array([2, 4, 6, 8])
    matches = match_rows(sources, rows, colors=[0.6, 2.0, 0.7, np.nan], variable=[False, False, True, False])
    result = select(sources, matches)
    assert np.flatnonzero(result.selected).tolist() == [2, 8]
    assert np.flatnonzero(result.matched).tolist() == [2, 4, 6, 8]
    assert result.candidates["g_minus_r"][[4, 8]].tolist() == [2.0, 0.3]
    assert result.candidates["is_variable"][6]
    assert np.isnan(sources["g_minus_r"][4])  # the given table is as it was


@pytest.mark.parametrize(
    ("field", "value"),
    [("signalToNoiseMax", 5.0), ("widthMax", 0.0), ("widthStdMin", 0.5), ("nSigmaClip", 0.0), ("grMax", -1.0)],
)
def test_settings_that_select_nothing_are_refused_by_name(field, value):
    config = ObjectSizeStarSelectorConfig()
    setattr(config, field, value)
    with pytest.raises(FieldValidationError, match=field):
        config.validate()
