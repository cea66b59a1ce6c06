from schema_registry_server import Registry, RegistryServer

from alertprod.alerts.registry import ALERT_SCHEMA_ID


def test_the_alert_schema_has_its_id_and_fingerprint(alertprod):
    ran = alertprod("schemas", "ls", "--json")
    assert ran.status == 0
    rows = {row["name"]: row for row in ran.json}
    alert = rows["lsst.v11_1.alert"]
    # Of the published schema: what brokers look up and what its canonical form hashes to.
    assert (alert["version"], alert["schema_id"], alert["fingerprint"]) == ("11.1", 1101, "a960816bc1c3d70c")
    assert alert["schema_id"] == ALERT_SCHEMA_ID
    assert {name for name in rows if name.startswith("alertprod.v1.")} == {
        "alertprod.v1.visit_ready",
        "alertprod.v1.next_visit",
        "alertprod.v1.visit_summary",
        "alertprod.v1.dead_letter",
    }


def test_no_two_schemas_share_an_id(alertprod):
    ids = [row["schema_id"] for row in alertprod("schemas", "ls", "--json").json]
    assert len(ids) == len(set(ids))


def test_the_table_says_the_same(alertprod):
    ran = alertprod("schemas", "ls")
    assert ran.status == 0
    assert [
        line
        for line in ran.out.splitlines()
        if "lsst.v11_1.alert" in line and "1101" in line and "a960816bc1c3d70c" in line
    ]


def test_the_alert_schema_is_registered(alertprod, write_config):
    config = write_config("[topics]\nalerts = 'night'")
    with RegistryServer() as server:
        ran = alertprod("schemas", "register", server.url, "-c", config, "--json")
        assert ran.status == 0
        assert ran.json == [
            {"subject": "alert-packet", "schema_id": 1101, "outcome": "registered"},
            {"subject": "night-value", "schema_id": 1101, "outcome": "registered"},
        ]
        assert "night-value: id 1101 registered" in ran.words
        ran = alertprod("schemas", "register", server.url, "-c", config, "--events", "--subject", "mine")
        assert ran.status == 0
        assert "mine: id 1101 registered" in ran.words
        assert "visit-summary-value: id 3 registered" in ran.words
        assert set(server.registry.subjects) == {
            "alert-packet", "night-value", "mine", "visit-ready-value", "next-visit-value", "visit-summary-value",
        }  # fmt: skip


def test_without_a_url_it_is_the_configurations_registry_with_its_authorization(alertprod, write_config, tmp_path):
    (tmp_path / "authorization").write_text("Basic eA==\n")
    with RegistryServer() as server:
        config = write_config(
            f"[kafka]\nregistry_url = '{server.url}'\nregistry_authorization_file = '{tmp_path / 'authorization'}'"
        )
        ran = alertprod("schemas", "register", "-c", config)
        assert ran.status == 0, ran.err
        assert set(server.registry.subjects) == {"alert-packet", "alerts-value"}
        assert set(server.registry.authorizations) == {"Basic eA=="}
    ran = alertprod("schemas", "register", "-c", write_config())
    assert ran.status == 2
    assert "kafka.registry_url" in ran.words


def test_a_registry_that_says_no_is_quoted(alertprod):
    with RegistryServer(Registry(has_modes=False)) as server:
        ran = alertprod("schemas", "register", server.url)
        assert ran.status == 1
        assert "registry_refused: " in ran.words
        assert "it has no modes" in ran.words
    ran = alertprod("schemas", "register", "http://127.0.0.1:9")
    assert ran.status == 1
    assert "registry_unavailable: " in ran.words
    assert alertprod("schemas", "register", "file:///etc").status == 2
