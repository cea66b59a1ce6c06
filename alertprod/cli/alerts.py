"""``alertprod alerts``: look at alerts, check them, hand them on."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from alertprod.cli.alert_files import export, validate
from alertprod.cli.alert_options import (
    ObjectOption,
    SinceOption,
    SnrOption,
    SourcesArgument,
    UntilOption,
    find,
    make_filter,
)
from alertprod.cli.config import ConfigOption, JsonOption
from alertprod.cli.console import count, err, out, print_json
from alertprod.cli.settings import load_config

if TYPE_CHECKING:
    from alertprod.service.alert_sources import Found

app = typer.Typer(help="Look at alerts: on their topic, or in files.", no_args_is_help=True)

_CUTOUTS = ("cutoutDifference", "cutoutScience", "cutoutTemplate")


@app.command("tail")
def tail(
    config: ConfigOption = None,
    topic: Annotated[str | None, typer.Option(help="Another topic than the configuration's.")] = None,
    from_beginning: Annotated[
        bool, typer.Option("--from-beginning", help="Begin with the oldest alert there is, not with the next.")
    ] = False,
    follow: Annotated[bool, typer.Option(help="Wait for more; --no-follow stops at the end.")] = True,
    limit: Annotated[int | None, typer.Option(min=1, help="Stop after so many.")] = None,
    objects: ObjectOption = None,
    min_snr: SnrOption = None,
    output: Annotated[Path | None, typer.Option("-o", help="Write the alerts to this Avro container too.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Show alerts as they are published (committed ones only): a live table on a terminal, lines in a pipe.

    What is no alert is said, and counted, and does not end it.
    """
    from alertprod.service.alert_sources import examine
    from alertprod.stream.tail import AlertTail

    loaded = load_config(config)
    topic = topic or loaded.topics.alerts
    wanted = make_filter(None, None, objects, min_snr)
    screen = _Screen(f"{topic} on {loaded.kafka.bootstrap_servers}", as_json=as_json)

    with (
        AlertTail(
            loaded.kafka.bootstrap_servers,
            [topic],
            start="earliest" if from_beginning else "latest",
            options=loaded.kafka.client_options(),
        ) as reader,
        nullcontext() if output is None else _container(output) as keep,
        screen,
    ):
        try:
            for received in reader.messages(follow=follow):
                found = examine(received)
                if found.packet is None:
                    screen.show_unreadable(found)
                elif wanted.takes(found.packet):
                    if keep is not None:
                        keep(found.message or b"")
                    screen.show(found.packet)
                    if screen.n_alerts == limit:
                        break
        except KeyboardInterrupt:  # the usual end; what was seen is in the file
            pass
    unreadable = f", {screen.n_unreadable} unreadable" if screen.n_unreadable else ""
    err.print(f"{count(screen.n_alerts, 'alert')}{unreadable}", markup=False)


@contextmanager
def _container(path: Path) -> Iterator[Callable[[bytes], None]]:
    """Give what takes messages for a container, which appears when all is said."""
    from alertprod.alerts.avro import ContainerWriter, whole_file

    with whole_file(path) as partial, partial.open("wb") as file:
        writer = ContainerWriter(file)
        yield writer.write
        writer.close()


class _Screen:
    """Where `tail` shows alerts: JSON, a live table, or lines."""

    def __init__(self, title: str, *, as_json: bool) -> None:
        self.n_alerts = self.n_unreadable = 0
        self._as_json = as_json
        self._live: Any = nullcontext()
        self._table: Any = None
        if out.is_terminal and not as_json:
            from rich.live import Live

            from alertprod.view.live_alerts import LiveAlerts

            self._table = LiveAlerts(title)
            self._live = Live(self._table, console=out, refresh_per_second=4, vertical_overflow="crop")

    def __enter__(self) -> None:
        self._live.__enter__()

    def __exit__(self, *exception: object) -> None:
        self._live.__exit__(*exception)

    def show(self, packet: Mapping[str, Any]) -> None:
        self.n_alerts += 1
        if self._as_json:
            print_json(_without_bytes(packet))
        elif self._table is not None:
            self._table.add(packet)
        else:
            from alertprod.view.live_alerts import describe_line

            out.print(describe_line(packet), markup=False)

    def show_unreadable(self, found: "Found") -> None:
        self.n_unreadable += 1
        if self._table is not None:
            self._table.add_unreadable(f"{found.where}: {found.problem}")
        else:
            err.print(f"{found.where}: {found.problem}", markup=False, style="red")


