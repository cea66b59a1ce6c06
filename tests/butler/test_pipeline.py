"""The task as a PipelineTask: real quanta of a real Butler, in this process and through ``pipetask``."""

import pytest

pytest.importorskip("lsst.daf.butler", reason="the extra lsst is not installed; `make butler` adds it")

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
from butler_repository import DETECTOR, INPUTS, INSTRUMENT, SKYMAP, WCS, put_tiles
from lsst.daf.butler import Butler, CollectionType
from lsst.pipe.base import NoWorkFound as RubinNoWorkFound
from lsst.pipe.base import Pipeline, RepeatableQuantumError
from lsst.pipe.base.quantum_graph_builder import OutputExistsError
from lsst.pipe.base.separable_pipeline_executor import SeparablePipelineExecutor
from lsst.pipe.base.simple_pipeline_executor import SimplePipelineExecutor
from made_skies import TRANSIENTS

from alertprod.butler.errors import quantum_errors, translated_errors
from alertprod.butler.pipeline import ImageDifferenceFromTemplateTask, ImageDifferenceTask
from alertprod.butler.repository import ButlerRepository
from alertprod.errors import (
    DatasetMismatch,
    InsufficientKernelSources,
    NoTemplateCoverage,
    NoWorkFound,
    StoreUnavailable,
)
from alertprod.images.mask import plane_bits
from alertprod.tasks import image_difference

DATA_ID = {"instrument": INSTRUMENT, "visit": 1, "detector": DETECTOR}
OF_VISIT_1 = f"instrument = '{INSTRUMENT}' AND visit = 1 AND skymap = '{SKYMAP}'"


def run(made, task_class=ImageDifferenceTask, *, where=OF_VISIT_1, output="u/test/diff", config=None):
    """Run the quanta of a task in this process; return the output collection's butler, and the quanta."""
    butler = SimplePipelineExecutor.prep_butler(str(made.root), list(INPUTS), output)
    executor = SimplePipelineExecutor.from_task_class(task_class, config=config, where=where, butler=butler)
    quanta = executor.run(register_dataset_types=True, save_versions=False)
    return butler, quanta


@pytest.fixture(scope="module")
def ran(fresh):
    """A repository in which visit 1 has been run."""
    made = fresh()
    butler, quanta = run(made)
    assert len(quanta) == 1
    return made, butler


def test_a_quantum_leaves_its_products(ran):
    _, butler = ran
    sources = butler.get("deepDiff_diaSrc", DATA_ID)
    assert sources.n_rows == len(TRANSIENTS)
    for x, y, _ in TRANSIENTS:
        assert np.hypot(sources["x"] - x, sources["y"] - y).min() < 0.5
    assert set((sources["dia_source_id"] >> 19).tolist()) == {1 * 256 + DETECTOR}
    assert butler.get("deepDiff_diaSrc_schema").columns == sources.columns
    difference = butler.get("deepDiff_differenceExp", DATA_ID)
    assert (difference.info.visit, difference.info.detector, difference.info.band) == (1, DETECTOR, "r")
    assert not butler.registry.queryDatasetTypes("deepDiff_warpedExp"), "nobody asked for it"


def test_metadata_of_all_subtasks_are_stored(ran):
    _, butler = ran
    metadata = butler.get("imageDifference_metadata", DATA_ID)
    assert metadata["imageDifference"]["templateCoverage"] == 1.0
    assert metadata["imageDifference:getTemplate"]["nTiles"] == 2
    assert "imageDifference:detection" in metadata
    assert metadata["quantum"]["caveats"] == 0


def test_a_quantum_gives_what_the_command_line_gives(ran):
    made, butler = ran
    repository = ButlerRepository.open(f"{made.root}?collections={','.join(INPUTS)}", output="u/test/by-data-ref")
    (ref,) = repository.subset("calexp", [{"visit": 1}])
    result = image_difference.ImageDifferenceTask().runDataRef(ref)
    stored = butler.get("deepDiff_differenceExp", DATA_ID)
    np.testing.assert_array_equal(stored.image, result.subtractedExposure.image)
    np.testing.assert_array_equal(butler.get("deepDiff_diaSrc", DATA_ID)["psf_flux"], result.diaSources["psf_flux"])


def test_only_the_patches_under_the_exposure_are_in_its_quantum(made):
    butler = SimplePipelineExecutor.prep_butler(str(made.root), list(INPUTS), "u/test/graph")
    executor = SimplePipelineExecutor.from_task_class(ImageDifferenceTask, where=OF_VISIT_1, butler=butler)
    (quantum,) = list(executor.quantum_graph.get_task_quanta("imageDifference").values())
    assert {ref.dataId["patch"] for ref in quantum.inputs["deepCoadd"]} == {0, 1}


