import numpy as np
import pytest
from astropy import units
from astropy.table import MaskedColumn, Table

from alertprod.errors import ConfigError
from alertprod.geometry.sphere import separation_arcsec
from alertprod.store.reference_catalog import ReferenceCatalog

EPOCH = 57388.5


def make_table(**more):
    return Table(
        {
            "ra_deg": [359.9999, 0.0001, 10.0, np.nan],
            "dec_deg": [5.0, 5.0, 5.0, 5.0],
            "reference_id": [4, 5, 6, 7],
            "mag_g": [18.0, 19.0, 20.0, 21.0],
            "mag_r": [17.5, np.nan, 18.2, 21.0],
            "is_variable": [False, True, False, False],
            **more,
        }
    )


def circle(catalog, radius_arcsec=10.0, **more):
    return catalog.load_circle(ra_deg=0.0, dec_deg=5.0, radius_arcsec=radius_arcsec, **more)


@pytest.mark.parametrize("name", ["stars.ecsv", "stars.csv", "stars.fits", "stars.fits.gz", "stars.parquet"])
def test_a_table_of_any_kind_gives_the_objects_of_a_circle(tmp_path, name):
    make_table().write(tmp_path / name)
    catalog = ReferenceCatalog.load(str(tmp_path / name))
    assert catalog.n_objects == 3  # one has no position
    objects = circle(catalog)
    assert objects["reference_id"].tolist() == [4, 5]
    assert objects["mag_r"][0] == 17.5
    assert objects["g_minus_r"][0] == pytest.approx(0.5)
    assert np.isnan(objects["g_minus_r"][1])
    assert objects["is_variable"].tolist() == [False, True]
    assert circle(catalog, radius_arcsec=0.2).n_rows == 0


def test_columns_can_have_other_names_and_units(tmp_path):
    table = Table({"RA": np.radians([359.9999, 10.0]) * units.rad, "DE": [5.0, 5.0], "rmag": [17.0, 18.0]})
    table.write(tmp_path / "stars.ecsv")
    columns = {"ra_deg": "RA", "dec_deg": "DE", "mag_r": "rmag"}
    objects = circle(ReferenceCatalog.load(str(tmp_path / "stars.ecsv"), columns=columns))
    assert objects["ra_deg"] == pytest.approx(359.9999)
    assert objects["mag_r"].tolist() == [17.0]
    assert objects["reference_id"].tolist() == [1]
    assert np.isnan(objects["g_minus_r"]).all()


def test_masked_values_are_unknown(tmp_path):
    table = make_table(g_minus_r=MaskedColumn([0.3, 0.4, 0.5, 0.6], mask=[True, False, False, False]))
    table["is_variable"] = MaskedColumn([True] * 4, mask=[False, True, False, False])
    table.write(tmp_path / "stars.ecsv")
    objects = circle(ReferenceCatalog.load(str(tmp_path / "stars.ecsv")))
    assert np.isnan(objects["g_minus_r"][0])
    assert objects["g_minus_r"][1] == 0.4  # the column goes before the magnitudes' difference
    assert objects["is_variable"].tolist() == [True, False]


def test_objects_are_where_they_are_at_the_epoch_asked_for(tmp_path):
    table = make_table(pm_ra_mas_yr=[1000.0, np.nan, 0.0, 0.0], pm_dec_mas_yr=[-500.0, np.nan, 0.0, 0.0])
    table.write(tmp_path / "stars.fits")
    catalog = ReferenceCatalog.load(str(tmp_path / "stars.fits"), epoch_mjd_tai=EPOCH)
    still, moved = (circle(catalog, 15.0, epoch_mjd_tai=when) for when in (None, EPOCH + 10 * 365.25))
    assert still["ra_deg"][0] == 359.9999
    assert (moved["ra_deg"][0] - still["ra_deg"][0]) % 360.0 * 3600 * np.cos(np.radians(5)) == pytest.approx(
        10.0, rel=1e-5
    )
    assert (moved["dec_deg"][0] - still["dec_deg"][0]) * 3600 == pytest.approx(-5.0, rel=1e-3)
    assert moved["ra_deg"][1] == pytest.approx(still["ra_deg"][1], abs=1e-12)


def test_what_moves_into_the_circle_is_found_and_what_leaves_is_not(tmp_path):
    table = make_table(pm_ra_mas_yr=[0.0, 0.0, 0.0, 0.0], pm_dec_mas_yr=[0.0, 5000.0, 0.0, 0.0])
    table.write(tmp_path / "stars.fits")
    catalog = ReferenceCatalog.load(str(tmp_path / "stars.fits"), epoch_mjd_tai=EPOCH)
    later = EPOCH + 10 * 365.25  # 50 arcsec north
    assert circle(catalog, epoch_mjd_tai=later)["reference_id"].tolist() == [4]
    north = catalog.load_circle(ra_deg=0.0001, dec_deg=5.0 + 50 / 3600, radius_arcsec=2.0, epoch_mjd_tai=later)
    assert north["reference_id"].tolist() == [5]


def test_proper_motion_is_right_beside_the_pole():
    catalog_table = Table(
        {
            "ra_deg": [30.0],
            "dec_deg": [89.9999],
            "pm_ra_mas_yr": [0.0],
            "pm_dec_mas_yr": [1000.0],
            "epoch_mjd_tai": [EPOCH],
        }
    )
    catalog = ReferenceCatalog._from_table(catalog_table, "memory", {}, None)
    moved = catalog.load_circle(ra_deg=0.0, dec_deg=90.0, radius_arcsec=5.0, epoch_mjd_tai=EPOCH + 365.25)
    assert separation_arcsec(30.0, 89.9999, moved["ra_deg"], moved["dec_deg"])[0] == pytest.approx(1.0, rel=1e-6)
    # 0.36 arcsec from the pole, a step of 1 goes over it.
    assert moved["ra_deg"][0] == pytest.approx(210.0)


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("missing.ecsv", None, "no such file"),
        ("stars.txt", b"", r"ends with \.ecsv"),
        ("stars.fits", b"not a table", "cannot be read as fits"),
        ("stars.parquet", b"not a table", "cannot be read as parquet"),
        ("stars.csv", b"ra_deg,dec\n1,2\n", "dec_deg: there is no such column; there are ra_deg, dec"),
        (
            "motions.csv",
            b"ra_deg,dec_deg,pm_ra_mas_yr,pm_dec_mas_yr\n1,2,3,4\n",
            "epoch_mjd_tai: proper motions need the epoch",
        ),
    ],
)
def test_a_file_that_is_no_catalogue_is_named(tmp_path, name, content, problem):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=problem):
        ReferenceCatalog.load(str(tmp_path / name))


def test_a_column_that_is_not_there_is_named(tmp_path):
    make_table().write(tmp_path / "stars.csv")
    with pytest.raises(ConfigError, match="mag_i: there is no column 'imag'"):
        ReferenceCatalog.load(str(tmp_path / "stars.csv"), columns={"mag_i": "imag"})


def test_an_empty_table_has_nothing_anywhere(tmp_path):
    make_table()[:0].write(tmp_path / "stars.ecsv")
    assert circle(ReferenceCatalog.load(str(tmp_path / "stars.ecsv")), epoch_mjd_tai=EPOCH).n_rows == 0