@app.command("show")
def show(
    sources: SourcesArgument = None,
    config: ConfigOption = None,
    alert_id: Annotated[int | None, typer.Option("--id", help="Show this DiaSource's alert.")] = None,
    since: SinceOption = None,
    until: UntilOption = None,
    objects: ObjectOption = None,
    min_snr: SnrOption = None,
    png: Annotated[
        Path | None, typer.Option(help="Draw the page of one alert to this PNG; of one object's, the latest.")
    ] = None,
    triplets: Annotated[Path | None, typer.Option(help="Draw the cutouts of several to this PNG.")] = None,
    light_curves: Annotated[Path | None, typer.Option(help="Draw the objects' light curves to this PNG.")] = None,
    draw: Annotated[
        bool | None,
        typer.Option("--draw/--no-draw", help="Draw one alert's pictures with characters; else on a terminal only."),
    ] = None,
    whole: Annotated[bool, typer.Option("--whole", help="Print every field of one alert.")] = False,
    most: Annotated[int, typer.Option(min=1, help="Alerts or objects in a picture, rows in a table.")] = 24,
    as_json: JsonOption = False,
) -> None:
    """Show alerts: a table of several, one with its pictures and light curve, or PNG files."""
    wanted = make_filter(since, until, objects, min_snr)
    packets = [packet for packet in (found.take() for found in find(sources, config)) if wanted.takes(packet)]
    if alert_id is not None:
        packets = [packet for packet in packets if packet["diaSourceId"] == alert_id]
    if not packets:
        where = ", ".join(sources) if sources else "the topic"
        err.print(f"{where}: no alert" + (f" of DiaSource {alert_id}" if alert_id is not None else ""), markup=False)
        raise typer.Exit(1)
    if png is not None:
        _save_page(packets, png)
    if triplets is not None:
        from alertprod.view.triplets import save_triplets

        err.print(f"{triplets}: {save_triplets(packets, triplets, max_alerts=most)} alerts", markup=False)
    if light_curves is not None:
        from alertprod.view.light_curves import save_light_curves

        err.print(f"{light_curves}: {save_light_curves(packets, light_curves, max_objects=most)} objects", markup=False)
    is_drawn = not (png is triplets is light_curves is None)
    if as_json:
        for packet in packets:
            print_json(_without_bytes(packet))
    elif is_drawn:
        return
    elif alert_id is not None or len(packets) == 1:
        _print_one(packets[0], whole=whole, draw=out.is_terminal if draw is None else draw)
    else:
        from alertprod.view.tables import make_alerts_table

        out.print(make_alerts_table(packets[:most]))
        if len(packets) > most:
            err.print(f"{len(packets) - most} more; --most shows them", markup=False)


def _save_page(packets: list[dict[str, Any]], path: Path) -> None:
    objects = {packet["diaSource"]["diaObjectId"] or packet["diaSource"]["ssObjectId"] for packet in packets}
    if len(objects) > 1:
        err.print(
            f"{len(packets)} alerts of {len(objects)} objects: --png draws one alert; --id or --object names it",
            markup=False,
        )
        raise typer.Exit(2)
    from alertprod.view.alert_page import save_alert_page

    latest = max(packets, key=lambda packet: (packet["diaSource"]["midpointMjdTai"], packet["diaSourceId"]))
    save_alert_page(latest, path)
    err.print(f"{path}: alert {latest['diaSourceId']}", markup=False)


def _print_one(packet: Mapping[str, Any], *, whole: bool, draw: bool) -> None:
    if whole:
        out.print(_without_bytes(packet))
        return
    from alertprod.view.alert_page import make_facts_table
    from alertprod.view.terminal_pictures import draw_light_curve, draw_triplet

    out.print(make_facts_table(packet))
    if draw:
        out.print()
        out.print(draw_triplet(packet, width=out.width))
        out.print(draw_light_curve(packet, width=min(out.width, 100)))


app.command("validate")(validate)
app.command("export")(export)


def _without_bytes(packet: Mapping[str, Any]) -> dict[str, Any]:
    """Return the packet with its cutouts as their lengths."""
    lengths = {name: None if packet[name] is None else f"{len(packet[name])} bytes" for name in _CUTOUTS}
    return {**packet, **lengths}
