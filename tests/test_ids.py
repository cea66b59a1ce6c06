import datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alertprod.ids import EXPOSURE_BITS, IdFactory, RubinPacker, SequencePacker, pack_release

DAYS = st.dates(datetime.date(2010, 1, 1), datetime.date(2010, 1, 1) + datetime.timedelta(days=16383))


def rubin_visit(day, sequence):
    return int(f"{day:%Y%m%d}{sequence:05d}")


def test_a_real_identifier_is_packed_as_rubin_packs_it():
    # 2026-02-23, exposure 81, detector 29, the 67th source of release 1.
    packed = RubinPacker().pack(visit=2026022300081, detector=29)
    factory = IdFactory(pack_release(packed, release=1), 44)
    ids = [factory() for _ in range(67)]
    assert ids[-1] == 170050479238676547


@given(DAYS, st.integers(0, 32767), st.integers(0, 255))
def test_rubin_packing_can_be_undone(day, sequence, detector):
    packed = RubinPacker().pack(visit=rubin_visit(day, sequence), detector=detector)
    assert 0 <= packed < 2**EXPOSURE_BITS
    rest, got_detector = divmod(packed, 256)
    day_number, got_sequence = divmod(rest, 32768)
    assert (got_detector, got_sequence) == (detector, sequence)
    assert datetime.date(2010, 1, 1) + datetime.timedelta(days=day_number) == day


@given(DAYS, st.integers(0, 32767), st.integers(0, 255))
def test_a_second_camera_with_rubins_visits_has_ids_of_its_own(day, sequence, detector):
    first, second = RubinPacker(), RubinPacker(instrument_number=1)
    place = {"visit": rubin_visit(day, sequence), "detector": detector}
    assert second.pack(**place) - first.pack(**place) == first.bounds[1] == second.bounds[0]
    assert first.bounds[0] <= first.pack(**place) < first.bounds[1]
    assert second.bounds[0] <= second.pack(**place) < second.bounds[1] == 2**EXPOSURE_BITS
    with pytest.raises(ValueError, match="instrument number"):
        RubinPacker(instrument_number=2).pack(**place)


@pytest.mark.parametrize(
    ("visit", "detector", "problem"),
    [
        (202602230008, 0, "13 digits"),
        (20260223000810, 0, "13 digits"),
        (-202602230008, 0, "13 digits"),
        (2026023000081, 0, "does not begin with a date"),
        (2009123100001, 0, "days since 2010"),
        (2054111000001, 0, "days since 2010"),
        (2026022340000, 0, "sequence number"),
        (2026022300081, 256, "detector"),
        (2026022300081, -1, "detector"),
    ],
)
def test_rubin_packer_names_what_does_not_fit(visit, detector, problem):
    with pytest.raises(ValueError, match=problem):
        RubinPacker().pack(visit=visit, detector=detector)


@given(
    st.integers(0, 999), st.integers(0, 9), st.integers(0, 3), st.integers(0, 999), st.integers(0, 9), st.integers(0, 3)
)
def test_sequence_packing_is_one_to_one(visit1, detector1, instrument1, visit2, detector2, instrument2):
    def pack(visit, detector, instrument):
        packer = SequencePacker(n_detectors=10, n_visits=1000, instrument_number=instrument)
        return packer.pack(visit=visit, detector=detector)

    same = (visit1, detector1, instrument1) == (visit2, detector2, instrument2)
    assert (pack(visit1, detector1, instrument1) == pack(visit2, detector2, instrument2)) == same


def test_sequence_packer_names_what_does_not_fit():
    packer = SequencePacker(n_detectors=4, n_visits=100)
    with pytest.raises(ValueError, match="detector is 4"):
        packer.pack(visit=0, detector=4)
    with pytest.raises(ValueError, match="visit is 100"):
        packer.pack(visit=100, detector=0)
    with pytest.raises(ValueError, match="packed exposure id"):
        SequencePacker(n_visits=1 << 37, instrument_number=2).pack(visit=0, detector=0)


@given(st.integers(0, 63), st.integers(0, 2**38 - 1))
def test_ids_are_positive_and_carry_release_exposure_and_counter(release, packed):
    factory = IdFactory(pack_release(packed, release=release), 44)
    first, second = factory(), factory()
    assert 0 < first < second < 2**63
    assert first >> 57 == release
    assert first >> 19 & (2**38 - 1) == packed
    assert (first & (2**19 - 1), second & (2**19 - 1)) == (1, 2)


@given(st.integers(1, 62), st.data())
def test_ids_of_two_exposures_never_meet(bits, data):
    exposure_ids = st.integers(0, 2**bits - 1)
    a, b = data.draw(exposure_ids), data.draw(exposure_ids)
    ids_a, ids_b = IdFactory(a, bits)(), IdFactory(b, bits)()
    assert (ids_a == ids_b) == (a == b)


def test_counter_overflow_raises_now_and_ever_after():
    factory = IdFactory(5, 60)
    assert [factory() for _ in range(7)] == [41, 42, 43, 44, 45, 46, 47]
    for _ in range(2):
        with pytest.raises(OverflowError, match="3 bits"):
            factory()


@pytest.mark.parametrize(("exposure_id", "bits"), [(-1, 44), (1 << 44, 44), (0, 0), (0, 63)])
def test_factory_refuses_what_does_not_fit(exposure_id, bits):
    with pytest.raises(ValueError, match=r"exposure id is|exposure_bits is"):
        IdFactory(exposure_id, bits)


@pytest.mark.parametrize(("packed", "release"), [(0, 64), (0, -1), (1 << 38, 0), (-1, 0)])
def test_release_and_exposure_must_fit(packed, release):
    with pytest.raises(ValueError, match="fits"):
        pack_release(packed, release=release)
