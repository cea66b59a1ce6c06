"""The configuration of `ImageDifferenceTask`: every field of the reference task, its default, and its sixteen rules."""

import pytest

from alertprod.errors import ConfigError
from alertprod.tasks import ImageDifferenceConfig, ImageDifferenceTask
from alertprod.tasks.config_fields import apply_overrides

DEFAULTS = {
    "doAddCalexpBackground": False,
    "doUseRegister": False,
    "doDebugRegister": False,
    "doSelectSources": False,
    "doSelectDcrCatalog": False,
    "doSelectVariableCatalog": False,
    "doSubtract": True,
    "doPreConvolve": False,
    "useScoreImageDetection": False,
    "doWriteScoreExp": False,
    "doScaleTemplateVariance": False,
    "doScaleDiffimVariance": True,
    "useGaussianForPreConvolution": False,
    "doDetection": True,
    "doDecorrelation": True,
    "doMerge": True,
    "doMatchSources": False,
    "doMeasurement": True,
    "doDipoleFitting": True,
    "doForcedMeasurement": True,
    "doWriteSubtractedExp": True,
    "doWriteWarpedExp": False,
    "doWriteMatchedExp": False,
    "doWriteSources": True,
    "doAddMetrics": False,
    "doApplyFinalizedPsf": False,
    "coaddName": "deep",
    "convolveTemplate": True,
    "doSpatiallyVarying": False,
    "doApCorr": True,
    "controlStepSize": 5,
    "controlRandomSeed": 10,
    "kernelSourcesFromRef": False,
    "templateSipOrder": 2,
    "growFootprint": 2,
    "diaSourceMatchRadius": 0.5,
    "requiredTemplateFraction": 0.1,
    "doSkySources": False,
}
"""Every plain field of the reference task."""

SUBTASKS = {
    "astrometer": "AstrometryTask",
    "sourceSelector": "ObjectSizeStarSelectorTask",
    "decorrelate": "DecorrelateALKernelSpatialTask",
    "detection": "SourceDetectionTask",
    "measurement": "DipoleFitTask",
    "applyApCorr": "ApplyApCorrTask",
    "forcedMeasurement": "ForcedMeasurementTask",
    "getTemplate": "GetCoaddAsTemplateTask",
    "scaleVariance": "ScaleVarianceTask",
    "register": "RegisterTask",
    "skySources": "SkyObjectsTask",
}
"""Every subtask of the reference task, and its default target."""

SUBTASK_DEFAULTS = {
    "subtract.name": "al",
    "subtract.al.kernel.name": "AL",
    "scaleVariance.binSize": 32,
    "scaleVariance.limit": 10.0,
    "detection.thresholdValue": 5.0,
    "detection.thresholdType": "pixel_stdev",
    "detection.thresholdPolarity": "both",
    "detection.reEstimateBackground": False,
    "measurement.dipole.maxSeparation": 5.0,
    "measurement.dipole.relWeight": 0.5,
    "measurement.dipole.minSn": 5.0 * 2.0**0.5,
    "measurement.dipole.maxFluxRatio": 0.65,
    "measurement.dipole.maxFootprintArea": 1200,
    "skySources.nSources": 100,
}

KERNEL_DEFAULTS = {
    "kernelSize": 21,
    "scaleByFwhm": True,
    "kernelSizeFwhmScaling": 6.0,
    "kernelSizeMin": 21,
    "kernelSizeMax": 35,
    "spatialKernelOrder": 1,
    "spatialBgOrder": 2,
    "fitForBackground": True,
    "sizeCellX": 128,
    "sizeCellY": 128,
    "nStarPerCell": 5,
    "maxSpatialIterations": 3,
    "singleKernelClipping": True,
    "kernelSumClipping": True,
    "spatialKernelClipping": True,
    "candidateResidualMeanMax": 0.25,
    "candidateResidualStdMax": 1.5,
    "candidateCoreRadius": 3,
    "maxKsumSigma": 3.0,
    "constantVarianceWeighting": True,
    "alardNGauss": 3,
    "alardDegGauss": [4, 2, 2],
    "alardSigGauss": [0.7, 1.5, 3.0],
    "alardGaussBeta": 2.0,
    "alardMinSig": 0.7,
    "alardMinSigDeconv": 0.4,
    "minKernelSources": 3,
    "maxKernelSources": 1000,
}


ZOGY = {"subtract.name": "zogy", "doDecorrelation": False}
SCORE = {"useScoreImageDetection": True, "doWriteSubtractedExp": False}
NOTHING_DETECTED = {"doDetection": False, "doMeasurement": False, "doMerge": False}

