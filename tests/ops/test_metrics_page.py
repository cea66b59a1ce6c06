"""The page of the metrics."""

import importlib.util
from pathlib import Path

from alertprod.metrics import Metrics

OPS = Path(__file__).parents[2] / "ops"


def load_script(path: Path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_what_the_code_declares():
    assert (OPS / "metrics.md").read_text() == load_script(OPS / "make_metrics_page.py").make_page()


def test_every_metric_and_every_label_is_on_it():
    page = (OPS / "metrics.md").read_text()

    for facts in Metrics().declared:
        assert f"| `{facts.name}` | {facts.kind} |" in page
        for label in facts.labels:
            assert f"| {label} " in page or f"{label}, " in page or f", {label} |" in page, label
