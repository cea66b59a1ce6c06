"""``alertprod config``: what the daemon would use, and whether it can."""

from pathlib import Path
from typing import Annotated

import typer

from alertprod.cli.console import out, print_json
from alertprod.cli.settings import load_config

app = typer.Typer(help="Show or check a configuration.", no_args_is_help=True)

ConfigOption = Annotated[
    Path | None, typer.Option("--config", "-c", help="TOML file; without it, defaults and the environment.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for a program.")]


@app.command("show")
def show(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Print every setting as the daemon would use it, secrets starred out."""
    from alertprod.config import redacted

    data = redacted(load_config(config))
    if as_json:
        print_json(data)
        return
    for section, values in data.items():
        out.print(f"[bold]\\[{section}][/bold]")
        for name, value in values.items():
            out.print(f"  {name} = {value!r}", markup=False)


@app.command("check")
def check(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Check the file, every profile it names and every task override; exit status 2 where something is wrong."""
    from alertprod.config import config_hash
    from alertprod.factory import check_config  # brings the science in, which `show` does not need

    loaded = load_config(config)
    facts = check_config(loaded, source=str(config or "environment"))
    if as_json:
        print_json({"ok": True, "config_hash": config_hash(loaded), **facts})
        return
    out.print(f"{config or 'environment'}: good (hash {config_hash(loaded)[:12]})", markup=False)
    for name, value in facts.items():
        out.print(f"  {name}: {value}", markup=False)
