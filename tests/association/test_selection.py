import numpy as np
import pytest

from alertprod.association.config import AssociationConfig
from alertprod.association.selection import select_reliable, select_sources
from alertprod.errors import ConfigError


def select(sources, **config):
    selection = select_sources(sources, pixel_scale_arcsec=0.2, config=AssociationConfig(**config))
    return selection.sources["dia_source_id"].tolist(), selection.dropped


# 10 degrees a day for 30 s are 12.5 arcsec, 62.5 pixels.
@pytest.mark.parametrize(
    ("columns", "reason"),
    [
        ({"centroid_flag": True}, "centroid_flag"),
        ({"pixel_flags_cr_center": True}, "pixel_flags_cr_center"),
        ({"pixel_flags_high_variance_center_all": True}, "pixel_flags_high_variance_center_all"),
        ({"sky_source": True}, "sky_source"),
        ({"science_flux": -121.0}, "negative_science_flux"),  # its error is 60
        ({"trail_length_arcsec": 12.6}, "long_trail"),
        ({"trail_flag_off_image": True}, "long_trail"),
        ({"trail_flag_suspect_long_trail": True, "trail_flag_edge": True}, "long_trail"),
        ({"trail_flag": True, "bbox_size": 63}, "long_trail"),
        ({"ra_deg": np.nan}, "no_position"),
    ],
)
def test_what_is_no_detection_is_left_out_and_counted(make_sources, columns, reason):
    sources = make_sources([0.0, 9.0], [0.0, 0.0])
    for name, value in columns.items():
        sources[name][1] = value
    assert select(sources) == ([1001], {reason: 1})


@pytest.mark.parametrize(
    "columns",
    [
        {"is_dipole": True},
        {"glint_trail": True},
        {"pixel_flags_saturated_center": True},
        {"science_flux": -119.0},
        {"science_flux": np.nan},
        {"science_flux_err": 0.0},
        {"trail_length_arcsec": 12.4},
        {"trail_flag": True, "bbox_size": 62},
        {"bbox_size": 500},
        {"trail_flag_suspect_long_trail": True},
        {"trail_flag_edge": True},
        {"exposure_time_s": np.nan, "trail_length_arcsec": 20.0},
    ],
)
def test_what_may_be_something_stays(make_sources, columns):
    assert select(make_sources([0.0], [0.0], **columns)) == ([1001], {})


def test_in_a_short_exposure_a_trail_must_be_longer_than_the_seeing(make_sources):
    # In 2 s 10 degrees a day are 0.83 arcsec; the PSF has a sigma of 0.4: two widths are 1.9, a footprint is 5.6.
    psf = {"ixx_psf": 0.16, "iyy_psf": 0.16, "exposure_time_s": 2.0}
    sources = make_sources([0.0, 9.0], [0.0, 0.0], trail_length_arcsec=[1.8, 2.0], **psf)
    assert select(sources) == ([1001], {"long_trail": 1})
    unfitted = make_sources([0.0, 9.0], [0.0, 0.0], trail_flag=True, bbox_size=[37, 38], **psf)
    assert select(unfitted) == ([1001], {"long_trail": 1})


def test_a_source_is_counted_under_its_first_reason_only(make_sources):
    sources = make_sources([0.0, 1.0], [0.0, 0.0], centroid_flag=[True, False], pixel_flags_cr_center=True)
    assert select(sources) == ([], {"centroid_flag": 1, "pixel_flags_cr_center": 1})


def test_exclusions_follow_the_configuration(make_sources):
    sources = make_sources([0.0, 1.0], [0.0, 0.0], centroid_flag=[True, False], is_dipole=[False, True])
    assert select(sources, excluded_flags=("is_dipole",)) == ([1001], {"is_dipole": 1})
    assert select(sources, excluded_flags=()) == ([1001, 1002], {})
    faint = make_sources([0.0], [0.0], science_flux=-121.0)
    assert select(faint, min_science_snr=-5.0) == ([1001], {})
    fast = make_sources([0.0], [0.0], trail_length_arcsec=20.0)
    assert select(fast, max_trail_rate_arcsec_per_s=1.0) == ([1001], {})


@pytest.mark.parametrize("setting", ["excluded_flags", "new_object_flags"])
@pytest.mark.parametrize("name", ["no_such_flag", "psf_flux", "visit"])
def test_a_flag_that_is_none_is_a_mistake_of_the_configuration(setting, name):
    with pytest.raises(ConfigError, match=f"{setting}: a DiaSource has no flag {name}"):
        AssociationConfig(**{setting: (name,)})


def test_sources_come_out_by_id_and_the_input_stays(make_sources):
    sources = make_sources([0.0, 1.0, 2.0], [0.0, 0.0, 0.0], ids=[3, 1, 2])
    assert select(sources) == ([1, 2, 3], {})
    assert sources["dia_source_id"].tolist() == [3, 1, 2]


def test_low_scores_are_left_out_where_there_is_a_limit(make_sources):
    sources = make_sources([0.0, 1.0, 2.0], [0.0, 0.0, 0.0], reliability=[0.2, 0.8, np.nan])
    assert select_reliable(sources, min_reliability=None).sources.n_rows == 3
    selection = select_reliable(sources, min_reliability=0.5)
    assert selection.sources["dia_source_id"].tolist() == [1002, 1003]
    assert selection.dropped == {"low_reliability": 1}
