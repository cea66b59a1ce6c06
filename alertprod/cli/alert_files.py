"""``alertprod alerts validate`` and ``export``: go through many alerts."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

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
from alertprod.cli.console import count, err, out, print_json, progress_bar

_STYLES = {"error": "red", "warning": "yellow"}


def validate(
    sources: SourcesArgument = None,
    config: ConfigOption = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Errors only, no warnings.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Check alerts against the schema, against themselves and against their headers, and name every finding.

    Exit status 0 where nothing is wrong (odd may be), 1 where something is.
    """
    from alertprod.alerts.validation import Finding, left_out_of, validate_envelope, validate_packet

    counts: Counter[str] = Counter()
    seen: set[int] = set()
    with progress_bar() as progress:
        task = progress.add_task("alerts checked", total=None)
        for found in find(sources, config):
            counts["alerts"] += 1
            progress.advance(task)
            if found.packet is None:
                findings = [Finding("error", "message", found.problem)]
            else:
                findings = validate_packet(found.packet, left_out=left_out_of(found.headers))
                if found.headers is not None:
                    findings += validate_envelope(found.packet, key=found.key, headers=found.headers)
                if found.packet["diaSourceId"] in seen:
                    findings.append(Finding("warning", "diaSourceId", "was there before: a replay, or a duplicate"))
                seen.add(found.packet["diaSourceId"])
            for finding in findings:
                counts[finding.level] += 1
                if quiet and finding.level == "warning":
                    continue
                if as_json:
                    print_json({"where": found.where, **finding._asdict()})
                else:
                    out.print(f"{found.where}: ", end="", markup=False)
                    out.print(finding.level, style=_STYLES[finding.level], end="")
                    out.print(f": {finding.field}: {finding.problem}", markup=False)
    if not counts["alerts"]:
        err.print(f"{', '.join(sources) if sources else 'the topic'}: no alert to check", markup=False)
        raise typer.Exit(1)
    findings_text = ", ".join(count(counts[level], level) for level in ("error", "warning"))
    err.print(f"{count(counts['alerts'], 'alert')}: {findings_text}", markup=False)
    if counts["error"]:
        raise typer.Exit(1)


def export(
    output: Annotated[Path, typer.Option("-o", help="File to write; with --each, a folder.", show_default=False)],
    sources: SourcesArgument = None,
    config: ConfigOption = None,
    file_format: Annotated[
        str | None, typer.Option("--format", help="avro, parquet or ecsv; without it, what the file's name ends in.")
    ] = None,
    each: Annotated[
        bool, typer.Option("--each", help="One Avro container an alert, called by its id, as ZTF has them.")
    ] = False,
    since: SinceOption = None,
    until: UntilOption = None,
    objects: ObjectOption = None,
    min_snr: SnrOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write alerts to a file for other programs: an Avro container, Parquet (both whole), or ECSV (a table of sources)."""
    from alertprod.alerts.export import FORMATS, ExportItem, export_alerts, export_each, guess_format

    if each and file_format not in (None, "avro"):
        raise typer.BadParameter("--each writes Avro containers")
    if file_format is not None and file_format not in FORMATS:
        raise typer.BadParameter(f"{file_format!r} is none of {', '.join(FORMATS)}", param_hint="--format")
    wanted = make_filter(since, until, objects, min_snr)
    n_read = 0

    with progress_bar() as progress:
        task = progress.add_task("alerts read", total=None)

        def items() -> Iterator[ExportItem]:
            nonlocal n_read
            for found in find(sources, config):
                packet = found.take()
                n_read += 1
                progress.advance(task)
                if wanted.takes(packet):
                    yield ExportItem(packet, found.message)

        if each:
            n = export_each(items(), output)
        else:
            name = guess_format(output) if file_format is None else next(f for f in FORMATS if f == file_format)
            n = export_alerts(items(), output, name)
    if as_json:
        print_json({"output": str(output), "n_alerts": n, "n_read": n_read})
    err.print(f"{output}: {n} of {n_read} alerts", markup=False)
