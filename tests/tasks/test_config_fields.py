"""Task configuration from dataclasses, and overrides by dotted names."""

import pickle
from dataclasses import dataclass, field
from typing import Literal

import pytest
from lsst.pex.config import FieldValidationError

from alertprod.detection.detect import DetectionConfig
from alertprod.errors import ConfigError
from alertprod.measurement.measure import MeasurementConfig
from alertprod.subtraction.config import AlardLuptonConfig
from alertprod.tasks.config_fields import apply_overrides, make_config_class, read_settings, set_fields, validate_config
from alertprod.tasks.dipole_fit import DipoleFitConfig
from alertprod.tasks.image_difference import ImageDifferenceConfig
from alertprod.tasks.image_psf_match import PsfMatchConfigAL
from alertprod.tasks.source_detection import SourceDetectionConfig


@dataclass(frozen=True)
class Inner:
    """What is inside."""

    most_sources: int = 5
    """The most."""


@dataclass(frozen=True)
class Settings:
    """Settings of a test."""

    bin_size: int = 32
    """Side of the bins,
    in pixels."""

    relative_weight: float = 0.5

    label: str | None = None
    """A label."""

    direction: Literal["up", "down"] = "up"
    """Where to."""

    planes: tuple[str, ...] = ("SAT", "BAD")
    """Planes."""

    inner: Inner = field(default_factory=Inner)
    """Inside."""

    smooth: bool = True
    """An argument, not a setting."""

    def __post_init__(self):
        if self.bin_size < 8:
            raise ConfigError("Settings", "bin_size", f"{self.bin_size} is below 8")
        if self.relative_weight < 0:
            raise ValueError("weights are not negative")
        if "NOPE" in self.planes:
            raise KeyError("NOPE")


SettingsConfig = make_config_class("SettingsConfig", Settings, renamed={"planes": "maskPlanes"}, omitted=("smooth",))


def test_fields_are_the_dataclass_in_camel_case():
    config = SettingsConfig()
    assert set(config._fields) == {"binSize", "relativeWeight", "label", "direction", "maskPlanes", "inner"}
    assert config.binSize == 32
    assert config.label is None
    assert list(config.maskPlanes) == ["SAT", "BAD"]
    assert config.inner.mostSources == 5
    assert SettingsConfig.binSize.doc == "Side of the bins,\nin pixels."
    assert SettingsConfig.relativeWeight.doc == "relative_weight"
    assert SettingsConfig.__doc__ == "Settings of a test."


def test_settings_come_back_as_the_dataclass():
    config = SettingsConfig()
    assert config.makeSettings() == Settings()
    config.update(binSize=64, label="x", direction="down", maskPlanes=["CR"])
    config.inner.mostSources = 1
    expected = Settings(bin_size=64, label="x", direction="down", planes=("CR",), inner=Inner(1), smooth=False)
    assert config.makeSettings(smooth=False) == expected


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("binSize", 4, "4 is below 8"),
        ("relativeWeight", -1.0, "weights are not negative"),
        ("maskPlanes", ["NOPE"], "there is no 'NOPE'"),
    ],
)
def test_what_the_dataclass_refuses_is_refused_under_the_fields_name(name, value, problem):
    config = SettingsConfig()
    setattr(config, name, value)
    with pytest.raises(FieldValidationError, match=problem) as caught:
        config.validate()
    assert caught.value.fieldName == name


def test_a_choice_is_refused_at_once():
    with pytest.raises(FieldValidationError, match="not allowed"):
        SettingsConfig().direction = "sideways"


@pytest.mark.parametrize(
    ("made", "settings"),
    [
        (PsfMatchConfigAL, AlardLuptonConfig),
        (SourceDetectionConfig, DetectionConfig),
        (DipoleFitConfig, MeasurementConfig),
    ],
)
def test_defaults_of_the_tasks_are_those_of_the_core(made, settings):
    assert made().makeSettings() == settings()


@pytest.mark.parametrize("made", [PsfMatchConfigAL, SourceDetectionConfig, DipoleFitConfig])
def test_every_field_is_documented_in_words(made):
    for name, described in made()._fields.items():
        assert " " in described.doc, name


def read(config, name):
    node = config
    for part in name.split("."):
        node = node[part] if part in ("al", "AL") else getattr(node, part)
    return list(node) if isinstance(node, type(SettingsConfig().maskPlanes)) else node


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("detection.thresholdValue", 6.5),
        ("detection.thresholdValue", 6),
        ("detection.thresholdPolarity", "positive"),
        ("detection.excludeMaskPlanes", ["SAT"]),
        ("subtract.al.mode", "auto"),
        ("subtract.al.kernel.AL.spatialKernelOrder", 2),
        ("subtract.al.kernel.AL.alardSigGauss", [0.8, 1.6, 3.2]),
        ("measurement.dipole.maxFootprintArea", 600),
        ("characterize.doSubtractBackground", False),
        ("requiredTemplateFraction", 0.5),
        ("doDecorrelation", False),
    ],
)
def test_overrides_reach_their_field_and_no_other_configuration(name, value):
    config, untouched = ImageDifferenceConfig(), ImageDifferenceConfig()
    before = read(untouched, name)
    apply_overrides(config, {name: value}, source="night.toml")
    assert read(config, name) == value
    assert read(untouched, name) == read(ImageDifferenceConfig(), name) == before


