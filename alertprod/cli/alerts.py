"""``alertprod alerts``: look at alerts, on their topic or in a file."""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from alertprod.cli.config import ConfigOption, JsonOption
from alertprod.cli.console import err, out, print_json
from alertprod.config import load_config
from alertprod.errors import SchemaMismatch

app = typer.Typer(help="Look at alerts: on their topic, or in a file.", no_args_is_help=True)

_CUTOUTS = ("cutoutDifference", "cutoutScience", "cutoutTemplate")


@app.command("tail")
def tail(
    config: ConfigOption = None,
    from_beginning: Annotated[
        bool, typer.Option("--from-beginning", help="Begin with the oldest alert there is, not with the next.")
    ] = False,
    follow: Annotated[bool, typer.Option(help="Wait for more; --no-follow stops at the end.")] = True,
    limit: Annotated[int | None, typer.Option(min=1, help="Stop after so many.")] = None,
    output: Annotated[Path | None, typer.Option("-o", help="Write the alerts to this Avro container too.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Print alerts as they are published (committed ones only), one line each."""
    from alertprod.alerts.avro import decode_alert, write_alerts
    from alertprod.stream.tail import AlertTail

    loaded = load_config(config)
    with AlertTail(
        loaded.kafka.bootstrap_servers,
        [loaded.topics.alerts],
        start="earliest" if from_beginning else "latest",
        options=loaded.kafka.client_options(),
    ) as reader:

        def packets() -> Iterator[dict[str, Any]]:
            for message in itertools.islice(reader.messages(follow=follow), limit):
                packet = decode_alert(message.value or b"")
                _print_line(packet, as_json=as_json)
                yield packet

        try:
            n = write_alerts(output, packets()) if output is not None else sum(1 for _ in packets())
        except KeyboardInterrupt:
            return
    err.print(f"{n} alerts", markup=False)


@app.command("show")
def show(
    file: Annotated[Path, typer.Argument(help="Avro container of alerts, or one message's bytes.")],
    alert_id: Annotated[int | None, typer.Option("--id", help="Show this DiaSource's alert whole.")] = None,
    triplets: Annotated[Path | None, typer.Option(help="Draw the cutouts to this PNG.")] = None,
    light_curves: Annotated[Path | None, typer.Option(help="Draw the objects' light curves to this PNG.")] = None,
    most: Annotated[int, typer.Option(min=1, help="Alerts or objects in a picture, rows in a table.")] = 24,
    as_json: JsonOption = False,
) -> None:
    """Show the alerts of a file: a table, one alert whole, or pictures."""
    packets = list(_read(file))
    if alert_id is not None:
        packets = [packet for packet in packets if packet["diaSourceId"] == alert_id]
    if not packets:
        err.print(f"{file}: no alert" + (f" of DiaSource {alert_id}" if alert_id is not None else ""), markup=False)
        raise typer.Exit(1)
    if triplets is not None:
        from alertprod.view.triplets import save_triplets

        err.print(f"{triplets}: {save_triplets(packets, triplets, max_alerts=most)} alerts", markup=False)
    if light_curves is not None:
        from alertprod.view.light_curves import save_light_curves

        err.print(f"{light_curves}: {save_light_curves(packets, light_curves, max_objects=most)} objects", markup=False)
    if as_json:
        for packet in packets:
            print_json(_without_bytes(packet))
    elif alert_id is not None:
        out.print(_without_bytes(packets[0]))
    elif triplets is None and light_curves is None:
        from alertprod.view.tables import make_alerts_table

        out.print(make_alerts_table(packets[:most]))
        if len(packets) > most:
            err.print(f"{len(packets) - most} more; --most shows them", markup=False)


def _read(file: Path) -> Iterator[dict[str, Any]]:
    """Yield the alerts of a container, or the one whose message the file holds."""
    from alertprod.alerts.avro import decode_alert, read_alerts

    with file.open("rb") as stream:
        is_message = stream.read(1) == b"\x00"
    try:
        if is_message:
            yield decode_alert(file.read_bytes())
        else:
            yield from read_alerts(file)
    except SchemaMismatch as error:
        raise SchemaMismatch(f"{file}: {error}") from error


def _print_line(packet: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print_json(_without_bytes(packet))
        return
    source = packet["diaSource"]
    history = len(packet["prvDiaSources"] or ())
    out.print(
        f"{source['midpointMjdTai']:.5f} {source['visit']}/{source['detector']} {source['band']}"
        f" object {source['diaObjectId']} ra {source['ra']:.6f} dec {source['dec']:+.6f}"
        f" flux {source['psfFlux'] if source['psfFlux'] is not None else float('nan'):.0f} nJy"
        f" S/N {source['snr']:.1f} history {history}",
        markup=False,
    )


def _without_bytes(packet: dict[str, Any]) -> dict[str, Any]:
    """Return the packet with its cutouts as their lengths."""
    lengths = {name: None if packet[name] is None else f"{len(packet[name])} bytes" for name in _CUTOUTS}
    return {**packet, **lengths}
