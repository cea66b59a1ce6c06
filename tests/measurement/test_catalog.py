import numpy as np
import pytest

from alertprod.measurement.catalog import DIA_SOURCE_COLUMNS, STORED_DIA_SOURCE_COLUMNS, Catalog, Column

COLUMNS = (Column("n", "i8", "", ""), Column("flux", "f4", "nJy", ""), Column("band", "O", "", ""))


def test_names_are_unique_and_stored_columns_come_first():
    names = [column.name for column in DIA_SOURCE_COLUMNS]
    assert len(set(names)) == len(names)
    assert DIA_SOURCE_COLUMNS[: len(STORED_DIA_SOURCE_COLUMNS)] == STORED_DIA_SOURCE_COLUMNS
    assert "sky_source" not in {column.name for column in STORED_DIA_SOURCE_COLUMNS}


def test_blank_rows_are_nan_zero_false_and_none():
    catalog = Catalog((*COLUMNS, Column("flag", "?", "", "")), 2)
    assert np.isnan(catalog["flux"]).all()
    assert catalog["n"].tolist() == [0, 0]
    assert catalog["flag"].tolist() == [False, False]
    assert catalog["band"].tolist() == [None, None]


def test_concatenate_keeps_the_columns_of_the_first():
    few, many = Catalog(COLUMNS[:2], 1), Catalog(COLUMNS, 2)
    few["n"], many["n"], many["band"] = 1, [2, 3], "r"
    joined = Catalog.concatenate([few, many])
    assert joined.columns == COLUMNS[:2]
    assert joined["n"].tolist() == [1, 2, 3]
    assert joined.n_rows == 3
    with pytest.raises(KeyError):
        Catalog.concatenate([many, few])
