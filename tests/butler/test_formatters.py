"""Files of a datastore: what is put comes back, what was ingested is read as it is."""

import pytest

pytest.importorskip("lsst.daf.butler", reason="the extra lsst is not installed; `make butler` adds it")

from dataclasses import replace

import numpy as np
import yaml
from astropy.io import fits
from butler_repository import DETECTOR, INSTRUMENT, WCS
from lsst.daf.butler import Butler, DatasetRef, DatasetType, FileDataset

from alertprod.butler import CATALOG, EXPOSURE
from alertprod.butler.formatters import ExposureFormatter, RubinExposureFormatter
from alertprod.measurement.catalog import DIA_SOURCE_COLUMNS, Catalog

DATA_ID = {"instrument": INSTRUMENT, "visit": 1, "detector": DETECTOR}
DIMENSIONS = ("instrument", "visit", "detector")


def open_with(made, name, storage_class, run="files"):
    butler = Butler.from_config(made.root, writeable=True, run=run)
    kind = DatasetType(name, DIMENSIONS, storage_class, universe=butler.dimensions)
    butler.registry.registerDatasetType(kind)
    return butler, DatasetRef(kind, butler.registry.expandDataId(DATA_ID), run=run)


def test_an_exposure_comes_back_bit_for_bit(fresh):
    made = fresh()
    put = replace(made.pairs[1].science, wcs=WCS)
    butler, ref = open_with(made, "exposure", EXPOSURE)
    with butler:
        found = butler.get(butler.put(put, ref))
    for plane in ("image", "mask", "variance"):
        np.testing.assert_array_equal(getattr(found, plane), getattr(put, plane))
    assert found.psf.compute_fwhm() == put.psf.compute_fwhm()
    assert found.info.shutter_open_mjd_tai == put.info.shutter_open_mjd_tai


def test_a_catalog_comes_back_with_its_columns(fresh):
    catalog = Catalog(DIA_SOURCE_COLUMNS, 2)
    catalog["dia_source_id"] = [2**62, 1]
    catalog["band"] = ["r", None]
    butler, ref = open_with(fresh(), "table", CATALOG)
    with butler:
        found = butler.get(butler.put(catalog, ref))
    assert found.columns == catalog.columns
    assert found["dia_source_id"].tolist() == [2**62, 1]
    assert found["band"].tolist() == ["r", None]


def test_files_are_compressed_where_the_repository_says_so(fresh):
    made = fresh()
    path = made.root / "butler.yaml"
    settings = yaml.safe_load(path.read_text())
    settings["datastore"]["formatters"][EXPOSURE] = {
        "formatter": "alertprod.butler.formatters.ExposureFormatter",
        "parameters": {"compress": True},
    }
    path.write_text(yaml.safe_dump(settings))
    butler, ref = open_with(made, "exposure", EXPOSURE)
    with butler:
        stored = butler.put(made.pairs[1].science, ref)
        with fits.open(butler.getURI(stored).ospath) as hdus:
            assert isinstance(hdus["IMAGE"], fits.CompImageHDU)
        np.testing.assert_array_equal(butler.get(stored).image, made.pairs[1].science.image)


def test_a_calexp_of_rubins_is_ingested_as_it_is(fresh, tmp_path):
    pixels = np.full((32, 48), 7.0, np.float32)
    cards = fits.Header()
    for card, value in {"LSST BUTLER DATAID VISIT": 1, "LSST BUTLER DATAID DETECTOR": DETECTOR}.items():
        cards[f"HIERARCH {card}"] = value
    mask = fits.Header()
    mask["MP_BAD"], mask["MP_SAT"] = 0, 1
    planes = [
        fits.ImageHDU(pixels, name="IMAGE"),
        fits.ImageHDU(np.zeros(pixels.shape, np.int32), mask, name="MASK"),
        fits.ImageHDU(pixels, name="VARIANCE"),
    ]
    planes[0].header["FLUXMAG0"] = 10**12.56
    fits.HDUList([fits.PrimaryHDU(header=cards), *planes]).writeto(tmp_path / "calexp.fits")
    butler, ref = open_with(fresh(), "rubin_calexp", EXPOSURE)
    with butler:
        file = FileDataset(path=str(tmp_path / "calexp.fits"), refs=[ref], formatter=RubinExposureFormatter)
        butler.ingest(file, transfer="copy")
        found = butler.get(ref)
    np.testing.assert_array_equal(found.image, pixels)
    assert (found.info.visit, found.info.detector) == (1, DETECTOR)


def test_a_formatter_reads_with_its_profile():
    assert (ExposureFormatter.profile, RubinExposureFormatter.profile) == ("alertprod", "rubin")
