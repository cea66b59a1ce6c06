import numpy as np
import pytest

from alertprod.tasks.control_sample import split_control_sample
from alertprod.tasks.sources import make_source_catalog


def make_stars(n=50, **columns):
    return make_source_catalog(x=np.arange(n, dtype=float), y=np.zeros(n), **columns)


def everyone(stars):
    return np.ones(stars.n_rows, dtype=bool)


def test_every_nth_is_kept_out_and_nothing_is_lost():
    stars = make_stars(52)
    sample = split_control_sample(stars, selected=everyone(stars), step_size=5)
    assert len(sample.control_rows) == 11  # the first, the sixth ... of 52
    assert sorted([*sample.kernel_rows, *sample.control_rows]) == list(range(52))
    np.testing.assert_array_equal(sample.control_sources["x"], sample.control_rows)
    np.testing.assert_array_equal(sample.kernel_sources["x"], sample.kernel_rows)


def test_a_seed_gives_one_sample_and_another_seed_another():
    stars = make_stars()
    rows = [
        split_control_sample(stars, selected=everyone(stars), seed=seed).control_rows.tolist() for seed in (10, 10, 11)
    ]
    assert rows[0] == rows[1]
    assert rows[0] != rows[2]


def test_the_sample_is_shuffled_and_not_every_nth_row():
    stars = make_stars()
    rows = split_control_sample(stars, selected=everyone(stars)).control_rows
    assert np.unique(np.diff(rows)).size > 1


def test_only_selected_rows_are_split():
    stars = make_stars()
    selected = stars["x"] < 20
    sample = split_control_sample(stars, selected=selected, step_size=4)
    assert len(sample.control_rows) == 5
    assert np.concatenate([sample.control_rows, sample.kernel_rows]).max() == 19


def test_extreme_colours_and_variables_join_and_leave_the_fit():
    color = np.full(50, 0.5)
    color[[1, 2]], color[3], color[4] = 2.0, -0.5, np.nan
    variable = np.zeros(50, dtype=bool)
    variable[[2, 7, 30]] = True
    stars = make_stars(g_minus_r=color, is_variable=variable)
    usable = everyone(stars)
    usable[[1, 30]] = False
    selected = (color == 0.5) & ~variable
    selected[7] = True
    sample = split_control_sample(stars, selected=selected, usable=usable, color_range=(0.0, 1.5), variables=True)
    assert {2, 3, 7} <= set(sample.control_rows)
    assert not {1, 4, 30} & {*sample.control_rows, *sample.kernel_rows}
    assert 7 not in sample.kernel_rows
    assert not set(sample.control_rows) & set(sample.kernel_rows)
    assert sample.n_dcr == 2
    assert sample.n_variable >= 1
    plain = split_control_sample(stars, selected=selected, usable=usable)
    assert set(plain.control_rows) <= set(np.flatnonzero(selected))


def test_nothing_selected_gives_two_empty_tables():
    stars = make_stars()
    sample = split_control_sample(stars, selected=~everyone(stars))
    assert sample.kernel_sources.n_rows == sample.control_sources.n_rows == 0


@pytest.mark.parametrize("step", [0, 1])
def test_a_step_that_leaves_no_star_is_refused(step):
    stars = make_stars()
    with pytest.raises(ValueError, match="2 or more"):
        split_control_sample(stars, selected=everyone(stars), step_size=step)
