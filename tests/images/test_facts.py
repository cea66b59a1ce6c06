import pytest
from astropy.io import fits
from astropy.time import Time

from alertprod.errors import CorruptImage, HeaderMismatch
from alertprod.geometry.wcs import SkyWcs
from alertprod.images.exposure import ExposureInfo
from alertprod.images.facts import HeaderCards, check_facts, read_info, read_times
from alertprod.images.profile import Fact, InstrumentProfile, Moment, Times


def make_cards(name="night/exp00042.fits", **cards):
    return HeaderCards([fits.Header(cards)], name=name, hdu="IMAGE")


def test_a_constant_needs_no_header():
    assert make_cards().read_integer(Fact(value=7)) == 7


def test_the_first_card_that_is_there_counts_and_blanks_do_not():
    cards = make_cards(BAND=" ", FILTER="r")
    assert cards.read_text(Fact(card=("NOPE", "BAND", "FILTER"))) == "r"
    assert cards.read_text(Fact(card=("NOPE", "BAND"))) is None


def test_the_images_own_header_is_asked_before_the_primary_one():
    cards = HeaderCards([fits.Header({"GAIN": 2.0}), fits.Header({"GAIN": 3.0, "EXPTIME": 5.0})], name="x", hdu="IMAGE")
    assert cards.read_number(Fact(card=("GAIN",))) == 2.0
    assert cards.read_number(Fact(card=("EXPTIME",))) == 5.0


def test_the_file_name_is_searched_without_its_folders():
    fact = Fact(file_name=r"exp(\d+)")
    assert make_cards("exp00007/exp00042.fits").read_integer(fact) == 42
    assert make_cards("s3://bucket/exp00042.fits").read_integer(fact) == 42
    assert make_cards("exp00007/other.fits").read_integer(fact) is None


def test_values_are_mapped_and_unknown_ones_refused():
    fact = Fact(card=("FILTERS",), values={"58": "I"})
    assert make_cards(FILTERS=58).read_text(fact) == "I"
    with pytest.raises(CorruptImage, match="FILTERS is 59; the profile knows 58"):
        make_cards(FILTERS=59).read_text(fact)


def test_a_pattern_takes_a_part_of_a_card():
    fact = Fact(card=("FILTER",), pattern=r"^(\w+) DECam")
    assert make_cards(FILTER="i DECam SDSS c0003").read_text(fact) == "i"
    with pytest.raises(CorruptImage, match="FILTER"):
        make_cards(FILTER="open").read_text(fact)


def test_numbers_are_scaled():
    assert make_cards(EXPOSURE=50).read_number(Fact(card=("EXPOSURE",), factor=60.0)) == 3000.0


@pytest.mark.parametrize("value", ["12x", 3.5])
def test_a_visit_that_is_no_whole_number_is_refused(value):
    with pytest.raises(CorruptImage, match="VISIT"):
        make_cards(VISIT=value).read_integer(Fact(card=("VISIT",)))


def test_long_visits_keep_all_digits():
    assert make_cards(VISIT="2026030100000000123").read_integer(Fact(card=("VISIT",))) == 2026030100000000123
    assert make_cards(VISIT=2026030100123).read_integer(Fact(card=("VISIT",))) == 2026030100123


def test_numbers_must_be_numbers():
    with pytest.raises(CorruptImage, match="GAIN is 'high', not a number"):
        make_cards(GAIN="high").read_number(Fact(card=("GAIN",)))


@pytest.mark.parametrize(
    ("text", "degrees"),
    [
        ("18:15:29", 273.8708333),
        (" 18 15 29.0", 273.8708333),
        ("18h15m29s", 273.8708333),
        ("273.87083", 273.87083),
        (273.87083, 273.87083),
    ],
)
def test_right_ascensions_in_every_dress(text, degrees):
    found = make_cards(RA=text).read_angle(Fact(card=("RA",)), hours=False, hours_if_sexagesimal=True)
    assert found == pytest.approx(degrees, abs=1e-5)


@pytest.mark.parametrize(("text", "degrees"), [("-25:17:06", -25.285), ("-00:00:36", -0.01), ("+12 30 00", 12.5)])
def test_declinations_keep_their_sign(text, degrees):
    found = make_cards(DEC=text).read_angle(Fact(card=("DEC",)), hours=False, hours_if_sexagesimal=False)
    assert found == pytest.approx(degrees, abs=1e-12)


@pytest.mark.parametrize("text", ["12:60:00", "12:30:61", "east", "12:30"])
def test_angles_that_cannot_be_are_refused(text):
    with pytest.raises(CorruptImage, match="sexagesimal"):
        make_cards(RA=text).read_angle(Fact(card=("RA",)), hours=False, hours_if_sexagesimal=True)


def test_plain_numbers_may_be_hours():
    assert make_cards(RA=6.5).read_angle(Fact(card=("RA",)), hours=True, hours_if_sexagesimal=True) == 97.5


@pytest.mark.parametrize(
    "instant", ["2013-06-27T23:13:12.000", "2017-01-01T00:00:00.5", "2016-12-31T23:59:60.5", "1999-12-31T12:00:00"]
)
def test_utc_becomes_tai_as_astropy_has_it(instant):
    expected = Time(instant, scale="utc").tai.mjd
    found = make_cards(D=instant).read_mjd_tai(Moment(card=("D",), format="iso"))
    assert found == pytest.approx(expected, abs=1e-10)  # 10 us


