"""Catalogs in table files that others read, and tables of others as catalogs."""

import numpy as np
import pytest
from astropy.table import Table

from alertprod.errors import CorruptImage
from alertprod.measurement.catalog import Catalog, Column
from alertprod.store.catalog_files import load_catalog, save_catalog

COLUMNS = (
    Column("id", "i8", "", "an id"),
    Column("cov", "f4", "deg**2", "a covariance"),
    Column("good", "?", "", "a flag"),
    Column("band", "O", "", "a band"),
)


@pytest.fixture
def catalog():
    catalog = Catalog(COLUMNS, 3)
    catalog["id"] = [1 << 60, 2, 3]
    catalog["cov"] = [0.1, np.nan, -3.0]
    catalog["good"] = [True, False, True]
    catalog["band"] = ["r", None, 'a, "b"']
    return catalog


def test_a_catalog_comes_back_as_it_went(catalog, tmp_path):
    save_catalog(catalog, tmp_path / "catalog.ecsv")
    save_catalog(catalog, tmp_path / "catalog.ecsv")  # again: it is replaced
    again = load_catalog(tmp_path / "catalog.ecsv")
    assert again.columns == COLUMNS
    for name in catalog:
        np.testing.assert_array_equal(again[name], catalog[name])
        assert again[name].dtype == catalog[name].dtype


def test_parquet_is_for_others(catalog, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet", reason="the extra `parquet` is not installed")
    save_catalog(catalog, tmp_path / "catalog.parquet")
    table = parquet.read_table(tmp_path / "catalog.parquet")
    assert table["id"].to_pylist() == catalog["id"].tolist()
    assert table["good"].to_pylist() == catalog["good"].tolist()


def test_others_read_names_units_and_meanings(catalog, tmp_path):
    save_catalog(catalog, tmp_path / "catalog.ecsv")
    table = Table.read(tmp_path / "catalog.ecsv")
    assert table.colnames == ["id", "cov", "good", "band"]
    assert str(table["cov"].unit) == "deg2"
    assert table["cov"].description == "a covariance"


def test_a_table_of_others_brings_its_own_columns(tmp_path):
    table = Table({"flux": np.array([1.5, 2.5], dtype="f4"), "name": ["a", "b"]}, units={"flux": "nJy"}, masked=True)
    table["flux"].mask = [False, True]
    table.write(tmp_path / "table.ecsv")
    catalog = load_catalog(tmp_path / "table.ecsv")
    assert catalog.columns == (Column("flux", "f4", "nJy", "flux"), Column("name", "O", "", "name"))
    np.testing.assert_array_equal(catalog["flux"], [1.5, np.nan])
    assert catalog["name"].tolist() == ["a", "b"]


def test_a_table_that_is_not_what_its_list_of_columns_says_is_named(catalog, tmp_path):
    save_catalog(catalog, tmp_path / "catalog.ecsv")
    text = (tmp_path / "catalog.ecsv").read_text().replace("id cov good band", "id cov good color")
    (tmp_path / "catalog.ecsv").write_text(text)
    with pytest.raises(CorruptImage, match=r"catalog\.ecsv"):
        load_catalog(tmp_path / "catalog.ecsv")
