"""The base of all tasks: names, configuration, metadata, timers, subtasks."""

import logging
import pickle
import time

import pytest
from lsst.pex.config import Config, ConfigField, ConfigurableField, Field

from alertprod.measurement.catalog import Catalog
from alertprod.tasks.sources import SOURCE_COLUMNS
from alertprod.tasks.task import Struct, Task, timeMethod


class LeafConfig(Config):
    number = Field(dtype=int, default=3, doc="A number")

    def validate(self):
        super().validate()
        if self.number < 0:
            raise ValueError("number is negative")


class Leaf(Task):
    ConfigClass = LeafConfig
    _DefaultName = "leaf"

    def getSchemaCatalogs(self):  # noqa: N802  the task interface's name
        return {f"{self.getName()}_src": Catalog(SOURCE_COLUMNS, 0)}

    @timeMethod
    def run(self, *, fail=False):
        self.metadata["number"] = self.config.number
        if fail:
            raise ArithmeticError("asked to fail")
        return Struct(number=self.config.number)


class BranchConfig(Config):
    leaf = ConfigurableField(target=Leaf, doc="A leaf")


class Branch(Task):
    ConfigClass = BranchConfig

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.makeSubtask("leaf")


class ResourceConfig(Config):
    cores = Field(dtype=int, default=4, doc="Cores")


class TreeConfig(Config):
    resources = ConfigField(dtype=ResourceConfig, doc="What it needs")
    branch = ConfigurableField(target=Branch, doc="A branch")
    leaf = Leaf.makeField("Another leaf")


class Tree(Task):
    ConfigClass = TreeConfig
    _DefaultName = "tree"

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.makeSubtask("branch")
        self.makeSubtask("leaf")


def test_names_tell_the_way_from_the_top():
    tree = Tree()
    assert (tree.getName(), tree.getFullName()) == ("tree", "tree")
    assert (tree.branch.leaf.getName(), tree.branch.leaf.getFullName()) == ("leaf", "tree.branch.leaf")
    assert Tree(name="oak").branch.getFullName() == "oak.branch"


def test_a_top_level_task_without_any_name_is_refused():
    with pytest.raises(RuntimeError, match="_DefaultName"):
        Branch()
    assert Branch(name="branch").getName() == "branch"


def test_a_subtask_without_a_name_is_refused():
    with pytest.raises(RuntimeError, match="name is required for a subtask"):
        Leaf(parentTask=Tree())


def test_every_task_of_the_hierarchy_knows_all_of_them():
    tree = Tree()
    expected = {"tree", "tree.branch", "tree.branch.leaf", "tree.leaf"}
    for task in (tree, tree.branch, tree.branch.leaf):
        assert set(task.getTaskDict()) == expected
        assert {name: task.getTaskDict()[name]().getFullName() for name in expected} == {n: n for n in expected}
    tree.getTaskDict().clear()  # a copy
    assert set(tree.getTaskDict()) == expected


def test_configuration_is_the_given_one_the_parents_or_the_default():
    assert Leaf().config.number == 3
    config = TreeConfig()
    config.branch.value.leaf.value.number = 7
    tree = Tree(config)
    assert tree.config is config
    assert tree.branch.leaf.config.number == 7
    assert tree.leaf.config.number == 3
    assert Leaf(parentTask=tree, name="leaf").config.number == 3


def test_a_bad_configuration_is_refused_when_the_task_is_made():
    config = LeafConfig()
    config.number = -1
    with pytest.raises(ValueError, match="number is negative"):
        Leaf(config)


def test_a_subtask_that_the_configuration_does_not_have_is_named():
    with pytest.raises(KeyError, match=r"tree's config does not have field 'root'"):
        Tree().makeSubtask("root")


def test_arguments_of_a_subtask_reach_it():
    class Named(Leaf):
        def __init__(self, *, colour, **kwargs):
            super().__init__(**kwargs)
            self.colour = colour

    config = TreeConfig()
    config.leaf.retarget(Named)
    branch = Branch(name="branch")
    branch.config = config
    branch.makeSubtask("leaf", colour="red")
    assert branch.leaf.colour == "red"


def test_configuration_and_parent_of_a_subtask_are_not_to_be_given():
    tree = Tree()
    for name, value in (("config", LeafConfig()), ("parentTask", Tree()), ("name", "other")):
        with pytest.raises(TypeError):
            tree.makeSubtask("leaf", **{name: value})


