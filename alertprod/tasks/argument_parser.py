"""The command line of a task: repository, data ids, configuration overrides, and how to run.

Overrides apply in the order in which they stand on the command line, after the task's own.
"""

import argparse
import copy
import fnmatch
import logging
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from lsst.pex.config import Config, ConfigurableField, RegistryField

from alertprod import __version__
from alertprod.config import LogConfig
from alertprod.errors import AlertprodError, ConfigError
from alertprod.logs import configure_logs
from alertprod.tasks.config_fields import read_settings, set_fields, validate_config
from alertprod.tasks.data_ids import format_data_id, list_missing, read_data_ids
from alertprod.tasks.plugins import open_repository
from alertprod.tasks.protocols import Butler, DataId, DataRef

LEVELS: tuple[Literal["debug", "info", "warning", "error"], ...] = ("debug", "info", "warning", "error")

DEFAULT_TIMEOUT_S = 30 * 24 * 3600.0
"""Of one data id: longer than anything but a hang."""

_SHOWN = ("config", "data", "tasks", "run")


@dataclass(slots=True)
class DataIdContainer:
    """What the uses of one data id argument gave: the partial ids that were said, and what the repository has of them."""

    datasetType: str
    idList: list[DataId] = field(default_factory=list)
    refList: list[DataRef] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _IdArgument:
    name: str
    datasetType: str
    makeDataRefList: bool


