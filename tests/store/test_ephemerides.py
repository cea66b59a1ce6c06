import gzip
import os
from pathlib import Path

import numpy as np
import pytest
from astropy import units as u
from astropy.table import MaskedColumn, QTable, Table

from alertprod.errors import CorruptImage, ImageNotYetAvailable
from alertprod.store.ephemerides import EphemeridesStore, EphemeridesUnavailable, load_ephemerides

NEEDED = {
    "designation": ["2020 AA", "2020 AB"],
    "mjd_tai": [61000.0, 61000.1],
    "ra_deg": [10.0, 20.0],
    "dec_deg": [-5.0, 5.0],
    "ra_rate_deg_d": [0.1, 0.2],
    "dec_rate_deg_d": [0.3, 0.4],
}


def write(folder, columns, name="bodies.ecsv"):
    path = folder / name
    table = columns if isinstance(columns, Table) else Table(columns)
    if name.endswith(".parquet"):
        from pyarrow import parquet, table as arrow_table  # noqa: I001

        parquet.write_table(arrow_table({key: list(table[key]) for key in table.colnames}), path)
    else:
        table.write(path, overwrite=True)
    return str(path)


@pytest.mark.parametrize("name", ["bodies.ecsv", "bodies.fits", "bodies.parquet", "bodies.csv"])
def test_predictions_are_read_from_tables_of_any_kind(tmp_path, name):
    ephemerides = load_ephemerides(write(tmp_path, {**NEEDED, "v_mag": [20.5, 21.5], "extra": [1, 2]}, name))
    predictions = ephemerides.predictions
    for column, values in {**NEEDED, "v_mag": [20.5, 21.5]}.items():
        assert predictions[column].tolist() == values
    assert np.isnan(predictions["topo_range_au"]).all()
    assert len(ephemerides.orbits) == 0


def test_columns_with_a_unit_are_converted(tmp_path):
    table = QTable(NEEDED)
    table["ra_rate_deg_d"] = [36.0, 72.0] * u.arcsec / u.hour
    table["topo_range_au"] = [149597870.7, 299195741.4] * u.km
    table["i"] = [np.pi, np.pi / 2] * u.rad
    ephemerides = load_ephemerides(write(tmp_path, table))
    assert ephemerides.predictions["ra_rate_deg_d"].tolist() == pytest.approx([0.24, 0.48])
    assert ephemerides.predictions["topo_range_au"].tolist() == pytest.approx([1.0, 2.0])
    assert ephemerides.orbits["i"].tolist() == pytest.approx([180.0, 90.0])


def test_orbits_keep_whole_numbers_text_and_times_or_none(tmp_path):
    table = Table(
        {
            **NEEDED,
            "a": MaskedColumn([2.5, 0.0], mask=[False, True]),
            "u_param": MaskedColumn([0, 7], mask=[False, True]),
            "nobs_total": [np.nan, 12.0],
            "mpc_orb_jsonb": ["", '{"a": 1}'],
            "created_at": ["2026-01-01T00:00:00", ""],
            "updated_at": [1_700_000_000_000_000, 5],
        }
    )
    orbits = load_ephemerides(write(tmp_path, table)).orbits
    assert orbits["a"][0] == 2.5
    assert np.isnan(orbits["a"][1])
    assert orbits["u_param"].tolist() == [0, None]
    assert orbits["nobs_total"].tolist() == [None, 12]
    assert orbits["mpc_orb_jsonb"].tolist() == [None, '{"a": 1}']
    assert orbits["created_at"].tolist() == [1_767_225_600_000_000, None]
    assert orbits["updated_at"].tolist() == [1_700_000_000_000_000, 5]


def test_times_of_parquet_are_times(tmp_path):
    import datetime

    from pyarrow import parquet
    from pyarrow import table as arrow_table

    path = str(tmp_path / "bodies.parquet")
    fitted = [datetime.datetime(2026, 1, 1, 0, 0, 1), None]  # noqa: DTZ001 - as the file has it
    parquet.write_table(arrow_table({**NEEDED, "fitting_datetime": fitted}), path)
    assert load_ephemerides(path).orbits["fitting_datetime"].tolist() == [1_767_225_601_000_000, None]


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("designation", ""),
        ("mjd_tai", np.nan),
        ("ra_deg", np.inf),
        ("dec_deg", 90.5),
        ("ra_rate_deg_d", np.nan),
        ("dec_rate_deg_d", np.nan),
    ],
)
def test_rows_that_lack_what_is_needed_are_left_out(tmp_path, column, value):
    columns = {**NEEDED, column: [value, NEEDED[column][1]], "a": [1.0, 2.0]}
    ephemerides = load_ephemerides(write(tmp_path, columns))
    assert ephemerides.predictions["designation"].tolist() == ["2020 AB"]
    assert ephemerides.orbits["a"].tolist() == [2.0]


