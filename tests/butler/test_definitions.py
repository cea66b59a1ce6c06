"""What a repository is told once, in its own configuration."""

import pytest

pytest.importorskip("lsst.daf.butler", reason="the extra lsst is not installed; `make butler` adds it")

import yaml
from lsst.daf.butler import Butler

from alertprod.butler import CATALOG, EXPOSURE
from alertprod.butler.__main__ import main
from alertprod.butler.access import ButlerAccess
from alertprod.butler.definitions import is_prepared, prepare_repository
from alertprod.errors import ConfigError


@pytest.fixture
def bare(tmp_path):
    """A repository that nobody has told anything."""
    root = tmp_path / "repository"
    Butler.makeRepo(root)
    return root


def test_a_repository_is_told_once(bare):
    assert not is_prepared(bare)
    before = (bare / "butler.yaml").read_text()
    assert prepare_repository(bare)
    assert is_prepared(bare)
    assert (bare / "butler.yaml~").read_text() == before
    assert not prepare_repository(bare)
    with Butler.from_config(bare) as butler:
        assert {name: butler.storageClasses.getStorageClass(name).pytype.__name__ for name in (EXPOSURE, CATALOG)} == {
            EXPOSURE: "Exposure",
            CATALOG: "Catalog",
        }


def test_what_the_repository_says_else_stays(bare):
    path = bare / "butler.yaml"
    settings = yaml.safe_load(path.read_text())
    settings["storageClasses"] = {"Mine": {"pytype": "dict"}}
    settings["datastore"]["formatters"] = {"Mine": "lsst.daf.butler.formatters.json.JsonFormatter"}
    path.write_text(yaml.safe_dump(settings))
    prepare_repository(bare)
    after = yaml.safe_load(path.read_text())
    assert set(after["storageClasses"]) == {"Mine", EXPOSURE, CATALOG}
    assert set(after["datastore"]["formatters"]) == {"Mine", EXPOSURE, CATALOG}
    assert after["registry"] == settings["registry"]


def test_each_datastore_of_a_chain_is_told(tmp_path):
    link = {"datastore": {"cls": "lsst.daf.butler.datastores.fileDatastore.FileDatastore", "root": "<butlerRoot>/a"}}
    chain = {"datastore": {"cls": "chained", "datastores": [link, link]}}
    (tmp_path / "butler.yaml").write_text(yaml.safe_dump(chain))
    prepare_repository(tmp_path)
    told = yaml.safe_load((tmp_path / "butler.yaml").read_text())["datastore"]["datastores"]
    assert all(set(each["datastore"]["formatters"]) == {EXPOSURE, CATALOG} for each in told)


def test_results_need_a_repository_that_knows_our_storage_classes(bare):
    with pytest.raises(ConfigError, match=r"python -m alertprod\.butler"):
        ButlerAccess(bare, collections=[], run="out")


@pytest.mark.parametrize("content", [None, "a: [", "- 1\n"])
def test_a_folder_that_is_no_repository_is_said(tmp_path, content, monkeypatch, capsys):
    if content is not None:
        (tmp_path / "butler.yaml").write_text(content)
    with pytest.raises(ConfigError):
        prepare_repository(tmp_path)
    monkeypatch.setattr("sys.argv", ["butler", str(tmp_path)])
    assert main() == 2
    assert str(tmp_path) in capsys.readouterr().err


def test_the_command_says_what_it_did(bare, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["butler", str(bare)])
    assert [main(), main()] == [0, 0]
    assert capsys.readouterr().out.splitlines() == [
        f"{bare}: storage classes added",
        f"{bare}: knew them already",
    ]
