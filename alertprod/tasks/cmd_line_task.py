"""A task that runs on its own: from the command line, on a data reference, or on a quantum.

What it leaves beside its results lets a later run tell whether its own will fit: configuration, schemas of the tables,
versions of the packages.
"""

import importlib.metadata
import logging
import platform
import re
import sys
from collections.abc import Sequence
from typing import Any, ClassVar

from lsst.pex.config import Config

from alertprod import __version__
from alertprod.errors import TaskError
from alertprod.tasks.argument_parser import ArgumentParser
from alertprod.tasks.debug import DebugOptions
from alertprod.tasks.protocols import Butler, DataRef, Display, QuantumContext
from alertprod.tasks.task import Struct, Task
from alertprod.tasks.task_runner import TaskRunner

_MAX_EXIT_STATUS = 255
"""A process's exit status has eight bits: 256 failures would look like none."""


class CmdLineTask(Task):
    """A task with a command line.

    A subclass has `runDataRef`, and a `run` whose arguments and results are named as its connections.
    """

    RunnerClass: ClassVar[type[TaskRunner]] = TaskRunner
    """Makes the task in each process and calls its `runDataRef`."""

    canMultiprocess: ClassVar[bool] = True
    """Whether data ids may run side by side."""

    display: Display | None = None
    """Where `runDebug` draws; nowhere without ``--debug``."""

    debug: DebugOptions = DebugOptions()
    """What `runDebug` draws; with ``--debug`` everything."""

    @classmethod
    def applyOverrides(cls, config: Config) -> None:
        """Change the defaults of a command line's configuration, before its own overrides; a hook that does nothing."""

    @classmethod
    def parseAndRun(
        cls,
        args: Sequence[str] | None = None,
        config: Config | None = None,
        log: logging.Logger | None = None,
        doReturnResults: bool = False,
    ) -> Struct:
        """Parse a command line and run the task on every data id of it.

        Parameters
        ----------
        args
            Words; those of this process by default.
        config
            Configuration to start from, by default the class's; it is not changed.
        log
            Logger of the task. Without one, log lines of the whole process go to standard error.
        doReturnResults
            Keep what `runDataRef` returned, for all data ids at once.

        Returns
        -------
        Struct
            argumentParser, parsedCmd, taskRunner and resultList: for each data id a Struct with exitStatus (0 or 1),
            and with doReturnResults also dataRef, metadata and result.

        Raises
        ------
        SystemExit
            Raised with the number of failures as status where there are any, unless ``--noExit`` is given; with 2 for
            wrong usage.
        """
        argumentParser = cls._makeArgumentParser()
        config = cls.ConfigClass() if config is None else config
        parsedCmd = argumentParser.parse_args(config=config, args=args, log=log, override=cls.applyOverrides)
        taskRunner = cls.RunnerClass(TaskClass=cls, parsedCmd=parsedCmd, doReturnResults=doReturnResults)
        resultList = taskRunner.run(parsedCmd)
        nFailed = sum(result.exitStatus != 0 for result in resultList)
        if nFailed:
            taskRunner.log.error("%d of %d data ids failed", nFailed, len(resultList))
            if not parsedCmd.noExit:
                sys.exit(min(nFailed, _MAX_EXIT_STATUS))
        return Struct(argumentParser=argumentParser, parsedCmd=parsedCmd, taskRunner=taskRunner, resultList=resultList)

    @classmethod
    def _makeArgumentParser(cls) -> ArgumentParser:
        """Return the parser; a task whose data ids are of another dataset says so here."""
        parser = ArgumentParser(name=cls._DefaultName, description=_first_line(cls.__doc__))
        parser.add_id_argument("--id", "calexp", help="exposures to run on")
        return parser

    def runDataRef(self, dataRef: DataRef) -> Struct:
        """Run on one exposure of a repository: get inputs, `run`, put outputs."""
        raise NotImplementedError(f"{type(self).__name__} has no runDataRef")

    def runQuantum(self, butlerQC: QuantumContext, inputRefs: Any, outputRefs: Any) -> None:
        """Run on one quantum: get the inputs, `run` with them by name, put the outputs."""
        outputs = self.run(**butlerQC.get(inputRefs))  # type: ignore[attr-defined]  # every subclass has its own
        butlerQC.put(outputs, outputRefs)

    def writeConfig(self, butler: Butler, clobber: bool = False, doBackup: bool = True) -> None:
        """Store the configuration, or compare it with the one that is there.

        Parameters
        ----------
        clobber
            Replace whatever is there.
        doBackup
            Keep what is replaced.

        Raises
        ------
        TaskError
            Raised if another configuration is there.
        """
        name = self._getConfigName()
        if name is None:
            return
        if clobber or not butler.exists(name):
            butler.put(self.config, name, backup=doBackup)
            return
        stored = _get(butler, name)
        differences: list[str] = []
        if not self.config.compare(stored, shortcut=False, output=differences.append):
            raise TaskError(_describe(f"the stored configuration {name} is another", differences))

    def writeSchemas(self, butler: Butler, clobber: bool = False, doBackup: bool = True) -> None:
        """Store the columns of the tables this task and its subtasks make, or compare them with those that are there.

        Raises
        ------
        TaskError
            Raised if other columns are there, unless `clobber`.
        """
        for dataset, catalog in self.getAllSchemaCatalogs().items():
            name = f"{dataset}_schema"
            if clobber or not butler.exists(name):
                butler.put(catalog, name, backup=doBackup)
                continue
            stored, columns = set(_get(butler, name).columns), set(catalog.columns)
            differences = [f"{column.name}: now absent or changed" for column in stored - columns]
            differences += [f"{column.name}: new or changed" for column in columns - stored]
            if differences:
                raise TaskError(_describe(f"the stored schema {name} is another", sorted(differences)))

    def writeMetadata(self, dataRef: DataRef) -> None:
        """Store the metadata of all tasks of the hierarchy; a failure to do so is a warning."""
        name = self._getMetadataName()
        if name is None:
            return
        try:
            dataRef.put(self.getFullMetadata(), name)
        except Exception as error:  # noqa: BLE001  the results are there, and worth more than the numbers about them
            self.log.warning("metadata of %s not written: %s: %s", dict(dataRef.dataId), type(error).__name__, error)

    def writePackageVersions(
        self, butler: Butler, clobber: bool = False, doBackup: bool = True, dataset: str = "packages"
    ) -> None:
        """Store the versions of this package and of those it needs, or compare them; new packages are added.

        Raises
        ------
        TaskError
            Raised if a package that is there has another version, unless `clobber`.
        """
        packages = collect_packages()
        if clobber or not butler.exists(dataset):
            butler.put(packages, dataset, backup=doBackup)
            return
        stored = _get(butler, dataset)
        common = sorted(set(stored) & set(packages))
        differences = [
            f"{name}: {stored[name]}, now {packages[name]}" for name in common if stored[name] != packages[name]
        ]
        if differences:
            raise TaskError(_describe("the stored package versions are others", differences))
        if set(packages) - set(stored):
            butler.put({**packages, **stored}, dataset, backup=doBackup)

    def _getConfigName(self) -> str | None:
        """Return the dataset of the configuration; None for none."""
        return f"{self._DefaultName}_config"

    def _getMetadataName(self) -> str | None:
        """Return the dataset of the metadata; None for none."""
        return f"{self._DefaultName}_metadata"


def collect_packages() -> dict[str, str]:
    """Return the versions of Python, this package and every installed package it requires, extras apart."""
    packages = {"python": platform.python_version(), "alertprod": __version__}
    for requirement in importlib.metadata.requires("alertprod") or []:
        found = re.match(r"[\w.-]+", requirement)
        if found is None or "extra ==" in requirement:
            continue
        packages[found[0]] = importlib.metadata.version(found[0])
    return packages


def _get(butler: Butler, name: str) -> Any:
    try:
        return butler.get(name)
    except Exception as error:
        error.add_note(f"{name} is there and cannot be read; --clobber-config replaces it")
        raise


def _describe(what: str, differences: list[str]) -> str:
    shown = "; ".join(" ".join(difference.split()) for difference in differences[:_N_SHOWN])
    more = f"; and {len(differences) - _N_SHOWN} more" if len(differences) > _N_SHOWN else ""
    return f"{what}: {shown}{more}. Use another output, or --clobber-config"


_N_SHOWN = 5
"""Differences in a message: enough to see which run it was."""


def _first_line(text: str | None) -> str | None:
    return text.strip().splitlines()[0] if text else None