def test_a_table_without_rows_is_a_table(tmp_path):
    empty = {name: np.array([], dtype="U8" if name == "designation" else "f8") for name in NEEDED}
    assert load_ephemerides(write(tmp_path, empty)).predictions.n_rows == 0


@pytest.mark.parametrize("missing", list(NEEDED))
def test_a_missing_column_is_named(tmp_path, missing):
    columns = {name: values for name, values in NEEDED.items() if name != missing}
    with pytest.raises(EphemeridesUnavailable, match=f"there is no column {missing}"):
        load_ephemerides(write(tmp_path, columns))


def test_a_table_that_is_huge_when_it_is_decompressed_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("alertprod.store.ephemerides._MAX_BYTES", 1 << 20)
    path = tmp_path / "bodies.fits.gz"
    path.write_bytes(gzip.compress(bytes(1 << 24)))
    with pytest.raises(EphemeridesUnavailable, match="more than 1048576 bytes, decompressed"):
        load_ephemerides(str(path))
    columns = {name: values * 500 for name, values in NEEDED.items()}
    monkeypatch.setattr("alertprod.store.table_files._MAX_PARQUET_VALUES", 5999)
    with pytest.raises(EphemeridesUnavailable, match="6000 values; 5999 are accepted"):
        load_ephemerides(write(tmp_path, columns, "bodies.parquet"))


def test_a_compressed_table_is_read(tmp_path):
    path = tmp_path / "bodies.fits.gz"
    path.write_bytes(gzip.compress(Path(write(tmp_path, NEEDED, "bodies.fits")).read_bytes()))
    assert load_ephemerides(str(path)).predictions["designation"].tolist() == NEEDED["designation"]


def test_what_is_no_table_is_said(tmp_path):
    path = tmp_path / "bodies.ecsv"
    path.write_bytes(b"\x00\x01 not a table")
    with pytest.raises(EphemeridesUnavailable, match=r"bodies\.ecsv: cannot be read"):
        load_ephemerides(str(path))
    with pytest.raises(EphemeridesUnavailable, match=r"a file that ends with \.ecsv"):
        load_ephemerides(str(tmp_path / "bodies.txt"))
    with pytest.raises(EphemeridesUnavailable, match=r"bodies\.ecsv"):
        load_ephemerides(write(tmp_path, {**NEEDED, "ra_deg": ["ten", "twenty"]}))
    wrong_unit = QTable(NEEDED)
    wrong_unit["ra_deg"] = [1.0, 2.0] * u.km
    with pytest.raises(EphemeridesUnavailable, match=r"bodies\.ecsv"):
        load_ephemerides(write(tmp_path, wrong_unit))


def test_a_store_turns_every_trouble_into_one(tmp_path):
    store = EphemeridesStore()
    for uri, cause in (
        (str(tmp_path / "nowhere.ecsv"), ImageNotYetAvailable),
        ("no-such-protocol://x/y.ecsv", CorruptImage),
        (write(tmp_path, {"designation": ["a"]}), None),
    ):
        with pytest.raises(EphemeridesUnavailable) as caught:
            store.load(uri)
        assert cause is None or isinstance(caught.value.__cause__, cause)


def test_a_table_is_read_once_and_again_when_it_changes(tmp_path):
    store, path = EphemeridesStore(), write(tmp_path, NEEDED)
    first = store.load(path)
    assert store.load(path) is first
    write(tmp_path, {**NEEDED, "ra_deg": [11.0, 21.0]})
    os.utime(path, (1, 1))
    assert store.load(path).predictions["ra_deg"].tolist() == [11.0, 21.0]


def test_after_a_failure_the_last_table_is_not_taken_for_another(tmp_path):
    store, path = EphemeridesStore(), write(tmp_path, NEEDED)
    store.load(path)
    (tmp_path / "bodies.ecsv").unlink()
    with pytest.raises(EphemeridesUnavailable):
        store.load(path)