class ArgumentParser(argparse.ArgumentParser):
    """Parses the command line of a task.

    Parameters
    ----------
    name
        The task's, for usage and help.
    description
        What it does, one sentence.
    """

    def __init__(self, name: str, description: str | None = None) -> None:
        super().__init__(
            prog=name,
            usage=f"{name} REPO --id [KEY=VALUE ...] [options]",
            description=description,
            epilog=_EPILOG,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            fromfile_prefix_chars="@",
            allow_abbrev=False,
        )
        self._id_arguments: list[_IdArgument] = []
        self.add_argument("input", metavar="REPO", help="repository of exposures and templates")
        self.add_argument("--output", metavar="DIR", help="where results go; REPO itself by default")
        self._add_config_arguments()
        self._add_run_arguments()

    def add_id_argument(self, name: str, datasetType: str, help: str, makeDataRefList: bool = True) -> None:  # noqa: A002  the field's name
        """Add an argument that takes data ids; the namespace gets a `DataIdContainer` of that name.

        Parameters
        ----------
        name
            "--id", for example.
        datasetType
            What must be there of an id.
        makeDataRefList
            Look the ids up; else they stay as they were said, and partial.
        """
        self.add_argument(name, nargs="*", action="append", default=[], metavar="KEY=VALUE", help=help)
        self._id_arguments.append(_IdArgument(name.lstrip("-"), datasetType, makeDataRefList))

    def parse_args(  # type: ignore[override]  # the field's signature: a command line is read for a configuration
        self,
        config: Config,
        args: Sequence[str] | None = None,
        log: logging.Logger | None = None,
        override: Callable[[Config], None] | None = None,
    ) -> argparse.Namespace:
        """Parse a command line, open its repository, find its data.

        Parameters
        ----------
        config
            Configuration to start from; it is not changed.
        args
            Words; those of this process by default.
        log
            Logger of the task. Without one, log lines of the whole process go to standard error.
        override
            Called on the configuration before the command line's overrides.

        Returns
        -------
        argparse.Namespace
            The options under their names, and: butler; config, validated and frozen; log; one `DataIdContainer` for
            each id argument.

        Raises
        ------
        SystemExit
            Raised with status 2 for wrong usage, and with 0 after ``--show`` without "run", and after ``--help``.
        """
        namespace = super().parse_args(args)
        namespace.levels = self._read_levels(namespace.loglevel)
        configure_task_logs(namespace.levels, own_handlers=log is None)
        namespace.log = log
        namespace.config = self._configure(copy.deepcopy(config), namespace.overrides, override)
        try:
            namespace.butler = open_repository(namespace.input, output=namespace.output)
            for argument in self._id_arguments:
                said: list[list[str]] = getattr(namespace, argument.name)
                setattr(namespace, argument.name, self._find_data(argument, said, namespace.butler))
        except AlertprodError as error:
            self.error(str(error))
        if namespace.show and not self._show(namespace):
            self.exit()
        return namespace

    def convert_arg_line_to_args(self, arg_line: str) -> list[str]:
        """Split a line of an @file into words; # begins a comment."""
        return shlex.split(arg_line, comments=True)

    def _add_config_arguments(self) -> None:
        group = self.add_argument_group("configuration")
        group.add_argument(
            "-c",
            "--config",
            nargs="+",
            action=_AppendOverrides,
            dest="overrides",
            default=[],
            metavar="NAME=VALUE",
            help="set fields: -c detection.thresholdValue=6 doMerge=False",
        )
        group.add_argument(
            "-C",
            "--configfile",
            nargs="+",
            action=_AppendOverrides,
            dest="overrides",
            metavar="FILE",
            help="run Python files that set fields of `config`; what --show config prints is one",
        )
        group.add_argument(
            "--clobber-config",
            action="store_true",
            dest="clobberConfig",
            help="replace configuration, schemas and versions that an earlier run left, where they differ",
        )
        group.add_argument(
            "--no-backup-config",
            action="store_true",
            dest="noBackupConfig",
            help="do not keep what --clobber-config replaces",
        )
        group.add_argument(
            "--no-versions", action="store_true", dest="noVersions", help="neither write nor compare package versions"
        )
        group.add_argument(
            "--show",
            nargs="+",
            default=[],
            metavar="WHAT",
            help="print config, config=PATTERN, data or tasks, and stop; add run to go on",
        )

    def _add_run_arguments(self) -> None:
        group = self.add_argument_group("running")
        group.add_argument(
            "-j",
            "--processes",
            type=_read_count,
            default=1,
            metavar="N",
            help="data ids that run at a time (default: 1)",
        )
        group.add_argument(
            "-t",
            "--timeout",
            type=float,
            default=DEFAULT_TIMEOUT_S,
            metavar="S",
            help="with -j: give a data id up after so many seconds (default: 30 days)",
        )
        group.add_argument(
            "-L",
            "--loglevel",
            nargs="+",
            action="extend",
            default=[],
            metavar="LEVEL|TASK=LEVEL",
            help=f"{', '.join(LEVELS)} (default: info), of all or of a subtask: imageDifference.detection=debug",
        )
        group.add_argument("--debug", metavar="DIR", help="draw pictures of the steps into a folder")
        group.add_argument(
            "--doraise", action="store_true", help="stop with the traceback of the first failure instead of going on"
        )
        group.add_argument(
            "--noExit",
            action="store_true",
            help="return after failures, for callers in Python; else they are the status",
        )
        group.add_argument("--version", action="version", version=f"alertprod {__version__}")

    def _configure(
        self, config: Config, overrides: list[tuple[str, str]], override: Callable[[Config], None] | None
    ) -> Config:
        if override is not None:
            override(config)
        source = "configuration"
        try:
            for source, word in overrides:
                if source == "--config":
                    set_fields(config, read_settings([word], source=source), source=source)
                else:
                    _load_file(config, word)
            validate_config(config, source=source)
        except ConfigError as error:
            self.error(str(error))
        config.freeze()
        return config

    def _read_levels(self, words: list[str]) -> dict[str, str]:
        """Return levels by logger; "" is everything."""
        levels: dict[str, str] = {}
        for word in words:
            component, separator, level = word.rpartition("=")
            level = level.lower()
            if level not in LEVELS or (separator and not component):
                self.error(f"--loglevel {word}: one of {', '.join(LEVELS)} is needed, or TASK=LEVEL")
            if component and component.split(".")[0] != "alertprod":
                component = f"alertprod.{component}"
            levels[component] = level
        return levels

    def _find_data(self, argument: _IdArgument, said: list[list[str]], butler: Butler) -> DataIdContainer:
        found = DataIdContainer(argument.datasetType)
        keys = butler.keys(argument.datasetType)
        for words in said:
            try:
                ids = read_data_ids(words, keys)
            except ValueError as error:
                self.error(f"--{argument.name}: {error}")
            found.idList.extend(ids)
            if not argument.makeDataRefList:
                continue
            refs = butler.subset(argument.datasetType, ids)
            found.refList.extend(refs)
            if missing := list_missing(ids, [ref.dataId for ref in refs]):
                said_words = " ".join([f"--{argument.name}", *words])
                first = format_data_id(missing[0]) or "anything"
                text = "%s: %d of %d data ids have no %s; the first: %s"
                _LOG.warning(text, said_words, len(missing), len(ids), argument.datasetType, first)
        found.refList = list({format_data_id(ref.dataId): ref for ref in found.refList}.values())
        return found

    def _show(self, namespace: argparse.Namespace) -> bool:
        """Print what is asked for; True where the task is to run all the same."""
        for word in namespace.show:
            what, _, pattern = word.partition("=")
            if what not in _SHOWN or (pattern and what != "config"):
                self.error(f"--show {word}: one of {', '.join(_SHOWN)} or config=PATTERN is needed")
            if what == "config":
                self._print(_format_config(namespace.config, pattern))
            elif what == "tasks":
                self._print("".join(f"{name}: {task}\n" for name, task in list_tasks(namespace.config)))
            elif what == "data":
                for argument in self._id_arguments:
                    container: DataIdContainer = getattr(namespace, argument.name)
                    ids = [ref.dataId for ref in container.refList] if argument.makeDataRefList else container.idList
                    self._print("".join(f"{argument.name} {format_data_id(dataId)}\n" for dataId in ids))
        return "run" in namespace.show

    def _print(self, text: str) -> None:
        self._print_message(text, sys.stdout)


