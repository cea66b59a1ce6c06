import pytest

from alertprod.association.columns import BANDS, DIA_FORCED_SOURCE_COLUMNS, DIA_OBJECT_COLUMNS
from alertprod.association.history import History


@pytest.mark.parametrize("columns", [DIA_OBJECT_COLUMNS, DIA_FORCED_SOURCE_COLUMNS])
def test_names_are_unique(columns):
    assert len({column.name for column in columns}) == len(columns)


def test_every_band_has_the_same_columns():
    by_band = [
        [column.name.removeprefix(f"{band}_") for column in DIA_OBJECT_COLUMNS if column.name.startswith(f"{band}_")]
        for band in BANDS
    ]
    assert all(names == by_band[0] for names in by_band)
    assert len(by_band[0]) == 12


def test_empty_history_has_no_rows():
    history = History.empty()
    assert (history.objects.n_rows, history.sources.n_rows, history.forced.n_rows) == (0, 0, 0)
