"""Which datasets a difference reads and writes, by configuration."""

import pytest

from alertprod.errors import ConfigError
from alertprod.tasks.connections import ImageDifferenceConnections, ImageDifferenceFromTemplateConnections
from alertprod.tasks.image_difference_config import ImageDifferenceConfig


def make(cls=ImageDifferenceConnections, templates=None, **fields):
    config = ImageDifferenceConfig()
    for name, value in fields.items():
        setattr(config, name, value)
    return cls(config=config, **(templates or {}))


def test_defaults():
    connections = make()
    assert connections.inputs == {"exposure", "skyMap", "coaddExposures"}
    assert connections.outputs == {"subtractedExposure", "diaSources"}
    assert connections.initOutputs == {"outputSchema"}
    assert {name: connection.name for name, connection in connections.allConnections.items()} == {
        "exposure": "calexp",
        "skyMap": "skyMap",
        "coaddExposures": "deepCoadd",
        "outputSchema": "deepDiff_diaSrc_schema",
        "subtractedExposure": "deepDiff_differenceExp",
        "diaSources": "deepDiff_diaSrc",
    }


@pytest.mark.parametrize(
    ("field", "name", "dataset"),
    [
        ("doWriteScoreExp", "scoreExposure", "deepDiff_scoreExp"),
        ("doWriteWarpedExp", "warpedExposure", "deepDiff_warpedExp"),
        ("doWriteMatchedExp", "matchedExposure", "deepDiff_matchedExp"),
        ("doApplyFinalizedPsf", "finalizedPsfApCorrCatalog", "finalVisitSummary"),
    ],
)
def test_what_is_switched_on_is_there(field, name, dataset):
    assert make(**{field: True}).allConnections[name].name == dataset
    with pytest.raises(AttributeError, match=f"no connection '{name}' with this configuration"):
        getattr(make(), name)


def test_what_is_switched_off_is_gone():
    connections = make(doWriteSubtractedExp=False, doWriteSources=False)
    assert connections.outputs == set()
    assert "outputSchema" in connections.initOutputs


def test_the_kind_of_coadd_decides_tiles_and_names():
    dcr = make(coaddName="dcr")
    assert dcr.inputs == {"exposure", "skyMap", "dcrCoadds"}
    assert dcr.dcrCoadds.name == "dcrCoadd"
    assert dcr.diaSources.name == "dcrDiff_diaSrc"
    assert "subfilter" in dcr.dcrCoadds.dimensions
    assert make(coaddName="goodSeeing").coaddExposures.name == "goodSeeingCoadd"


def test_names_are_filled_in():
    connections = make(templates={"fakesType": "fakes_", "warpTypeSuffix": "_psfMatched", "coaddName": "goodSeeing"})
    assert connections.exposure.name == "fakes_calexp"
    assert connections.coaddExposures.name == "fakes_goodSeeingCoadd_psfMatched"
    assert connections.subtractedExposure.name == "fakes_goodSeeingDiff_differenceExp"
    with pytest.raises(ConfigError, match="coadName"):
        make(templates={"coadName": "deep"})


def test_storage_and_dimensions():
    connections = make()
    assert connections.dimensions == {"instrument", "visit", "detector", "skymap"}
    assert connections.exposure.dimensions == {"instrument", "visit", "detector"}
    assert connections.coaddExposures.multiple
    assert connections.coaddExposures.deferLoad
    assert connections.diaSources.storageClass == "SourceCatalog"


def test_templates_made_before_take_the_place_of_tiles():
    for coadd in ("goodSeeing", "dcr"):
        connections = make(ImageDifferenceFromTemplateConnections, coaddName=coadd)
        assert connections.inputs == {"exposure", "skyMap", "inputTemplate"}
        assert connections.inputTemplate.name == f"{coadd}Diff_templateExp"
    assert "inputTemplate" not in ImageDifferenceConnections.declared
