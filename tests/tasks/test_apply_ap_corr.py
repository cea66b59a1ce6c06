import logging

import numpy as np
import pytest

from alertprod.geometry.box import Box
from alertprod.images.ap_corr import ApertureCorrection, ChebyshevField
from alertprod.measurement.catalog import DIA_SOURCE_COLUMNS, Catalog
from alertprod.tasks.apply_ap_corr import ApplyApCorrConfig, ApplyApCorrTask

MAP = {"psf_flux": ApertureCorrection(ChebyshevField(Box.from_shape((50, 50)), np.array([[2.0]])))}


def make_catalog(x):
    catalog = Catalog(DIA_SOURCE_COLUMNS, len(x))
    catalog["x"], catalog["y"], catalog["psf_flux"], catalog["psf_flux_err"] = x, 10.0, 3.0, 1.0
    return catalog


def test_fluxes_are_corrected_in_place_and_failures_counted(caplog):
    catalog = make_catalog([10.0, 60.0])
    task = ApplyApCorrTask()
    with caplog.at_level(logging.WARNING):
        task.run(catalog, MAP)
    assert catalog["psf_flux"].tolist() == [6.0, 3.0]
    assert catalog["psf_flux_flag"].tolist() == [False, True]
    assert task.metadata["nApCorrFailures"] == 1
    assert "psf_flux failed for 1 of 2" in caplog.text


@pytest.mark.parametrize(("field", "value"), [("ignoreList", ["psf_flux"]), ("doFlagApCorrFailures", False)])
def test_configuration_reaches_the_fluxes(field, value):
    config = ApplyApCorrConfig()
    setattr(config, field, value)
    catalog = make_catalog([60.0, 10.0])
    ApplyApCorrTask(config).run(catalog, MAP)
    assert not catalog["psf_flux_flag"].any()
    assert catalog["psf_flux"][1] == (3.0 if field == "ignoreList" else 6.0)


def test_empty_catalogue_is_no_failure():
    task = ApplyApCorrTask()
    task.run(make_catalog([]), MAP)
    assert task.metadata["nApCorrFailures"] == 0
