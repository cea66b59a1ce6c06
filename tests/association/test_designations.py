import pytest
from hypothesis import given
from hypothesis import strategies as st

from alertprod.association.designations import compute_ss_object_id, pack_designation


# Examples of the Minor Planet Center's own page on packed designations.
@pytest.mark.parametrize(
    ("designation", "packed"),
    [
        ("1995 XA", "J95X00A"),
        ("1995 XL1", "J95X01L"),
        ("1995 FB13", "J95F13B"),
        ("1998 SQ108", "J98SA8Q"),
        ("1998 SV127", "J98SC7V"),
        ("1998 SS162", "J98SG2S"),
        ("2099 AZ193", "K99AJ3Z"),
        ("2008 AA360", "K08Aa0A"),
        ("2007 TA418", "K07Tf8A"),
        ("2040 P-L", "PLS2040"),
        ("3138 T-1", "T1S3138"),
        ("4101 T-3", "T3S4101"),
        ("2026 CA620", "_QC0000"),
        ("2026 CZ6190", "_QC0aEM"),
        ("2026 CL591673", "_QCzzzz"),
        ("3202", "03202"),
        ("50000", "50000"),
        ("100000", "A0000"),
        ("203289", "K3289"),
        ("360017", "a0017"),
        ("620000", "~0000"),
        ("620061", "~000z"),
        ("3140113", "~AZaz"),
        ("15396335", "~zzzz"),
        ("(433) Eros", "00433"),
        ("1P/Halley", "0001P"),
        ("C/1995 O1 (Hale-Bopp)", "CJ95O010"),
        ("D/1993 F2-A", "DJ93F02a"),
        ("C/2015 ER61", "CK15E61R"),
        ("J95X00A", "J95X00A"),
    ],
)
def test_designations_are_packed_as_the_minor_planet_center_packs_them(designation, packed):
    assert pack_designation(designation) == packed
    assert pack_designation(f"  {designation.replace(' ', '  ')} ") == packed
    assert compute_ss_object_id(designation) == int.from_bytes(packed.encode(), "big")


@pytest.mark.parametrize("name", ["my rock", "", "2026 IA1", "2026 CL591674", "15396336", "99999 XA", "C/2020 F3 x"])
def test_other_names_have_no_packed_form_and_still_an_id(name):
    assert pack_designation(name) is None
    assert 0 < compute_ss_object_id(name) < 2**63


def test_the_id_of_a_name_never_changes():
    assert compute_ss_object_id("2011 UN63") == int.from_bytes(b"K11U63N", "big")
    assert compute_ss_object_id("my rock") == compute_ss_object_id(" my  rock")
    assert compute_ss_object_id("my rock") == 4202299045164016139


@given(st.integers(1, 2**70), st.integers(1, 2**70))
def test_ids_have_63_bits_and_tell_names_apart(one, other):
    ids = compute_ss_object_id(str(one)), compute_ss_object_id(str(other))
    assert all(0 < identity < 2**63 for identity in ids)
    assert (ids[0] == ids[1]) == (one == other)
