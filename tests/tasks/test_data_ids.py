"""Data ids as words of a command line."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alertprod.tasks.data_ids import MAX_DATA_IDS, DataIdFilter, format_data_id, list_missing, read_data_ids

KEYS = {"visit": int, "detector": int, "band": str}


def test_values_are_joined_and_keys_combined():
    assert read_data_ids(["visit=1^4", "band=r^g"], KEYS) == [
        {"visit": 1, "band": "r"},
        {"visit": 1, "band": "g"},
        {"visit": 4, "band": "r"},
        {"visit": 4, "band": "g"},
    ]


def test_ranges_have_both_ends_and_a_step():
    assert [found["visit"] for found in read_data_ids(["visit=2..4^9..13:2"], KEYS)] == [2, 3, 4, 9, 11, 13]


def test_a_value_that_is_said_twice_counts_once():
    assert [found["visit"] for found in read_data_ids(["visit=3^1..4"], KEYS)] == [3, 1, 2, 4]


def test_no_words_agree_with_everything():
    assert read_data_ids([], KEYS) == [{}]
    assert DataIdFilter([{}]).matches({"visit": 1, "detector": 2})


def test_text_is_text_even_where_it_looks_like_a_range():
    assert read_data_ids(["band=1..3"], KEYS) == [{"band": "1..3"}]


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["visit"], "is not KEY=VALUE"),
        (["visit="], "is not KEY=VALUE"),
        (["ccd=1"], "'ccd' is not a key of the data; there are visit, detector, band"),
        (["visit=1", "visit=2"], "given twice"),
        (["visit=one"], "whole number"),
        (["visit=1^^2"], "whole number"),
        (["visit=1..3:0"], "whole number"),
        (["visit=5..3"], "range is empty"),
        ([f"visit=1..{MAX_DATA_IDS + 1}"], "at most"),
        (["visit=1..2000", "detector=1..2000"], "4000000 data ids"),
    ],
)
def test_what_is_no_data_id_is_named(words, problem):
    with pytest.raises(ValueError, match=problem):
        read_data_ids(words, KEYS)


def test_as_many_as_are_allowed_are_taken(monkeypatch):
    monkeypatch.setattr("alertprod.tasks.data_ids.MAX_DATA_IDS", 100)
    assert len(read_data_ids(["visit=1..50", "detector=1^2"], KEYS)) == 100
    with pytest.raises(ValueError, match="102 data ids; at most 100"):
        read_data_ids(["visit=1..51", "detector=1^2"], KEYS)


def test_a_filter_needs_every_value_of_one_of_its_ids():
    wanted = DataIdFilter([{"visit": 1, "band": "r"}, {"detector": 7}])
    assert wanted.matches({"visit": 1, "detector": 2, "band": "r"})
    assert wanted.matches({"visit": 9, "detector": 7, "band": "g"})
    assert not wanted.matches({"visit": 1, "detector": 2, "band": "g"})
    assert not wanted.matches({"visit": 1, "detector": 2})
    assert not DataIdFilter([]).matches({"visit": 1})


def test_missing_are_those_that_nothing_agrees_with():
    found = [{"visit": 1, "detector": 0}, {"visit": 2, "detector": 0}]
    assert list_missing([{"visit": 2}, {"visit": 3}, {"visit": 1, "detector": 5}], found) == [
        {"visit": 3},
        {"visit": 1, "detector": 5},
    ]


@given(st.lists(st.integers(0, 999), min_size=1, max_size=5, unique=True), st.sampled_from(["r", "g", "zed"]))
def test_what_is_read_is_what_was_said(visits, band):
    said = ["visit=" + "^".join(map(str, visits)), f"band={band}"]
    read = read_data_ids(said, KEYS)
    assert read == [{"visit": visit, "band": band} for visit in visits]
    assert [read_data_ids(format_data_id(one).split(), KEYS) for one in read] == [[one] for one in read]
