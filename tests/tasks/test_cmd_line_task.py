"""Tasks from the command line: data ids, overrides, failures, processes, and what is written beside the results."""

import json
import logging
import pickle
from types import MappingProxyType

import pytest
from small_repository import LevelConfig, LevelTask, LonelyTask, OverridingTask, make_repository

from alertprod.errors import TaskError
from alertprod.measurement.catalog import Catalog
from alertprod.store.repository import FolderRepository
from alertprod.tasks.cmd_line_task import CmdLineTask, collect_packages
from alertprod.tasks.sources import SOURCE_COLUMNS
from alertprod.view.diffim_debug import PngDisplay


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    return make_repository(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def run(repository, tmp_path, caplog):
    """Run the task on the repository, its results in a folder of their own."""

    def run(*words, task=LevelTask, **kwargs):
        caplog.set_level(logging.INFO, logger="test.level")
        log = logging.getLogger("test.level")
        return task.parseAndRun([str(repository), "--output", str(tmp_path / "out"), *words], log=log, **kwargs)

    return run


def levels(struct):
    return [result.result.level for result in struct.resultList]


def test_every_exposure_of_the_ids_is_run_on_in_order(run, tmp_path):
    done = run("--id", "visit=8^3", "detector=1", doReturnResults=True)
    assert [result.dataRef.dataId["visit"] for result in done.resultList] == [3, 8]
    assert levels(done) == [6.0, 16.0]
    assert [result.exitStatus for result in done.resultList] == [0, 0]
    stored = FolderRepository(tmp_path / "out").get("level_src", {"visit": 8, "detector": 1})
    assert stored["flux"].tolist() == [16.0]


def test_without_values_everything_is_run_on(run):
    assert levels(run("--id", doReturnResults=True)) == [6.0, 10.0, 16.0]


def test_results_are_kept_only_where_they_are_asked_for(run):
    (only,) = run("--id", "visit=3").resultList
    assert only.getDict() == {"exitStatus": 0}


def test_the_struct_has_what_ran(run):
    done = run("--id", "visit=3")
    assert done.parsedCmd.id.refList[0].dataId["visit"] == 3
    assert isinstance(done.taskRunner, LevelTask.RunnerClass)
    assert done.argumentParser.prog == "level"


def test_no_data_is_a_warning_and_no_failure(run, caplog):
    assert run("--id", "visit=4").resultList == []
    assert "nothing to run on" in caplog.text
    assert run().resultList == []


def test_overrides_apply_in_order_after_the_tasks_own(run, tmp_path):
    file = tmp_path / "overrides.py"
    file.write_text("config.part.factor = 3.0\nconfig.offset = 1.0\n")
    assert levels(run("--id", "visit=3", "-C", str(file), "-c", "offset=2", doReturnResults=True)) == [11.0]
    done = run(
        "--id", "visit=3", "-c", "offset=2", "-C", str(file), "--output", str(tmp_path / "b"), doReturnResults=True
    )
    assert levels(done) == [10.0]
    done = run("--id", "visit=3", "--output", str(tmp_path / "c"), task=OverridingTask, doReturnResults=True)
    assert levels(done) == [106.0]


def test_overrides_may_contradict_each_other_on_the_way(run):
    assert levels(run("--id", "visit=3", "-c", "offset=-1", "name=other", doReturnResults=True)) == [5.0]


def test_the_given_configuration_is_left_as_it_was(run):
    config = LevelConfig()
    config.offset = 5.0
    assert levels(run("--id", "visit=3", "-c", "part.factor=1", config=config, doReturnResults=True)) == [8.0]
    assert config.part.factor == 2.0


def test_template_ids_stay_as_they_were_said(run):
    (only,) = run("--id", "visit=3", "--templateId", "visit=5^8", doReturnResults=True).resultList
    assert only.result.templateIdList == [{"visit": 5}, {"visit": 8}]
    assert only.result.hasButler


def test_failures_are_the_exit_status_and_the_others_go_on(run, caplog, tmp_path):
    with pytest.raises(SystemExit) as exit_info:
        run("--id", "-c", "refused=[3]", "broken=[5]")
    assert exit_info.value.code == 2
    assert "failed on instrument=Tiny visit=3 detector=1 band=r: TaskError: asked to refuse" in caplog.text
    refused = next(record for record in caplog.records if "visit=3" in record.getMessage())
    broken = next(record for record in caplog.records if "visit=5" in record.getMessage())
    assert refused.exc_info is None, "an error of the tree says it all"
    assert broken.exc_info is not None, "a bug needs its traceback"
    assert "2 of 3 data ids failed" in caplog.text
    assert FolderRepository(tmp_path / "out").exists("level_src", {"visit": 8, "detector": 1})


def test_failures_return_where_nobody_wants_to_exit(run):
    done = run("--id", "-c", "refused=[3,5]", "--noExit")
    assert [result.exitStatus for result in done.resultList] == [1, 1, 0]


def test_the_first_failure_is_raised_where_that_is_asked_for(run):
    with pytest.raises(ZeroDivisionError):
        run("--id", "-c", "broken=[5]", "--doraise")


def test_nothing_to_do_is_no_failure(run, caplog):
    done = run("--id", "visit=3", "-c", "empty=[3]")
    assert [result.exitStatus for result in done.resultList] == [0]
    assert "nothing to do for instrument=Tiny visit=3 detector=1 band=r: nothing here" in caplog.text


def test_metadata_are_written_of_success_and_failure(run, tmp_path):
    run("--id", "visit=3^5", "-c", "broken=[5]", "--noExit")
    done = json.loads((tmp_path / "out" / "level_metadata" / "3" / "level_metadata-3-1.json").read_text())
    assert done["level:part"] == {"level": 3.0}
    failed = json.loads((tmp_path / "out" / "level_metadata" / "5" / "level_metadata-5-1.json").read_text())
    assert failed == {"level": {}, "level:part": {}}


def test_metadata_that_cannot_be_written_are_a_warning(caplog):
    class Full:
        dataId = MappingProxyType({"visit": 1})  # noqa: N815  the protocol's name

        def put(self, *_args):
            raise OSError("no space")

    LevelTask().writeMetadata(Full())
    assert "metadata of {'visit': 1} not written: OSError: no space" in caplog.text


def test_a_run_leaves_configuration_schema_and_versions(run, tmp_path):
    run("--id", "visit=3", "-c", "offset=2")
    stored = FolderRepository(tmp_path / "out")
    assert stored.get("level_config").offset == 2.0
    schema = stored.get("level_src_schema")
    assert (schema.columns, schema.n_rows) == (SOURCE_COLUMNS, 0)
    assert stored.get("packages") == collect_packages()
    assert {"python", "alertprod", "numpy", "lsst-pex-config"} <= set(collect_packages())


def test_another_configuration_is_refused_unless_it_may_replace_the_old(run, tmp_path, caplog):
    run("--id", "visit=3", "-c", "offset=2")
    done = run("--id", "-c", "offset=3", "--noExit")
    assert [result.exitStatus for result in done.resultList] == [1, 1, 1]
    assert "nothing was run: TaskError: the stored configuration level_config is another" in caplog.text
    assert "offset" in caplog.text
    with pytest.raises(SystemExit):
        run("--id", "visit=3", "-c", "offset=3")
    with pytest.raises(TaskError, match="--clobber-config"):
        run("--id", "visit=3", "-c", "offset=3", "--doraise")
    run("--id", "visit=3", "-c", "offset=3", "--clobber-config")
    assert FolderRepository(tmp_path / "out").get("level_config").offset == 3.0
    assert "offset=2" in (tmp_path / "out" / "level_config.py~1").read_text()


def test_what_is_replaced_is_not_kept_where_nobody_wants_it(run, tmp_path):
    run("--id", "visit=3")
    run("--id", "visit=3", "-c", "offset=3", "--clobber-config", "--no-backup-config")
    assert not list((tmp_path / "out").glob("*~*"))


def test_versions_are_left_alone_where_nobody_wants_them(run, tmp_path):
    run("--id", "visit=3", "--no-versions")
    assert not FolderRepository(tmp_path / "out").exists("packages")


class Memory(dict):
    """A butler of a few datasets."""

    def get(self, name, _data_id=None):
        if isinstance(self[name], Exception):
            raise self[name]
        return self[name]

    def put(self, obj, name, _data_id=None, *, backup=False):
        if backup and name in self:
            self[f"{name}~"] = self[name]
        self[name] = obj

    def exists(self, name, _data_id=None):
        return name in self


def test_the_same_configuration_is_left_as_it_is():
    butler = Memory()
    LevelTask().writeConfig(butler)
    first = butler["level_config"]
    LevelTask().writeConfig(butler)
    assert butler["level_config"] is first


def test_a_configuration_that_cannot_be_read_says_how_to_go_on():
    butler = Memory(level_config=KeyError("torn"))
    with pytest.raises(KeyError) as caught:
        LevelTask().writeConfig(butler)
    assert "--clobber-config" in caught.value.__notes__[0]
    LevelTask().writeConfig(butler, clobber=True)
    assert isinstance(butler["level_config~"], KeyError)


def test_a_task_without_a_name_for_its_configuration_writes_none():
    class Silent(LevelTask):
        def _getConfigName(self):  # noqa: N802  the task interface's name
            return None

        def _getMetadataName(self):  # noqa: N802
            return None

    butler = Memory()
    Silent().writeConfig(butler)
    Silent().writeMetadata(None)
    assert butler == {}


def test_schemas_must_be_identical():
    butler = Memory(level_src_schema=Catalog(SOURCE_COLUMNS[1:], 0))
    with pytest.raises(TaskError, match="source_id: new or changed"):
        LevelTask().writeSchemas(butler)
    LevelTask().writeSchemas(butler, clobber=True)
    LevelTask().writeSchemas(butler)
    assert butler["level_src_schema"].columns == SOURCE_COLUMNS
    assert butler["level_src_schema~"].columns == SOURCE_COLUMNS[1:]


def test_versions_are_compared_where_both_know_the_package_and_new_ones_are_added():
    now = collect_packages()
    butler = Memory(packages={"alertprod": now["alertprod"], "gone": "1.0"})
    LevelTask().writePackageVersions(butler)
    assert butler["packages"] == {**now, "gone": "1.0"}
    butler["packages"] = {"numpy": "0.1"}
    with pytest.raises(TaskError, match=rf"numpy: 0\.1, now {now['numpy']}"):
        LevelTask().writePackageVersions(butler)
    LevelTask().writePackageVersions(butler, clobber=True, dataset="packages")
    assert butler["packages"] == now


def test_a_quantum_is_its_inputs_run_and_its_outputs():
    class Context:
        def __init__(self):
            self.stored = {}

        def get(self, refs):
            return dict.fromkeys(refs, 40)

        def put(self, values, refs):
            self.stored = {name: getattr(values, name) for name in refs}

    class Half(LevelTask):
        def run(self, exposure):
            from alertprod.tasks.task import Struct

            return Struct(level=exposure / 2)

    context = Context()
    Half().runQuantum(context, ["exposure"], ["level"])
    assert context.stored == {"level": 20.0}


def test_a_task_without_a_way_to_run_on_data_says_so():
    with pytest.raises(NotImplementedError, match="CmdLineTask has no runDataRef"):
        CmdLineTask(LevelConfig(), name="bare").runDataRef(None)


def test_pictures_go_into_the_folder_that_is_named(run, tmp_path):
    done = run("--id", "visit=3", "--debug", str(tmp_path / "pictures"))
    task = done.taskRunner.makeTask()
    assert isinstance(task.display, PngDisplay)
    assert task.debug.display
    assert LevelTask().display is None


def test_processes_do_what_one_does(run, tmp_path):
    done = run("--id", "-j", "2", "--noExit", "-c", "refused=[5]", doReturnResults=True)
    assert [result.exitStatus for result in done.resultList] == [0, 1, 0]
    assert [result.result.level for result in done.resultList if result.exitStatus == 0] == [6.0, 16.0]
    assert [result.dataRef.dataId["visit"] for result in done.resultList] == [3, 5, 8]
    written = sorted(path.name for path in (tmp_path / "out").glob("level_metadata/*/*.json"))
    assert written == [f"level_metadata-{visit}-1.json" for visit in (3, 5, 8)]


def test_a_process_that_dies_or_hangs_costs_one_exposure(run, caplog):
    done = run("--id", "-j", "2", "-t", "3", "--noExit", "-c", "deadly=[3]", "endless=[5]", doReturnResults=True)
    assert [result.exitStatus for result in done.resultList] == [1, 1, 0]
    assert "failed on instrument=Tiny visit=3 detector=1 band=r: its process ended with status 7" in caplog.text
    assert "failed on instrument=Tiny visit=5 detector=1 band=r: not done after 3 s" in caplog.text


def test_a_failure_in_a_process_is_raised_where_that_is_asked_for(run):
    with pytest.raises(ZeroDivisionError):
        run("--id", "-j", "2", "-c", "broken=[5]", "--doraise")


def test_a_task_that_cannot_share_runs_alone(run, caplog):
    done = run("--id", "visit=3^5", "-j", "2", task=LonelyTask)
    assert done.taskRunner.numProcesses == 1
    assert "cannot run in several processes" in caplog.text


def test_a_runner_takes_its_class_and_configuration_along(run):
    runner = run("--id", "visit=3", "-c", "offset=2").taskRunner
    again = pickle.loads(pickle.dumps(runner))
    assert again.TaskClass is LevelTask
    assert again.config.compare(runner.config)
