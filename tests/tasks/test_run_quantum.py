"""`runQuantum`: what is got and put by reference; a dictionary is the middleware here."""

from types import SimpleNamespace

import pytest
from made_skies import TRANSIENTS

from alertprod.errors import NoTemplateCoverage
from alertprod.images.mask import plane_bits
from alertprod.tasks import ImageDifferenceTask
from alertprod.tasks.connections import ImageDifferenceConnections, ImageDifferenceFromTemplateConnections
from alertprod.tasks.image_difference_from_template import ImageDifferenceFromTemplateTask

PACKED, BITS = 12345, 44


class Context:
    """A butler that knows the references of one quantum: they are names of a dictionary's entries."""

    def __init__(self, data):
        self.data, self.stored = data, {}
        self.quantum = SimpleNamespace(dataId=self)

    def pack(self, name, *, returnMaxBits=False):
        assert name == "visit_detector"
        return (PACKED, BITS) if returnMaxBits else PACKED

    def get(self, dataset):
        if isinstance(dataset, list):
            return [self.get(reference) for reference in dataset]
        return self.data[dataset]

    def put(self, values, dataset):
        for name, reference in vars(dataset).items():
            self.stored[reference] = getattr(values, name)


class Handle:
    """A tile that is read when it is asked for."""

    def __init__(self, exposure, **names):
        self.dataId, self._exposure = {"tile": "t", **names}, exposure

    def get(self):
        return self._exposure


def references(connections) -> tuple[SimpleNamespace, SimpleNamespace]:
    """Return references of inputs and outputs: the datasets' names."""

    def of(names):
        found = {name: getattr(connections, name) for name in sorted(names)}
        return SimpleNamespace(**{name: [c.name] if c.multiple else c.name for name, c in found.items()})

    return of(connections.inputs), of(connections.outputs)


def run(task, connections, data) -> dict:
    context = Context(data)
    task.runQuantum(context, *references(connections))
    return context.stored


def test_a_quantum_leaves_its_products(pair):
    config = ImageDifferenceTask.ConfigClass()
    config.doWriteWarpedExp = config.doWriteMatchedExp = True
    connections = ImageDifferenceConnections(config=config)
    data = {"calexp": pair.science, "skyMap": object(), "deepCoadd": Handle(pair.template)}
    stored = run(ImageDifferenceTask(config), connections, data)
    assert set(stored) == {
        "deepDiff_differenceExp",
        "deepDiff_warpedExp",
        "deepDiff_matchedExp",
        "deepDiff_diaSrc",
    }
    sources = stored["deepDiff_diaSrc"]
    assert sources.n_rows == len(TRANSIENTS)
    assert set((sources["dia_source_id"] >> (63 - BITS)).tolist()) == {PACKED}


def test_a_quantum_without_sources_stores_none(pair):
    config = ImageDifferenceTask.ConfigClass()
    config.doMeasurement = config.doWriteSources = False
    stored = run(
        ImageDifferenceTask(config),
        ImageDifferenceConnections(config=config),
        {"calexp": pair.science, "skyMap": None, "deepCoadd": Handle(pair.template)},
    )
    assert set(stored) == {"deepDiff_differenceExp"}


def test_dcr_coadds_are_chosen_by_the_coadds_name(pair):
    config = ImageDifferenceTask.ConfigClass()
    config.coaddName = "dcr"
    inputs, outputs = references(ImageDifferenceConnections(config=config))
    assert inputs.dcrCoadds == ["dcrCoadd"]
    assert not hasattr(inputs, "coaddExposures")
    inputs.dcrCoadds = ["blue", "middle", "red"]
    tiles = {name: Handle(pair.template, subfilter=n) for n, name in enumerate(inputs.dcrCoadds)}
    context = Context({"calexp": pair.science, "skyMap": None, **tiles})
    made = ImageDifferenceTask(config)
    made.runQuantum(context, inputs, outputs)
    assert set(context.stored) == {"dcrDiff_differenceExp", "dcrDiff_diaSrc"}
    assert made.getTemplate.metadata["nTiles"] == 3


def test_finalized_psf_and_corrections_are_taken_from_the_visits_summary(pair):
    config = ImageDifferenceTask.ConfigClass()
    config.doApplyFinalizedPsf = True
    final = SimpleNamespace(psf=pair.science.psf, ap_corr_map={})
    stored = run(
        ImageDifferenceTask(config),
        ImageDifferenceConnections(config=config),
        {
            "calexp": pair.science,
            "skyMap": None,
            "deepCoadd": Handle(pair.template),
            "finalVisitSummary": {pair.science.info.detector: final},
        },
    )
    assert stored["deepDiff_differenceExp"].ap_corr_map is final.ap_corr_map


def test_a_template_that_was_built_before_is_taken_as_it_is(pair):
    config = ImageDifferenceFromTemplateTask.ConfigClass()
    assert config.coaddName == "goodSeeing"
    stored = run(
        ImageDifferenceFromTemplateTask(config),
        ImageDifferenceFromTemplateConnections(config=config),
        {"calexp": pair.science, "skyMap": None, "goodSeeingDiff_templateExp": pair.template},
    )
    assert stored["goodSeeingDiff_diaSrc"].n_rows == len(TRANSIENTS)


def test_too_little_template_stores_nothing(pair):
    template = pair.template.copy()
    template.mask[20:] = plane_bits("NO_DATA")
    context = Context({"calexp": pair.science, "skyMap": None, "deepCoadd": Handle(template)})
    config = ImageDifferenceTask.ConfigClass()
    with pytest.raises(NoTemplateCoverage):
        ImageDifferenceTask(config).runQuantum(context, *references(ImageDifferenceConnections(config=config)))
    assert not context.stored
