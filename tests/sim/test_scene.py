"""The simulated sky: seeded, and what its configuration says."""

import itertools
from dataclasses import replace

import numpy as np
import pytest

from alertprod.geometry.sphere import separation_arcsec
from alertprod.sim.scene import KNOTS_PER_GALAXY, TEMPLATE_EPOCH, Scene, SceneConfig

CONFIG = SceneConfig(seed=4)


def make_scene(width_arcsec=360.0, **changes):
    return Scene(replace(CONFIG, **changes), ra_deg=0.001, dec_deg=-31.0, width_arcsec=width_arcsec)


def of_kind(sources, kind):
    return sources.kind == kind


def test_the_same_seed_gives_the_same_sky():
    first, second, other = make_scene(), make_scene(), make_scene(seed=5)
    for epoch in (0.0, 3.5, TEMPLATE_EPOCH):
        a, b = first.at(epoch), second.at(epoch)
        np.testing.assert_array_equal(a.ra_deg, b.ra_deg)
        np.testing.assert_array_equal(a.flux_njy, b.flux_njy)
    assert not np.isin(other.at(0.0).ra_deg, first.at(0.0).ra_deg).any()


def test_asking_changes_nothing():
    scene = make_scene()
    before = scene.at(2.0).flux_njy.copy()
    scene.at(5.0)
    scene.template()
    np.testing.assert_array_equal(scene.at(2.0).flux_njy, before)


def test_numbers_are_those_of_the_densities():
    now = make_scene().at(0.0)
    for kind, density in (
        ("star", CONFIG.stars_per_arcmin2),
        ("variable", CONFIG.variables_per_arcmin2),
        ("transient", CONFIG.transients_per_arcmin2),
    ):
        expected = density * 36.0
        assert of_kind(now, kind).sum() == pytest.approx(expected, abs=5 * np.sqrt(expected))
    galaxies = of_kind(now, "galaxy").sum() / KNOTS_PER_GALAXY
    assert galaxies == pytest.approx(
        36.0 * CONFIG.galaxies_per_arcmin2, abs=5 * np.sqrt(36.0 * CONFIG.galaxies_per_arcmin2)
    )
    assert of_kind(now, "mover").sum() == CONFIG.n_movers


def test_the_sky_fills_its_square():
    now = make_scene().at(0.0)
    stars = of_kind(now, "star")
    offset = ((now.ra_deg[stars] - 0.001 + 180.0) % 360.0 - 180.0) * np.cos(np.radians(-31.0)) * 3600.0
    assert np.abs(offset).max() < 181.0
    # The mean of n uniform offsets of half width 180 arcsec has the standard error 180 / sqrt(3 n).
    assert offset.mean() == pytest.approx(0.0, abs=5 * 180.0 / np.sqrt(3 * stars.sum()))
    assert np.abs(now.dec_deg[stars] + 31.0).max() * 3600.0 < 181.0


def test_star_fluxes_follow_their_power_law():
    scene = make_scene(width_arcsec=900.0)
    flux = scene.at(0.0).flux_njy[of_kind(scene.at(0.0), "star")]
    low, high = CONFIG.star_flux_njy
    assert flux.min() >= low
    assert flux.max() <= high
    # N(> F) of dN/dF ~ F^-1.6 between the limits.
    for cut in (1e4, 1e5, 1e6):
        share = (cut**-0.6 - high**-0.6) / (low**-0.6 - high**-0.6)
        assert (flux > cut).mean() == pytest.approx(share, abs=5 * np.sqrt(share * (1 - share) / flux.size))


def test_templates_have_no_transients_and_no_movers():
    template = make_scene().template()
    assert set(template.kind) == {"star", "galaxy", "variable"}
    np.testing.assert_array_equal(template.flux_njy, template.template_flux_njy)


def test_only_what_varies_differs_from_the_templates():
    now = make_scene().at(2.0)
    change = now.flux_njy - now.template_flux_njy
    steady = of_kind(now, "star") | of_kind(now, "galaxy")
    assert (change[steady] == 0).all()
    assert (change[of_kind(now, "variable")] != 0).all()
    assert (change[of_kind(now, "transient")] >= 0).all()
    np.testing.assert_array_equal(change[of_kind(now, "mover")], CONFIG.mover_flux_njy)


def test_variables_vary_about_their_template_flux_by_their_amplitude():
    scene = make_scene()
    moments = [scene.at(epoch) for epoch in np.linspace(0.0, 300.0, 601)]
    flux = np.array([now.flux_njy[of_kind(now, "variable")] for now in moments])
    ratio = flux / moments[0].template_flux_njy[of_kind(moments[0], "variable")]
    assert ratio.mean(axis=0) == pytest.approx(1.0, abs=0.03)
    assert ratio.max() <= 1.6
    assert ratio.min() >= 0.4
    assert (ratio.max(axis=0) >= 1.14).all()


def test_transients_rise_to_their_flux_and_fall():
    scene = make_scene()
    curves = np.array([now.flux_njy[of_kind(now, "transient")] for now in map(scene.at, np.arange(-10.0, 80.0, 0.2))])
    low, high = CONFIG.transient_flux_njy
    peak = curves.max(axis=0)
    assert (peak >= 0.94 * low).all()
    assert (peak <= high).all()
    assert (curves[0] < 0.05 * peak).all()
    assert (curves[-1] < 0.05 * peak).all()
    at_peak = curves.argmax(axis=0)
    for curve, k in zip(curves.T, at_peak, strict=True):
        assert (np.diff(curve[: k + 1]) >= 0).all()
        assert (np.diff(curve[k:]) <= 0).all()


def test_every_other_transient_has_a_host():
    now = make_scene().at(3.0)
    transients, galaxies = of_kind(now, "transient"), of_kind(now, "galaxy")
    nearest = [
        separation_arcsec(ra, dec, now.ra_deg[galaxies], now.dec_deg[galaxies]).min()
        for ra, dec in zip(now.ra_deg[transients], now.dec_deg[transients], strict=True)
    ]
    hosted = np.array(nearest)[: transients.sum() // 2]
    assert np.median(hosted) < 1.0


def test_movers_go_straight_on():
    scene = make_scene()
    places = [
        (now.ra_deg[now.kind == "mover"][0], now.dec_deg[now.kind == "mover"][0]) for now in map(scene.at, range(5))
    ]
    steps = [float(separation_arcsec(*a, *b)) for a, b in itertools.pairwise(places)]
    assert steps == pytest.approx([CONFIG.mover_arcsec_per_visit] * 4, abs=1e-3)
    whole = float(separation_arcsec(*places[0], *places[-1]))
    assert whole == pytest.approx(4 * CONFIG.mover_arcsec_per_visit, abs=1e-3)


def test_galaxies_knots_share_their_light_and_number():
    now = make_scene().at(0.0)
    knots = of_kind(now, "galaxy")
    numbers, counts = np.unique(now.number[knots], return_counts=True)
    assert (counts == KNOTS_PER_GALAXY).all()
    flux = np.array([now.flux_njy[knots][now.number[knots] == number].sum() for number in numbers])
    low, high = CONFIG.galaxy_flux_njy
    assert flux.min() >= low * (1 - 1e-9)
    assert flux.max() <= high * (1 + 1e-9)


def test_an_empty_sky_is_empty():
    nothing = make_scene(
        stars_per_arcmin2=0.0,
        galaxies_per_arcmin2=0.0,
        transients_per_arcmin2=0.0,
        variables_per_arcmin2=0.0,
        n_movers=0,
    )
    assert nothing.at(0.0).ra_deg.size == 0
    assert nothing.template().ra_deg.size == 0