def configure_task_logs(levels: dict[str, str], *, own_handlers: bool) -> None:
    """Set levels by logger, "" for all; with `own_handlers` send every line to standard error, as text."""
    if own_handlers:
        level = next((known for known in LEVELS if known == levels.get("")), "info")
        configure_logs(LogConfig(level=level, format="console"))
    for name, level_name in levels.items():
        if name or not own_handlers:
            logging.getLogger(name or "alertprod").setLevel(level_name.upper())


def list_tasks(config: Config, path: str = "") -> list[tuple[str, str]]:
    """Return (dotted field name, class) of every subtask that a configuration names, those of its subtasks too."""
    found = []
    for name, kind in config._fields.items():
        value = getattr(config, name)
        full = f"{path}{name}"
        if isinstance(kind, ConfigurableField | RegistryField):
            target = value.target
            found.append((full, f"{target.__module__}.{target.__qualname__}"))
            value = value.value if isinstance(kind, ConfigurableField) else value.active
        if isinstance(value, Config):
            found.extend(list_tasks(value, f"{full}."))
    return found


_LOG = logging.getLogger(__name__)


class _AppendOverrides(argparse.Action):
    """Keeps overrides in the order of the command line, whichever of the two options they came by."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        del parser, option_string
        source = self.option_strings[-1]
        setattr(namespace, self.dest, [*getattr(namespace, self.dest), *((source, value) for value in values)])


def _read_count(text: str) -> int:
    count = int(text)
    if count < 1:
        raise ValueError(text)
    return count


_read_count.__name__ = "number of processes"  # argparse puts it into its message


def _load_file(config: Config, name: str) -> None:
    if not Path(name).is_file():
        raise ConfigError(name, "(file)", "no such file")
    try:
        config.load(name)
    except Exception as error:  # it is a program of the user's, which can raise anything
        raise ConfigError(name, "(file)", f"{type(error).__name__}: {str(error).splitlines()[0]}") from error


def _format_config(config: Config, pattern: str) -> str:
    if not pattern:
        return config.saveToString(skipImports=True)
    lines = [line for line in config.saveToString(skipImports=True).splitlines() if line.startswith("config.")]
    names = [line.partition("=")[0].removeprefix("config.") for line in lines]
    chosen = [line for line, name in zip(lines, names, strict=True) if fnmatch.fnmatchcase(name, pattern)]
    return "".join(f"{line}\n" for line in chosen)


_EPILOG = """\
data ids:
  --id visit=1..5^9 detector=0     visits 1, 2, 3, 4, 5 and 9 of detector 0
  --id visit=1..9:2                every second visit
  --id visit=1 --id visit=2        both
  --id                             everything there is

An argument @FILE stands for the words in a file. The exit status is the number of data ids that failed (255 for
more), or 2 for wrong usage.
"""
