import pytest

from alertprod.errors import ConfigError
from alertprod.ids import RubinPacker, SequencePacker
from alertprod.images.profile import load_profile, packaged_profiles


def write(tmp_path, text):
    path = tmp_path / "cam.toml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("name", packaged_profiles())
def test_every_packaged_profile_loads(name):
    profile = load_profile(name)
    assert profile.description
    assert profile.create_packer().pack(visit=2026030100001, detector=0) if name == "rubin" else profile.create_packer()


def test_a_profile_is_a_path_too(tmp_path):
    profile = load_profile(write(tmp_path, 'instrument = "cam"\ndetector = 3\n[planes]\nimage = [1, "SCI"]\n'))
    assert profile.instrument.value == "cam"
    assert profile.detector.value == 3
    assert profile.planes.image == (1, "SCI")


@pytest.mark.parametrize(
    ("text", "field", "problem"),
    [
        ("detector = 0", "instrument", "Field required"),
        ('instrument = "c"\ndetectr = 0', "detectr", "no such field"),
        ('instrument = "c"\n[planes]\nimge = 0', "planes.imge", "no such field"),
        ('instrument = "c"\n[noise]\ncell_size = "big"', "noise.cell_size", "integer"),
        ('instrument = "c"\n[noise]\nsource = "magic"', "noise.source", "gain"),
        ('instrument = "c"\nband = { card = "F", file_name = "(x)" }', "band", "exactly one"),
        ('instrument = "c"\nband = { }', "band", "exactly one"),
        ('instrument = "c"\nvisit = { card = "V", from_time = true }', "visit", "exactly one"),
        ('instrument = "c"\nvisit = { file_name = "exp" }', "visit.file_name", "0 groups"),
        ('instrument = "c"\nvisit = { file_name = "exp(" }', "visit.file_name", "not a regular expression"),
        ('instrument = "c"\n[planes]\nmask_bits = { SATURATED = 1 }', "planes.mask_bits", "no such plane: SATURATED"),
        ('instrument = "c"\n[planes]\nrms = 1\nweight = 2', "planes", "at most one"),
        ('instrument = "c"\n[wcs]\nsource = "nominal"', "wcs", "scale_arcsec"),
        ('instrument = "c"\n[time]\nstart = "DATE"', "time.start", "dictionary"),
        ('instrument = "c"\n[ids]\nn_detectors = 512\nn_visits = 1073741824', "ids", r"2\*\*38"),
        ("instrument = ", "profile", "TOML"),
    ],
)
def test_a_mistake_names_file_and_field(tmp_path, text, field, problem):
    path = write(tmp_path, text)
    with pytest.raises(ConfigError, match=problem) as caught:
        load_profile(path)
    assert caught.value.source == str(path)
    assert caught.value.field == field


def test_an_unknown_name_lists_the_packaged_ones(tmp_path):
    with pytest.raises(ConfigError, match=r"packaged profiles are .*rubin"):
        load_profile("rubbin")
    with pytest.raises(ConfigError, match="no such file"):
        load_profile(tmp_path / "none.toml")


def test_overrides_reach_into_tables_and_replace_facts():
    overrides = {"band": {"value": "R"}, "saturation": {"grow": 5}, "noise": {"gain": {"card": "EGAIN"}}}
    profile = load_profile("saao", overrides)
    assert profile.band.value == "R"
    assert profile.band.card == ()
    assert profile.saturation.grow == 5
    assert profile.saturation.level.value == 60000
    assert profile.noise.gain.card == ("EGAIN",)
    assert profile.noise.read_noise.card == ("RDNOISE",)


def test_wrong_overrides_are_config_errors():
    with pytest.raises(ConfigError, match="no such field"):
        load_profile("saao", {"saturation": {"grwo": 5}})


def test_profiles_name_their_packer():
    assert isinstance(load_profile("rubin").create_packer(), RubinPacker)
    assert load_profile("saao").create_packer() == SequencePacker(n_detectors=1, n_visits=100000)
