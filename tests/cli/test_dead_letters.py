"""The list of dead letters; what lists, shows and replays them on a real Kafka is in ``scenarios/test_operating``."""

from rich.console import Console

from alertprod.cli.dead_letters import _Letter, _make_list
from alertprod.store.ledger import ExposureKey, LedgerState
from alertprod.stream.dead_letter import DeadLetter
from alertprod.stream.records import Received

TOLD = DeadLetter(
    topic="visit-ready", partition=2, offset=17, stage="compute", reason="insufficient_kernel_sources",
    exception="InsufficientKernelSources", message="2 sources for the kernel, 6 are needed: " + "clouds " * 40,
    attempts=1, instrument="LSSTCam", visit=2026112200017, detector=188, version="1.0", sent_at_ms=1_800_000_000_000,
)  # fmt: skip


def test_eighty_columns_hold_name_reason_and_time_of_a_dead_letter_whole():
    first, second = (Received(topic="dead", partition=0, offset=n, key=b"", value=b"") for n in (1234, 1235))
    letters = [_Letter(first, TOLD), _Letter(second, None)]
    table = _make_list(letters, {ExposureKey("LSSTCam", 2026112200017, 188): LedgerState.DEAD_LETTERED})
    console = Console(width=80, record=True, file=open("/dev/null", "w"))  # noqa: SIM115, PTH123 - as long as the console
    with console.file:
        console.print(table)
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= 80
    for words in ("0:1234", "LSSTCam/2026112200017/188", "2027-01-15 08:00:00", "dead_lettered"):
        assert words in text
    assert "insufficient_kernel_sources" in "".join(line[-34:].strip() for line in text.splitlines())
    assert "(not a dead letter)" in text
