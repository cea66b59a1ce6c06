import hashlib

from alertprod.alerts.registry import compute_canonical_form, list_schemas, load_alert_schema, record_fields

# Of the schema as Rubin publishes it: 11.1 in parsing canonical form.
CANONICAL_LENGTH = 14603
CANONICAL_CRC = "a960816bc1c3d70c"
CANONICAL_SHA256 = "9aa444ad610374fc167b7f7124a77f58b2d7d819a13b1b6d01cb1e265c783f27"


def test_schema_is_rubins_to_the_last_field():
    canonical = compute_canonical_form()
    assert len(canonical) == CANONICAL_LENGTH
    assert hashlib.sha256(canonical.encode()).hexdigest() == CANONICAL_SHA256


def test_facts_carry_id_version_and_fingerprint():
    (facts,) = list_schemas()
    assert (facts.schema_id, facts.version, facts.fingerprint) == (1101, "11.1", CANONICAL_CRC)
    assert facts.n_fields == 12


def test_nullable_fields_default_to_null_and_required_ones_have_no_default():
    def walk(schema):
        if isinstance(schema, list):
            for part in schema:
                yield from walk(part)
        elif isinstance(schema, dict):
            for field in schema.get("fields", ()):
                yield field
                yield from walk(field["type"])
            yield from walk(schema.get("items"))

    fields = list(walk(load_alert_schema()))
    assert len(fields) == 12 + 102 + 14 + 82 + 39 + 53
    for field in fields:
        assert ("default" in field) == isinstance(field["type"], list)
        assert field.get("default") is None
        assert field["doc"].endswith(".")


def test_record_fields_tell_what_may_be_null():
    fields = record_fields("diaSource")
    assert list(fields)[:3] == ["diaSourceId", "visit", "detector"]
    assert not fields["psfNdata"]
    assert fields["psfFlux"]
