import io

from rich.console import Console

from alertprod.view.tables import make_alerts_table, make_exposures_table


def render(table, *, width=220):
    console = Console(file=io.StringIO(), width=width)
    console.print(table)
    return console.file.getvalue()


def test_alerts_have_a_row_each(packets):
    text = render(make_alerts_table(packets[-4:]))
    for packet in packets[-4:]:
        assert str(packet["diaSourceId"]) in text
        assert f"{packet['diaSource']['snr']:.1f}" in text
    assert text.count("negative") == 1
    assert text.count("dipole") == 1


def test_eighty_columns_hold_the_longest_ids_whole(packets):
    longest = (1 << 63) - 1
    source = packets[0]["diaSource"] | {"diaSourceId": longest, "diaObjectId": longest - 1, "visit": 2025112100001}
    source |= {"detector": 188, "ra": 359.996741, "psfFlux": -1234567.8, "psfFluxErr": 12345.6, "isNegative": True}
    text = render(make_alerts_table([{**packets[0], "diaSource": source}]), width=80)
    for whole in (str(longest), str(longest - 1), "2025112100001/188", "359.996741", "-1234568", "12346", "negative"):
        assert whole in text
    assert max(map(len, text.splitlines())) <= 80


def test_null_is_a_dash(packets):
    packet = {
        **packets[0],
        "diaObject": None,
        "diaSource": {**packets[0]["diaSource"], "snr": None, "diaObjectId": None},
    }
    assert render(make_alerts_table([packet])).split().count("-") == 3  # object, S/N, number of sources


def summary(visit, outcome="published", reason=None):
    return {
        "visit": visit, "detector": 0, "band": "r", "outcome": outcome, "reason": reason, "n_alerts": 3,
        "counts": {"new_objects": 2}, "stage_seconds": {"subtract": 1.5, "store": 0.25}, "latency_s": None,
        "figures": {"kernel_sum": 1.0123},
    }  # fmt: skip


def test_exposures_are_summed_up():
    text = render(make_exposures_table([summary(1), summary(2, "skipped", "no_template_coverage")]))
    assert "skipped (no_template_coverage)" in text
    assert "1.012" in text
    assert "1.8" in text.split()
    (totals,) = (line for line in text.splitlines() if "2 in all" in line)
    assert totals.split() == ["2", "in", "all", "6", "4", "3.5"]


def test_one_exposure_needs_no_totals():
    assert "in all" not in render(make_exposures_table([summary(1)]))


def test_eighty_columns_hold_the_seconds_of_a_slow_machine():
    slow = summary(2026112200017) | {"stage_seconds": {"compute": 135.7}, "latency_s": 1234.5}
    text = render(make_exposures_table([slow, slow]), width=80)
    assert max(map(len, text.splitlines())) <= 80
    assert {"135.7", "271.4", "1234.5", "2026112200017"} <= set(text.split())