def test_dates_come_in_several_dresses():
    expected = Time("1997-09-29T01:02:03", scale="utc").tai.mjd
    two_cards = Moment(card=("DATE",), time_card="UT", format="iso")
    assert make_cards(DATE="1997/09/29", UT="01:02:03").read_mjd_tai(two_cards) == pytest.approx(expected, abs=1e-10)
    for text in ("1997-09-29 01:02:03", "1997/09/29T01:02:03.000"):
        assert make_cards(D=text).read_mjd_tai(Moment(card=("D",), format="iso")) == pytest.approx(expected, abs=1e-10)
    jd = make_cards(JD=expected + 2400000.5).read_mjd_tai(Moment(card=("JD",), format="jd", scale="tai"))
    assert jd == pytest.approx(expected, abs=1e-8)


def test_timesys_overrules_the_profile():
    moment = Moment(card=("MJD",), scale="utc")
    assert make_cards(MJD=60000.25, TIMESYS="TAI").read_mjd_tai(moment) == 60000.25
    assert make_cards(MJD=60000.25, TIMESYS="UTC").read_mjd_tai(moment) == pytest.approx(
        60000.25 + 37 / 86400, abs=1e-10
    )


@pytest.mark.parametrize("text", ["yesterday", "2013-13-01T00:00:00", "2013-02-01T25:00:00", "####"])
def test_dates_that_cannot_be_are_refused(text):
    with pytest.raises(CorruptImage, match="DATE"):
        make_cards(DATE=text).read_mjd_tai(Moment(card=("DATE",), format="iso"))


def test_an_mjd_far_from_any_camera_is_refused():
    with pytest.raises(CorruptImage, match="no date of an exposure"):
        make_cards(D=2456471.0).read_mjd_tai(Moment(card=("D",)))


def test_start_middle_and_end_give_the_same_exposure():
    exposure_time = Fact(value=60.0)
    minute = 60.0 / 86400
    for kind, shift in (("start", 0.0), ("middle", 0.5), ("end", 1.0)):
        times = Times(**{kind: Moment(card=("D",), scale="tai")}, exposure_time=exposure_time)
        start, end, seconds = read_times(make_cards(D=60000.0 + shift * minute), times)
        assert start == pytest.approx(60000.0, abs=1e-9)
        assert end == pytest.approx(60000.0 + minute, abs=1e-9)
        assert seconds == 60.0


def test_start_and_end_give_the_exposure_time():
    times = Times(start=Moment(card=("A",), scale="tai"), end=Moment(card=("B",), scale="tai"))
    assert read_times(make_cards(A=60000.0, B=60000.001), times)[2] == pytest.approx(86.4)
    with pytest.raises(CorruptImage, match="before it opens"):
        read_times(make_cards(A=60000.0, B=59999.0), times)


def test_visits_may_be_made_of_times():
    profile = InstrumentProfile.model_validate(
        {"instrument": "c", "visit": {"from_time": True}, "time": {"start": {"card": "D", "scale": "tai"}}}
    )
    wcs = SkyWcs.from_tangent(ra_deg=10.0, dec_deg=0.0, x=4.5, y=4.5, scale_arcsec=1.0)
    info = read_info(make_cards(D=51544.0 + 100.0 / 86400), profile, wcs=wcs, shape=(10, 10))
    assert info.visit == 100
    assert (info.ra_deg, info.dec_deg) == (pytest.approx(10.0), pytest.approx(0.0, abs=1e-12))
    assert "pointing" in info.provenance
    assert read_info(make_cards(), profile, wcs=None, shape=(10, 10)).visit is None


def test_a_gain_of_zero_is_a_gain_nobody_knows():
    profile = InstrumentProfile.model_validate({"instrument": "c", "noise": {"gain": {"card": "GAIN"}}})
    assert read_info(make_cards(GAIN=0.0), profile, wcs=None, shape=(10, 10)).gain is None


EVENT = {
    "visit": 42,
    "detector": 3,
    "band": "r",
    "ra_deg": 0.001,
    "dec_deg": 10.0,
    "max_offset_arcsec": 10.0,
    "uri": "u",
}


def test_facts_that_agree_pass_across_ra_zero():
    check_facts(ExposureInfo(visit=42, detector=3, band="r", ra_deg=359.999, dec_deg=10.0), **EVENT)


@pytest.mark.parametrize(
    ("facts", "field"),
    [({"visit": 43}, "visit"), ({"detector": 2}, "detector"), ({"band": "i"}, "band"), ({"ra_deg": 0.01}, "pointing")],
)
def test_a_fact_that_disagrees_is_named_with_both_values(facts, field):
    info = ExposureInfo(**{"visit": 42, "detector": 3, "band": "r", "ra_deg": 0.001, "dec_deg": 10.0, **facts})
    with pytest.raises(HeaderMismatch) as caught:
        check_facts(info, **EVENT)
    assert caught.value.field == field


def test_what_is_absent_is_not_compared():
    check_facts(ExposureInfo(), **EVENT)


def test_what_a_profile_declares_must_be_there():
    profile = InstrumentProfile.model_validate({"instrument": "c", "visit": {"card": "VISIT"}})
    with pytest.raises(HeaderMismatch) as caught:
        check_facts(ExposureInfo(), **EVENT, profile=profile)
    assert caught.value.field == "visit"
    profile = InstrumentProfile.model_validate({"instrument": "c", "pointing": {"ra": {"card": "RA"}}})
    with pytest.raises(HeaderMismatch) as caught:
        check_facts(ExposureInfo(), **EVENT, profile=profile)
    assert caught.value.field == "pointing"
