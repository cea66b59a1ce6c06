"""The interface of `ImageDifferenceTask`, name by name as the reference task has it."""

import inspect
import logging

import numpy as np
import pytest
from lsst.pex.config import Config, ConfigurableField

from alertprod.errors import NoTemplateCoverage, NoWorkFound, TaskError
from alertprod.images.mask import plane_bits
from alertprod.measurement.catalog import DIA_SOURCE_COLUMNS, Catalog
from alertprod.store.repository import FolderRepository
from alertprod.tasks import ImageDifferenceTask
from alertprod.tasks.task import Struct

METHODS = {
    # name: (how it is bound, its parameters)
    "applyOverrides": ("class", ["config"]),
    "checkTemplateIsSufficient": ("instance", ["template"]),
    "emptyMetadata": ("instance", []),
    "fitAstrometry": ("instance", ["templateSources", "templateExposure", "selectSources"]),
    "getAllSchemaCatalogs": ("instance", []),
    "getFullMetadata": ("instance", []),
    "getFullName": ("instance", []),
    "getName": ("instance", []),
    "getResourceConfig": ("instance", []),
    "getSchemaCatalogs": ("instance", []),
    "getTaskDict": ("instance", []),
    "makeField": ("class", ["doc"]),
    "makeIdFactory": ("static", ["expId", "expBits"]),
    "makeSubtask": ("instance", ["name", "keyArgs"]),
    "parseAndRun": ("class", ["args", "config", "log", "doReturnResults"]),
    "prepareCalibratedExposure": ("instance", ["exposure", "finalizedPsfApCorrCatalog"]),
    "run": (
        "instance",
        [
            "exposure",
            "selectSources",
            "templateExposure",
            "templateSources",
            "idFactory",
            "calexpBackgroundExposure",
            "subtractedExposure",
        ],
    ),
    "runDataRef": ("instance", ["sensorRef", "templateIdList"]),
    "runDebug": ("instance", ["exposure", "subtractRes", "selectSources", "kernelSources", "diaSources"]),
    "runQuantum": ("instance", ["butlerQC", "inputRefs", "outputRefs"]),
    "timer": ("instance", ["name", "logLevel"]),
    "writeConfig": ("instance", ["butler", "clobber", "doBackup"]),
    "writeMetadata": ("instance", ["dataRef"]),
    "writePackageVersions": ("instance", ["butler", "clobber", "doBackup", "dataset"]),
    "writeSchemas": ("instance", ["butler", "clobber", "doBackup"]),
}

OWN_KEYWORDS = {"run": {"ownsInputs"}}
"""What is not in the reference: by keyword alone, so that no call of the reference's means something else."""


@pytest.fixture(scope="module")
def made() -> ImageDifferenceTask:
    return ImageDifferenceTask()


@pytest.fixture
def repository(tmp_path) -> FolderRepository:
    (tmp_path / "repository.json").write_text('{"exposures": []}')
    return FolderRepository(tmp_path)


@pytest.mark.parametrize(("name", "bound", "parameters"), [(name, *what) for name, what in METHODS.items()])
def test_method_is_there_with_its_parameters_and_words(name, bound, parameters):
    found = inspect.getattr_static(ImageDifferenceTask, name)
    kind = {classmethod: "class", staticmethod: "static"}.get(type(found), "instance")
    assert kind == bound
    found_parameters = inspect.signature(getattr(ImageDifferenceTask, name)).parameters.values()
    own = {parameter.name for parameter in found_parameters if parameter.kind is inspect.Parameter.KEYWORD_ONLY}
    assert own == OWN_KEYWORDS.get(name, set())
    names = [parameter.name for parameter in found_parameters if parameter.name not in own]
    assert [parameter for parameter in names if parameter != "self"] == parameters
    assert inspect.getdoc(getattr(ImageDifferenceTask, name))


def test_class_attributes():
    assert ImageDifferenceTask.canMultiprocess is True
    assert ImageDifferenceTask._DefaultName == "imageDifference"
    assert issubclass(ImageDifferenceTask.ConfigClass, Config)
    assert callable(ImageDifferenceTask.RunnerClass)


def test_apply_overrides_is_a_hook_that_does_nothing(made):
    config = ImageDifferenceTask.ConfigClass()
    before = config.toDict()
    assert ImageDifferenceTask.applyOverrides(config) is None
    assert config.toDict() == before


def test_too_little_template_is_no_work(made, pair):
    template = pair.template.copy()
    rows = round(0.91 * template.shape[0])
    template.mask[:rows] = plane_bits("NO_DATA")
    with pytest.raises(NoWorkFound, match=r"8\.9%.*10\.0%.*requiredTemplateFraction = 0") as caught:
        made.checkTemplateIsSufficient(template)
    assert isinstance(caught.value, NoTemplateCoverage)
    assert caught.value.fraction == pytest.approx(1 - rows / template.shape[0])


