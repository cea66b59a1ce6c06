"""The capacity plan says what the code computes from the measured costs."""

import importlib.util
from pathlib import Path

OPS = Path(__file__).resolve().parents[2] / "ops"


def test_the_tables_are_those_that_the_costs_give():
    spec = importlib.util.spec_from_file_location("make_capacity_page", OPS / "make_capacity_page.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    page = module.PAGE.read_text(encoding="utf-8")
    assert page == module.make_page(page), "run python ops/make_capacity_page.py"
