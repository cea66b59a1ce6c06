import json
from pathlib import Path

from alertprod.cli.console import print_json


def test_json_is_one_line_that_strict_readers_take(capsys):
    print_json(
        {"a": [float("nan"), 1.5, (float("inf"),)], "b": {"c": -float("inf")}, "path": Path("x"), "text": "two\nlines"}
    )
    line = capsys.readouterr().out
    assert line.count("\n") == 1
    assert json.loads(line) == {"a": [None, 1.5, [None]], "b": {"c": None}, "path": "x", "text": "two\nlines"}