def test_metadata_of_every_task_and_forgetting_it(made):
    made.detection.metadata["sigma"] = 1.9
    assert made.getFullMetadata()["imageDifference:detection"]["sigma"] == 1.9
    made.measurement.emptyMetadata()
    assert not any(made.getFullMetadata().values())


def test_names(made):
    assert made.getName() == made.getFullName() == "imageDifference"
    assert made.detection.getName() == "detection"
    assert made.detection.getFullName() == "imageDifference.detection"
    names = set(made.getTaskDict())
    assert {"imageDifference", "imageDifference.subtract", "imageDifference.measurement"} <= names
    assert all(reference() is not None for reference in made.getTaskDict().values())


def test_schemas_from_any_level(made):
    schemas = made.getSchemaCatalogs()
    assert list(schemas) == ["deepDiff_diaSrc"]
    assert isinstance(schemas["deepDiff_diaSrc"], Catalog)
    assert schemas["deepDiff_diaSrc"].columns == DIA_SOURCE_COLUMNS
    assert schemas["deepDiff_diaSrc"].n_rows == 0
    for task in (made, made.detection):
        assert list(task.getAllSchemaCatalogs()) == ["deepDiff_diaSrc"]


def test_coadd_name_names_the_datasets():
    config = ImageDifferenceTask.ConfigClass()
    config.coaddName = "goodSeeing"
    assert list(ImageDifferenceTask(config).getSchemaCatalogs()) == ["goodSeeingDiff_diaSrc"]


def test_there_are_no_resources_to_ask_for(made):
    assert made.getResourceConfig() is None


def test_make_field_makes_a_field_of_this_task():
    field = ImageDifferenceTask.makeField("difference them")
    assert isinstance(field, ConfigurableField)
    assert field.target is ImageDifferenceTask
    assert field.doc == "difference them"


def test_make_subtask_needs_a_field_of_that_name(made):
    with pytest.raises(KeyError, match="does not have field 'photometry'"):
        made.makeSubtask("photometry")


def test_ids_have_the_exposure_above_the_counter():
    ids = ImageDifferenceTask.makeIdFactory(expId=5, expBits=60)
    assert [ids() for _ in range(7)] == [(5 << 3) + count for count in range(1, 8)]
    with pytest.raises(OverflowError, match="8"):
        ids()
    with pytest.raises(ValueError, match="exposure id is 8"):
        ImageDifferenceTask.makeIdFactory(expId=8, expBits=3)


def test_timer_leaves_start_and_end(made, caplog):
    made.emptyMetadata()
    with caplog.at_level(logging.DEBUG, "alertprod"), made.timer("nothing", logging.DEBUG):
        pass
    assert {"nothingStartWallTime", "nothingEndWallTime", "nothingStartCpuTime", "nothingEndCpuTime"} <= set(
        made.metadata
    )
    assert "nothing took" in caplog.text


def test_configuration_schemas_versions_and_metadata_are_written(made, repository):
    made.writeConfig(repository)
    made.writeSchemas(repository)
    made.writePackageVersions(repository)
    assert made.config.compare(repository.get("deepDiff_config"))
    assert repository.get("deepDiff_diaSrc_schema").columns == DIA_SOURCE_COLUMNS
    assert "numpy" in repository.get("packages")
    other = ImageDifferenceTask.ConfigClass()
    other.growFootprint = 3
    with pytest.raises(TaskError, match="growFootprint"):
        ImageDifferenceTask(other).writeConfig(repository)
    ImageDifferenceTask(other).writeConfig(repository, clobber=True)
    assert repository.get("deepDiff_config").growFootprint == 3


def test_run_debug_without_a_display_draws_nothing(made, result):
    assert made.display is None
    assert made.runDebug(result.scienceExposure, result.subtractRes, None, None, result.diaSources) is None


def test_fit_astrometry_is_the_register_tasks(pair, stars):
    config = ImageDifferenceTask.ConfigClass()
    config.doUseRegister = config.doSelectSources = True
    registering = ImageDifferenceTask(config)
    on_template = registering.characterize.selectKernelSources(pair.template)
    on_science = registering.characterize.selectKernelSources(pair.science)
    fitted = registering.fitAstrometry(on_template, pair.template, on_science)
    assert isinstance(fitted, Struct)
    assert len(fitted.matches) > 10
    x, y = np.array([30.0, 110.0, 190.0]), np.array([40.0, 110.0, 180.0])
    ra, dec = fitted.wcs.pixel_to_sky(x=x, y=y)
    back_x, back_y = pair.science.wcs.sky_to_pixel(ra_deg=ra, dec_deg=dec)
    np.testing.assert_allclose([back_x, back_y], [x, y], atol=0.03)