def test_a_template_without_data_is_no_work_and_no_failure(fresh):
    made = fresh()
    blank = []
    for tile in made.tiles:
        empty = tile.copy()
        empty.mask[...] |= plane_bits("NO_DATA")
        empty.mask[:2, :2] = 0
        blank.append(empty)
    put_tiles(made.root, blank, run="blank")
    butler = SimplePipelineExecutor.prep_butler(str(made.root), [INPUTS[0], "blank"], "u/test/blank")
    executor = SimplePipelineExecutor.from_task_class(ImageDifferenceTask, where=OF_VISIT_1, butler=butler)
    executor.run(register_dataset_types=True, save_versions=False)
    assert butler.find_dataset("deepDiff_diaSrc", DATA_ID) is None
    metadata = butler.get("imageDifference_metadata", DATA_ID)
    assert metadata["quantum"]["caveats"] != 0
    assert butler.find_dataset("imageDifference_log", DATA_ID) is not None


def test_a_template_that_was_built_before_is_taken(fresh):
    made = fresh()
    with Butler.from_config(made.root, writeable=True, run="built") as butler:
        kind = butler.get_dataset_type("calexp")
        butler.registry.registerDatasetType(
            type(kind)("goodSeeingDiff_templateExp", kind.dimensions, kind.storageClass)
        )
        template = replace(made.pairs[1].template, wcs=WCS)
        butler.put(template, "goodSeeingDiff_templateExp", DATA_ID)
    butler = SimplePipelineExecutor.prep_butler(str(made.root), [INPUTS[0], "built"], "u/test/built-before")
    executor = SimplePipelineExecutor.from_task_class(ImageDifferenceFromTemplateTask, where="visit = 1", butler=butler)
    executor.run(register_dataset_types=True, save_versions=False)
    assert butler.get("goodSeeingDiff_diaSrc", DATA_ID).n_rows == len(TRANSIENTS)


def test_a_failure_is_the_quantums_and_keeps_its_name(fresh):
    config = ImageDifferenceTask.ConfigClass()
    config.ids.profile = "rubin"  # visit 1 does not have 13 digits
    with pytest.raises(DatasetMismatch, match=r"13 digits.*ids\.profile"):
        run(fresh(), config=config)


def test_a_file_of_another_visit_is_refused(fresh):
    made = fresh()
    with Butler.from_config(made.root, writeable=True, run="mixed-up") as butler:
        butler.put(replace(made.pairs[2].science, wcs=WCS), "calexp", DATA_ID)
    butler = SimplePipelineExecutor.prep_butler(str(made.root), ["mixed-up", INPUTS[1]], "u/test/mixed-up")
    executor = SimplePipelineExecutor.from_task_class(ImageDifferenceTask, where=OF_VISIT_1, butler=butler)
    with pytest.raises(DatasetMismatch, match="its file says visit 2, the data id 1"):
        executor.run(register_dataset_types=True, save_versions=False)


def test_connections_follow_the_configuration():
    config = ImageDifferenceTask.ConfigClass()
    config.coaddName = config.connections.coaddName = "dcr"
    config.doWriteWarpedExp = True
    config.doMeasurement = config.doWriteSources = False
    connections = ImageDifferenceTask.ConfigClass.ConnectionsClass(config=config)
    assert connections.inputs == {"exposure", "dcrCoadds"}
    assert connections.outputs == {"subtractedExposure", "warpedExposure"}
    assert connections.warpedExposure.name == "dcrDiff_warpedExp"
    assert connections.dcrCoadds.name == "dcrCoadd"
    assert "subfilter" in connections.dcrCoadds.dimensions


@pytest.mark.parametrize("executor_first", [True, False])
def test_quanta_and_the_command_line_share_a_repository(fresh, executor_first):
    made = fresh()

    def run_quantum():
        butler = SimplePipelineExecutor.prep_butler(str(made.root), list(INPUTS), "u/test/quantum")
        executor = SimplePipelineExecutor.from_task_class(ImageDifferenceTask, where=OF_VISIT_1, butler=butler)
        executor.run(register_dataset_types=True, save_versions=True)
        assert butler.get("packages")["numpy"] == np.__version__

    def run_command_line():
        uri = f"butler:{made.root}?collections={','.join(INPUTS)}"
        image_difference.ImageDifferenceTask.parseAndRun([uri, "--output", "u/test/command", "--id", "visit=1"])
        with Butler.from_config(made.root, collections="u/test/command") as butler:
            assert butler.get("packages")["numpy"] == np.__version__
            assert butler.get("deepDiff_diaSrc", DATA_ID).n_rows == len(TRANSIENTS)

    for step in (run_quantum, run_command_line) if executor_first else (run_command_line, run_quantum):
        step()