def test_schemas_of_the_hierarchy_are_the_same_from_any_level():
    tree = Tree()
    assert tree.getSchemaCatalogs() == {}
    for task in (tree, tree.branch, tree.branch.leaf):
        assert {name: catalog.columns for name, catalog in task.getAllSchemaCatalogs().items()} == {
            "leaf_src": SOURCE_COLUMNS
        }


def test_resources_are_the_configurations_if_it_has_any():
    assert Tree().getResourceConfig().cores == 4
    assert Leaf().getResourceConfig() is None


def test_a_pickled_task_is_made_again_with_its_configuration_and_name():
    config = TreeConfig()
    config.branch.value.leaf.value.number = 7
    tree = Tree(config, name="oak")
    tree.metadata["n"] = 1
    again = pickle.loads(pickle.dumps(tree))
    assert again.branch.leaf.config.number == 7
    assert again.branch.leaf.getFullName() == "oak.branch.leaf"
    assert set(again.getTaskDict()) == {"oak", "oak.branch", "oak.branch.leaf", "oak.leaf"}
    assert again.metadata == {}


def test_a_pickled_subtask_brings_its_parents():
    again = pickle.loads(pickle.dumps(Tree().branch.leaf))
    assert again.getFullName() == "tree.branch.leaf"
    assert "tree.branch" in again.getTaskDict()


def test_a_field_made_by_a_task_has_that_task_as_its_target():
    field = Leaf.makeField("Somewhere")
    assert isinstance(field, ConfigurableField)
    assert field.target is Leaf
    assert field.doc == "Somewhere"


def test_loggers_follow_the_names():
    tree = Tree()
    assert tree.log.name == "alertprod.tree"
    assert tree.branch.leaf.log.name == "alertprod.tree.branch.leaf"
    assert Tree(log=logging.getLogger("elsewhere")).leaf.log.name == "elsewhere.leaf"


def test_metadata_of_the_hierarchy_has_colons_for_dots():
    tree = Tree()
    tree.branch.leaf.run()
    metadata = tree.getFullMetadata()
    assert set(metadata) == {"tree", "tree:branch", "tree:branch:leaf", "tree:leaf"}
    assert metadata["tree:branch:leaf"]["number"] == 3
    assert "number" not in metadata["tree:leaf"]


def test_metadata_is_forgotten_everywhere_from_any_level():
    tree = Tree()
    tree.leaf.run()
    tree.branch.leaf.run()
    tree.branch.leaf.emptyMetadata()
    assert len(tree.getFullMetadata()) == 4
    assert not any(tree.getFullMetadata().values())


def test_a_timed_method_leaves_start_and_end():
    leaf = Leaf()
    assert leaf.run().number == 3
    for edge in ("Start", "End"):
        for what in ("WallTime", "CpuTime", "MaxResidentSetSize"):
            assert leaf.metadata[f"run{edge}{what}"] > 0
    assert leaf.metadata["runEndWallTime"] >= leaf.metadata["runStartWallTime"]


def test_a_timed_method_that_fails_is_timed_all_the_same():
    leaf = Leaf()
    with pytest.raises(ArithmeticError):
        leaf.run(fail=True)
    assert "runEndWallTime" in leaf.metadata


def test_a_timed_method_keeps_its_name_and_words():
    assert Leaf.run.__name__ == "run"


def test_durations_are_seconds_by_task_and_timer():
    tree = Tree()
    with tree.timer("waiting"):
        time.sleep(0.02)
    tree.branch.leaf.run()
    durations = tree.durations()
    assert set(durations) == {"tree:waiting", "tree:branch:leaf:run"}
    assert 0.02 <= durations["tree:waiting"] < 5.0
    assert 0.0 <= durations["tree:branch:leaf:run"] < 5.0


def test_a_timer_that_runs_has_no_duration_yet():
    tree = Tree()
    with tree.timer("waiting"):
        assert tree.durations() == {}


def test_results_are_attributes_and_a_dictionary():
    struct = Struct(a=1, b=None)
    assert (struct.a, struct.b) == (1, None)
    dictionary = struct.getDict()
    assert dictionary == {"a": 1, "b": None}
    dictionary["a"] = 2
    assert struct.a == 1
