"""``alertprod status``: look at running daemons from a terminal."""

import json
import time
import urllib.error
import urllib.request
from typing import Annotated

import typer
from rich.console import Group
from rich.live import Live

from alertprod.cli.config import ConfigOption, JsonOption
from alertprod.cli.console import out, print_json
from alertprod.cli.settings import load_config
from alertprod.view.status import DaemonStatus, make_status_page

_TIMEOUT_S = 5.0
"""A daemon answers in milliseconds, and what does not answer is what one wants to see."""


def status(
    config: ConfigOption = None,
    url: Annotated[
        list[str] | None,
        typer.Option(help="Of a daemon, http://host:9117; repeat for more. Default: the configuration's."),
    ] = None,
    once: Annotated[bool, typer.Option("--once", help="Print once and exit: status 0 ready, 1 not.")] = False,
    every: Annotated[float, typer.Option(min=0.2, help="Seconds between looks.")] = 2.0,
    last: Annotated[int, typer.Option(min=1, help="How many of the last exposures.")] = 15,
    as_json: JsonOption = False,
) -> None:
    """Show what daemons are at: in flight, waiting, latency, the last exposures, and what is wrong. Ctrl-C ends it.

    Where standard output is no terminal it prints once.
    """
    urls = [each.rstrip("/") for each in url] if url else [_own_url(config)]
    if as_json or once or not out.is_terminal:
        found = [ask(each) for each in urls]
        if as_json:
            for each in found:
                print_json(each.as_json())
        else:
            out.print(_page(found, last))
        raise typer.Exit(0 if all(each.error is None and not each.facts["problems"] for each in found) else 1)
    try:
        with Live(console=out, screen=True, auto_refresh=False) as live:
            while True:
                live.update(_page([ask(each) for each in urls], last), refresh=True)
                time.sleep(every)
    except KeyboardInterrupt:
        return


def ask(url: str) -> DaemonStatus:
    """Return what a daemon answers."""
    from alertprod.metrics import parse_metrics  # with the Prometheus client

    try:
        facts = json.loads(_get(f"{url}/status"))
        samples = parse_metrics(_get(f"{url}/metrics"))
        facts["last_exposures"], facts["inflight_exposures"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = getattr(error, "reason", None) or error
        return DaemonStatus(url=url, facts={}, samples={}, error=f"no daemon answers: {reason}")
    return DaemonStatus(url=url, facts=facts, samples=samples)


def _page(found: list[DaemonStatus], last: int) -> Group:
    return Group(*(make_status_page(each, now_unix_s=time.time(), n_last=last) for each in found))


def _get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=_TIMEOUT_S) as answer:  # noqa: S310 - the user's own address
        return str(answer.read().decode())


def _own_url(config: ConfigOption) -> str:
    http = load_config(config).http
    host = "127.0.0.1" if http.host in ("", "0.0.0.0", "::") else http.host  # noqa: S104 - where to ask, not where to listen
    return f"http://{host}:{http.port}"