@pytest.mark.parametrize("field", ["coaddName", "doApplyFinalizedPsf", "doAddCalexpBackground"])
def test_a_configuration_that_no_quantum_can_serve_is_refused(field):
    config = ImageDifferenceTask.ConfigClass()
    setattr(config, field, "goodSeeing" if field == "coaddName" else True)
    with pytest.raises(ValueError, match=field):
        config.validate()


@pytest.mark.parametrize(
    ("raised", "becomes"),
    [(NoTemplateCoverage(0.02, 0.1), RubinNoWorkFound), (StoreUnavailable("locked"), RepeatableQuantumError)],
)
def test_errors_of_ours_become_the_executors_in_a_quantum(raised, becomes):
    with pytest.raises(becomes) as caught, quantum_errors():
        raise raised
    assert caught.value.__cause__ is raised


def test_other_errors_stay_what_they_are_in_a_quantum():
    raised = InsufficientKernelSources(1, 3)
    with pytest.raises(InsufficientKernelSources) as caught, quantum_errors():
        raise raised
    assert caught.value is raised


def test_nothing_to_do_of_theirs_is_an_exception_of_ours_outside_of_a_quantum():
    with pytest.raises(NoWorkFound, match="calexp: no overlap"), translated_errors("calexp"):
        raise RubinNoWorkFound("no overlap")


SEPARATE = "u/test/separate"


def make_separate_executor(made):
    """Return the in-process executor, its pipeline, and its graph of visit 1, with an output RUN of its own."""
    butler = Butler.from_config(made.root, collections=list(INPUTS), run=SEPARATE, writeable=True)
    executor = SeparablePipelineExecutor(butler)
    pipeline = Pipeline("difference images")
    pipeline.addTask(ImageDifferenceTask, "imageDifference")
    pipeline.addConfigOverride("imageDifference", "detection.thresholdValue", 6.0)
    return butler, executor, pipeline


def test_the_in_process_executor_runs_it(fresh):
    made = fresh()
    butler, executor, pipeline = make_separate_executor(made)
    with butler:
        graph = executor.make_quantum_graph(pipeline, where=OF_VISIT_1)
        executor.pre_execute_qgraph(graph, register_dataset_types=True, save_versions=False)
        executor.run_pipeline(graph)
        assert butler.get("deepDiff_diaSrc", DATA_ID, collections=SEPARATE).n_rows == len(TRANSIENTS)
        assert butler.get("imageDifference_config", collections=SEPARATE).detection.thresholdValue == 6.0


def test_a_run_that_has_its_products_is_not_run_again(fresh):
    made = fresh()
    butler, executor, pipeline = make_separate_executor(made)
    with butler:
        graph = executor.make_quantum_graph(pipeline, where=OF_VISIT_1)
        executor.pre_execute_qgraph(graph, register_dataset_types=True, save_versions=False)
        executor.run_pipeline(graph)
        stored = butler.find_dataset("deepDiff_diaSrc", DATA_ID, collections=SEPARATE).id
        with pytest.raises(OutputExistsError, match="deepDiff_"):
            executor.make_quantum_graph(pipeline, where=OF_VISIT_1)
        assert butler.find_dataset("deepDiff_diaSrc", DATA_ID, collections=SEPARATE).id == stored


@pytest.mark.slow
def test_pipetask_runs_it(fresh):
    made = fresh()
    command = [str(Path(sys.executable).parent / "pipetask"), "run"]
    command += ["-b", str(made.root), "-i", ",".join(INPUTS), "-o", "u/test/pipetask", "-d", OF_VISIT_1]
    command += ["-t", "alertprod.butler.pipeline.ImageDifferenceTask", "--register-dataset-types", "--no-versions"]
    command += ["-c", "imageDifference:detection.thresholdValue=6", "-c", "imageDifference:ids.release=3"]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    with Butler.from_config(made.root, collections="u/test/pipetask") as butler:
        assert butler.collections.get_info("u/test/pipetask").type is CollectionType.CHAINED
        sources = butler.get("deepDiff_diaSrc", DATA_ID)
        assert sources.n_rows == len(TRANSIENTS)
        assert set((sources["dia_source_id"] >> 57).tolist()) == {3}
        assert butler.get("imageDifference_config").detection.thresholdValue == 6