def test_overrides_may_choose_what_they_then_set():
    config = ImageDifferenceConfig()
    apply_overrides(config, {"subtract.name": "al", "subtract.al.kernel.AL.kernelSizeMin": 25}, source="night.toml")
    assert config.subtract.active.kernel["AL"].kernelSizeMin == 25


def test_overrides_that_only_fit_together_are_accepted_in_any_order():
    overrides = {"doMeasurement": False, "doMerge": False, "doDetection": False}
    for names in (list(overrides), list(reversed(overrides))):
        apply_overrides(ImageDifferenceConfig(), dict.fromkeys(names, False), source="night.toml")


@pytest.mark.parametrize(
    ("name", "value", "field", "problem"),
    [
        ("thresholdValue", 6.0, "thresholdValue", "no such field"),
        ("detection.treshold", 6.0, "detection.treshold", "no such field"),
        ("nothing.thresholdValue", 6.0, "nothing.thresholdValue", "there is no 'nothing'"),
        ("detection.thresholdValue.x", 6.0, "detection.thresholdValue.x", "nothing below a plain value"),
        ("detection.thresholdValue", "high", "detection.thresholdValue", "incorrect type str"),
        ("detection.thresholdValue", -5.0, "detection.thresholdValue", "above 0"),
        ("detection.thresholdPolarity", "sideways", "detection.thresholdPolarity", "not allowed"),
        ("detection.excludeMaskPlanes", ["NOPE"], "detection.excludeMaskPlanes", "there is no 'NOPE'"),
        ("detection", 5, "detection", "incorrect type int"),
        ("doMeasurement", 1, "doMeasurement", "incorrect type int"),
        ("requiredTemplateFraction", None, "requiredTemplateFraction", "cannot be None"),
        ("requiredTemplateFraction", 1.5, "requiredTemplateFraction", "outside of valid range"),
        ("subtract", "guesswork", "subtract", "Unknown key 'guesswork'"),
        ("subtract.guesswork.mode", "auto", "subtract.guesswork.mode", "'guesswork' is not one of ['al'"),
        ("subtract.mode", "auto", "subtract.mode", "a choice has .name or one of ['al'"),
        ("subtract.al.mode", "sideways", "subtract.al.mode", "not allowed"),
        ("subtract.al.kernel.XX.kernelSize", 21, "subtract.al.kernel.XX.kernelSize", "'XX' is not one of ['AL'"),
        ("subtract.al.kernel.AL.kernelSize", 20, "subtract.al.kernel.AL.kernelSize", "20 is not an odd number"),
        ("subtract.al.kernel.AL.alardDegGauss", [4, 2], "subtract.al.kernel.AL.alardDegGauss", "2 values for"),
        ("subtract.al.kernel.AL.badMaskPlanes", ["NOPE"], "subtract.al.kernel.AL.badMaskPlanes", "there is no NOPE"),
        ("subtract.al.kernel.AL.nThreads", 0, "subtract.al.kernel.AL.nThreads", "0 is below 1"),
        ("scaleVariance.maskPlanes", ["NOPE"], "scaleVariance.maskPlanes", "there is no NOPE"),
        ("measurement.badFlags", ["nope"], "measurement.badFlags", "flags that do not exist: nope"),
        ("characterize.backgroundBinSize", 1, "characterize.backgroundBinSize", "outside of valid range"),
        ("doDetection", False, "doMeasurement", "needs doDetection"),
    ],
)
def test_a_bad_override_names_file_field_and_problem(name, value, field, problem):
    with pytest.raises(ConfigError) as caught:
        apply_overrides(ImageDifferenceConfig(), {name: value}, source="night.toml")
    assert (caught.value.source, caught.value.field) == ("night.toml", field)
    assert problem in caught.value.problem
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(f"night.toml: {field}: ")


def test_words_of_a_command_line_are_values_or_text():
    said = ["a.number=3", "a.list=[1, 2]", "flag=False", "none=None", "text=al", "equation=x=y", "blank="]
    assert read_settings(said, source="-c") == {
        "a.number": 3,
        "a.list": [1, 2],
        "flag": False,
        "none": None,
        "text": "al",
        "equation": "x=y",
        "blank": "",
    }


@pytest.mark.parametrize("word", ["doMerge", "=3", ""])
def test_a_word_without_a_value_or_name_is_named(word):
    with pytest.raises(ConfigError, match="NAME=VALUE is needed"):
        read_settings([word], source="-c")


def test_fields_may_contradict_one_another_until_the_whole_is_validated():
    config = ImageDifferenceConfig()
    set_fields(config, {"doDetection": False}, source="-c")
    with pytest.raises(ConfigError, match="doDetection"):
        validate_config(config, source="-c")


def test_a_plain_error_of_a_tasks_own_check_names_the_configuration():
    class Picky(DipoleFitConfig):
        def validate(self):
            raise ValueError("never right")

    with pytest.raises(ConfigError, match="-c: Picky: never right"):
        validate_config(Picky(), source="-c")


def test_made_configurations_are_saved_and_read_again():
    config = ImageDifferenceConfig()
    config.detection.thresholdValue = 7.5
    config.subtract["al"].kernel["AL"].kernelSize = 25
    text = config.saveToString()
    again = ImageDifferenceConfig()
    again.loadFromString(text)
    assert again.compare(config)
    assert pickle.loads(pickle.dumps(config)).compare(config)