RULES = [
    (1, {"doSubtract": False, **NOTHING_DETECTED}, "doSubtract"),
    (2, {"doDetection": False, "doMerge": False}, "doMeasurement"),
    (3, {"doDetection": False, "doMeasurement": False}, "doMerge"),
    (4, {**NOTHING_DETECTED, "doSkySources": True}, "doSkySources"),
    (5, {"doUseRegister": True}, "doUseRegister"),
    (6, {"doScaleTemplateVariance": True}, "doScaleTemplateVariance"),
    (7, {**ZOGY, "doWriteMatchedExp": True}, "doWriteMatchedExp"),
    (8, {**ZOGY, "doAddMetrics": True}, "doAddMetrics"),
    (9, {"subtract.name": "zogy"}, "doDecorrelation"),
    (10, {**ZOGY, "doSelectSources": True}, "doSelectSources"),
    (11, {**ZOGY, "useGaussianForPreConvolution": True}, "useGaussianForPreConvolution"),
    (12, {**SCORE, "convolveTemplate": False}, "useScoreImageDetection"),
    (12, {**SCORE, "subtract.al.mode": "auto"}, "useScoreImageDetection"),
    (13, {"useScoreImageDetection": True}, "doWriteSubtractedExp"),
    (14, {"doWriteScoreExp": True}, "doWriteScoreExp"),
    (15, {"doAddMetrics": True, "doSubtract": False}, "doAddMetrics"),
    (16, {"useGaussianForPreConvolution": True}, "useGaussianForPreConvolution"),
]
"""Number in the reference, settings that break it, the field that is blamed."""

ACCEPTED = [
    {},
    NOTHING_DETECTED,
    {"doMeasurement": False},
    {"doMerge": False},
    {"doSubtract": False},
    {"doUseRegister": True, "doSelectSources": True},
    {"doScaleTemplateVariance": True, "doScaleDiffimVariance": False},
    ZOGY,
    {**ZOGY, "useScoreImageDetection": True, "doWriteScoreExp": True},
    {**SCORE, "doWriteScoreExp": True},
    {**SCORE, "useGaussianForPreConvolution": True},
    {"doAddMetrics": True},
    {"doSkySources": True},
]


def read(config, name):
    node = config
    for part in name.split("."):
        node = node[part] if hasattr(node, "types") and part in node.types else getattr(node, part)
    return node


def make_config(settings) -> ImageDifferenceConfig:
    config = ImageDifferenceConfig()
    for name, value in settings.items():
        *path, last = name.split(".")
        setattr(read(config, ".".join(path)) if path else config, last, value)
    return config


@pytest.mark.parametrize(("name", "value"), (DEFAULTS | SUBTASK_DEFAULTS).items())
def test_default_is_the_reference_tasks(name, value):
    found = read(ImageDifferenceConfig(), name)
    assert type(found) is type(value)
    assert found == pytest.approx(value)


@pytest.mark.parametrize(("name", "value"), KERNEL_DEFAULTS.items())
def test_kernel_default_is_the_reference_tasks(name, value):
    field = getattr(ImageDifferenceConfig().subtract["al"].kernel["AL"], name)
    assert (list(field) if isinstance(value, list) else field) == value


@pytest.mark.parametrize(("name", "target"), SUBTASKS.items())
def test_subtask_is_the_reference_tasks(name, target):
    assert getattr(ImageDifferenceConfig(), name).target.__name__ == target


def test_there_are_two_ways_to_subtract():
    assert set(ImageDifferenceConfig().subtract.types) == {"al", "zogy"}


def test_every_field_is_told_about_and_what_is_ours_says_so():
    fields = ImageDifferenceConfig._fields
    assert all(field.doc for field in fields.values())
    ours = {name for name, field in fields.items() if "(ours" in field.doc}
    assert ours == set(fields) - set(DEFAULTS) - set(SUBTASKS) - {"subtract", "refObjLoader"}


@pytest.mark.parametrize(
    ("rule", "settings", "culprit"), RULES, ids=[f"rule {rule} {culprit}" for rule, _, culprit in RULES]
)
def test_contradictions_are_refused_when_the_task_is_made(rule, settings, culprit):
    config = make_config(settings)
    with pytest.raises(ValueError, match=rf"Field '{culprit}' failed"):
        config.validate()
    with pytest.raises(ValueError, match=culprit):
        ImageDifferenceTask(config)


@pytest.mark.parametrize("settings", ACCEPTED)
def test_what_does_not_contradict_itself_is_accepted(settings):
    config = make_config(settings)
    config.validate()
    assert isinstance(ImageDifferenceTask(config).config, ImageDifferenceConfig)


@pytest.mark.parametrize("fraction", [-0.1, 1.1])
def test_required_fraction_is_a_fraction(fraction):
    with pytest.raises(ValueError, match="outside of valid range"):
        ImageDifferenceConfig().requiredTemplateFraction = fraction


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("doNothing", True, "no such field"),
        ("detection.thresholdValue", "high", "thresholdValue"),
        ("detection.thresholdValue", -5.0, "above 0"),
        ("subtract.name", "hotpants", "hotpants"),
        ("subtract.al.kernel.AL.kernelSize", 20, "odd"),
        ("measurement.badFlags", ["gremlin"], "gremlin"),
        ("controlStepSize", 1, "controlStepSize"),
        ("getTemplate.coaddName", "shallow", "shallow"),
    ],
)
def test_an_absurd_value_is_named_with_its_field(name, value, words):
    with pytest.raises(ConfigError, match=words) as caught:
        apply_overrides(ImageDifferenceConfig(), {name: value}, source="night.toml")
    assert caught.value.source == "night.toml"
    assert name.split(".")[-1] in caught.value.field


def test_the_history_of_a_field_tells_who_set_it(tmp_path):
    overrides = tmp_path / "overrides.py"
    overrides.write_text("config.growFootprint = 4\n")
    config = ImageDifferenceConfig()
    config.load(str(overrides))
    assert config.growFootprint == 4
    history = config.formatHistory("growFootprint")
    assert "overrides.py" in history
    assert [value for value, *_ in config.history["growFootprint"]] == [2, 4]
