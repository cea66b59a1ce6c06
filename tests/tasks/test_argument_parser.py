"""The words of a task's command line that do not run anything: help, what is shown, what is wrong."""

import logging

import pytest
from small_repository import LevelConfig, LevelTask, make_repository

from alertprod.errors import ConfigError
from alertprod.tasks.argument_parser import list_tasks
from alertprod.tasks.image_difference import ImageDifferenceConfig
from alertprod.tasks.plugins import open_display, open_repository


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    return str(make_repository(tmp_path_factory.mktemp("tiny")))


@pytest.fixture
def parse(repository):
    def parse(*words, config=None):
        parser = LevelTask._makeArgumentParser()
        log = logging.getLogger("test.level")
        return parser.parse_args(config or LevelConfig(), args=[repository, *words], log=log)

    return parse


@pytest.fixture
def refused(parse, capsys):
    """Return what a wrong command line is told, on standard error, before it exits with status 2."""

    def refused(*words):
        with pytest.raises(SystemExit) as exit_info:
            parse(*words)
        assert exit_info.value.code == 2
        return capsys.readouterr().err

    return refused


def test_help_says_what_the_task_does_and_how_ids_are_said(repository, capsys):
    with pytest.raises(SystemExit) as exit_info:
        LevelTask.parseAndRun([repository, "--help"])
    assert exit_info.value.code == 0
    text = capsys.readouterr().out
    assert "Measure the level of an exposure." in text
    assert "--id visit=1..5^9 detector=0" in text
    for option in ("--output", "--templateId", "-c", "-C", "--loglevel", "-j", "--noExit", "--doraise", "--debug"):
        assert option in text


def test_defaults(parse):
    parsed = parse("--id", "visit=3")
    assert (parsed.processes, parsed.noExit, parsed.doraise, parsed.clobberConfig) == (1, False, False, False)
    assert parsed.id.idList == [{"visit": 3}]
    assert parsed.templateId.idList == []
    assert parsed.config._frozen


def test_every_use_of_an_id_argument_counts_and_each_exposure_once(parse):
    parsed = parse("--id", "visit=8", "--id", "visit=3^8", "--id", "band=r", "visit=3")
    assert [ref.dataId["visit"] for ref in parsed.id.refList] == [8, 3]


def test_ids_without_data_are_named(parse, caplog):
    parse("--id", "visit=1..9")
    assert "--id visit=1..9: 6 of 9 data ids have no calexp; the first: visit=1" in caplog.text


def test_words_may_stand_in_a_file(parse, tmp_path):
    (tmp_path / "ids").write_text("--id visit=3  # the first\n--id visit=5 detector=1\n")
    assert [ref.dataId["visit"] for ref in parse(f"@{tmp_path / 'ids'}").id.refList] == [3, 5]


def test_the_configuration_is_shown_as_a_file_that_can_be_read_again(parse, capsys, tmp_path):
    with pytest.raises(SystemExit) as exit_info:
        parse("-c", "offset=2.5", "--show", "config")
    assert exit_info.value.code == 0
    shown = capsys.readouterr().out
    (tmp_path / "shown.py").write_text(shown)
    assert parse("-C", str(tmp_path / "shown.py")).config.offset == 2.5


def test_a_pattern_picks_fields(parse, capsys):
    with pytest.raises(SystemExit):
        parse("--show", "config=part.*")
    assert capsys.readouterr().out == "config.part.factor=2.0\n"


def test_tasks_and_data_are_shown_and_the_run_goes_on_where_that_is_said(parse, capsys):
    parsed = parse("--id", "visit=5", "--templateId", "visit=8", "--show", "tasks", "data", "run")
    assert parsed.id.refList
    assert capsys.readouterr().out == (
        "part: small_repository.PartTask\nid instrument=Tiny visit=5 detector=1 band=r\ntemplateId visit=8\n"
    )


def test_subtasks_of_subtasks_and_of_chosen_ones_are_listed():
    tasks = dict(list_tasks(ImageDifferenceConfig()))
    assert tasks["subtract"] == "alertprod.tasks.image_psf_match.ImagePsfMatchTask"
    assert tasks["detection"] == "alertprod.tasks.source_detection.SourceDetectionTask"


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["--id", "visit=one"], "--id: visit=one: visit is a whole number"),
        (["--id", "ccd=1"], "'ccd' is not a key"),
        (["-c", "offset"], "--config: offset: NAME=VALUE is needed"),
        (["-c", "nothing=1"], "--config: nothing: cannot be set to 1"),
        (["-c", "offset=much"], "--config: offset: cannot be set to 'much'"),
        (["-c", "offset=-1"], "a negative offset needs another name"),
        (["-C", "no/such/file.py"], "no/such/file.py: (file): no such file"),
        (["-L", "loud"], "--loglevel loud"),
        (["-L", "=debug"], "--loglevel =debug"),
        (["--show", "everything"], "--show everything"),
        (["--show", "data=3"], "--show data=3"),
        (["-j", "0"], "invalid number of processes value: '0'"),
        (["--unheard-of"], "unrecognized arguments"),
    ],
)
def test_wrong_usage_is_named(refused, words, problem):
    assert problem in refused(*words)


def test_a_file_of_overrides_that_fails_is_named_with_its_line_of_complaint(refused, tmp_path):
    (tmp_path / "wrong.py").write_text("config.offset = 1 / 0\n")
    assert "wrong.py: (file): ZeroDivisionError" in refused("-C", str(tmp_path / "wrong.py"))


def test_a_folder_that_is_no_repository_is_named(capsys, tmp_path):
    with pytest.raises(SystemExit) as exit_info:
        LevelTask.parseAndRun([str(tmp_path), "--id"], log=logging.getLogger("test.level"))
    assert exit_info.value.code == 2
    assert f"{tmp_path}: repository.json: not a repository" in capsys.readouterr().err


def test_levels_are_those_of_the_whole_and_of_subtasks(parse):
    try:
        parse("-L", "warning", "level.part=debug")
        assert logging.getLogger("alertprod").level == logging.WARNING
        assert logging.getLogger("alertprod.level.part").level == logging.DEBUG
    finally:
        for name in ("alertprod", "alertprod.level.part"):
            logging.getLogger(name).setLevel(logging.NOTSET)


def test_a_repository_may_say_its_kind(repository):
    assert open_repository(f"folder:{repository}").keys("calexp")["visit"] is int


def test_a_plugin_that_nobody_has_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr("alertprod.tasks.plugins.DISPLAYS", "alertprod.nowhere")
    with pytest.raises(ConfigError, match=r"alertprod\.nowhere: png: there is no such one"):
        open_display(tmp_path)
