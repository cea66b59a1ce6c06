"""Running a task on the data of a command line, one after another or in several processes.

A failure is one data id's affair: it is logged with it, and the others go on.
"""

import argparse
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from alertprod.errors import AlertprodError, NoWorkFound
from alertprod.logs import bind_exposure
from alertprod.tasks._processes import ProcessDeath, map_in_processes
from alertprod.tasks.argument_parser import configure_task_logs
from alertprod.tasks.data_ids import format_data_id
from alertprod.tasks.debug import DebugOptions
from alertprod.tasks.plugins import open_display
from alertprod.tasks.protocols import DataId, DataRef
from alertprod.tasks.task import Struct

if TYPE_CHECKING:
    from alertprod.tasks.cmd_line_task import CmdLineTask

Target = tuple[DataRef, dict[str, Any]]
"""A data reference and further arguments of `runDataRef`."""


class TaskRunner:
    """Runs a task on each data reference of a parsed command line; picklable, for other processes.

    Parameters
    ----------
    TaskClass
        The task; one is made for each data reference.
    parsedCmd
        What `ArgumentParser.parse_args` returned.
    doReturnResults
        Keep what `runDataRef` returns.
    """

    def __init__(
        self, TaskClass: "type[CmdLineTask]", parsedCmd: argparse.Namespace, doReturnResults: bool = False
    ) -> None:
        self.TaskClass = TaskClass
        self.doReturnResults = doReturnResults
        self.config = parsedCmd.config
        self.log: logging.Logger = parsedCmd.log or logging.getLogger(f"alertprod.{TaskClass._DefaultName}")  # noqa: SLF001  a name of the task interface
        self.doRaise: bool = parsedCmd.doraise
        self.numProcesses: int = parsedCmd.processes
        self.timeout: float = parsedCmd.timeout
        self.debug: str | None = parsedCmd.debug
        self._levels: dict[str, str] = parsedCmd.levels
        self._is_parent = True
        if self.numProcesses > 1 and not TaskClass.canMultiprocess:
            self.log.warning("%s cannot run in several processes; one is used", TaskClass.__name__)
            self.numProcesses = 1

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_is_parent": False}

    def run(self, parsedCmd: argparse.Namespace) -> list[Struct]:
        """Run on everything; return a Struct for each data reference, in order.

        Notes
        -----
        Configuration, schemas and versions come first. Where these cannot be written, or do not fit those that are
        there, nothing runs and every data reference counts as failed.
        """
        targets = self.getTargetList(parsedCmd)
        if not self.precall(parsedCmd):
            return [self._make_result(target[0], exitStatus=1) for target in targets] or [Struct(exitStatus=1)]
        if not targets:
            self.log.warning("there is nothing to run on: no --id, or no data of it")
        n = min(self.numProcesses, len(targets))
        if n <= 1:
            return [self(target) for target in targets]
        results: list[Struct] = [Struct()] * len(targets)
        threads = max(1, (os.cpu_count() or 1) // n)
        for index, result in map_in_processes(self, targets, n_processes=n, timeout_s=self.timeout, threads=threads):
            dataRef = targets[index][0]
            if isinstance(result, ProcessDeath):
                self.log.error("failed on %s: %s", format_data_id(dataRef.dataId), result.cause)
                results[index] = self._make_result(dataRef, exitStatus=1)
            else:
                results[index] = result
        return results

    @staticmethod
    def getTargetList(parsedCmd: argparse.Namespace, **kwargs: Any) -> list[Target]:
        """Return what to run on; `kwargs` are further arguments of every `runDataRef`."""
        return [(dataRef, dict(kwargs)) for dataRef in parsedCmd.id.refList]

    def makeTask(self, parsedCmd: argparse.Namespace | None = None, args: Target | None = None) -> "CmdLineTask":
        """Make the task, before anything runs (`parsedCmd`) or for one target (`args`)."""
        task = self.TaskClass(config=self.config, log=self.log, **self.getTaskKeyArgs(parsedCmd, args))
        if self.debug is not None:
            task.display = open_display(self.debug)
            task.debug = DebugOptions(display=True)
        return task

    def getTaskKeyArgs(self, parsedCmd: argparse.Namespace | None, args: Target | None) -> dict[str, Any]:
        """Return further arguments of the task's constructor; a hook."""
        del parsedCmd, args
        return {}

    def precall(self, parsedCmd: argparse.Namespace) -> bool:
        """Write what is written once; False, with the reason logged, where that fails."""
        try:
            task = self.makeTask(parsedCmd=parsedCmd)
            butler, clobber, doBackup = parsedCmd.butler, parsedCmd.clobberConfig, not parsedCmd.noBackupConfig
            if not parsedCmd.noVersions:
                task.writePackageVersions(butler, clobber=clobber, doBackup=doBackup)
            task.writeConfig(butler, clobber=clobber, doBackup=doBackup)
            task.writeSchemas(butler, clobber=clobber, doBackup=doBackup)
        except Exception as error:
            if self.doRaise:
                raise
            self._log_failure("nothing was run", error)
            return False
        return True

    def __call__(self, args: Target) -> Struct:
        """Run on one data reference; exitStatus is 1 where that fails.

        Notes
        -----
        A data reference with nothing to do (`NoWorkFound`) is no failure. Metadata are written in any case.
        """
        if not self._is_parent:
            configure_task_logs(self._levels, own_handlers=True)
        dataRef, kwargs = args
        result, exitStatus = None, 0
        with _bound(dataRef.dataId):
            task = self.makeTask(args=args)
            try:
                result = self.runTask(task, dataRef, kwargs)
            except NoWorkFound as error:
                if self.doRaise:
                    raise
                self.log.warning("nothing to do for %s: %s", format_data_id(dataRef.dataId), error)
            except Exception as error:
                if self.doRaise:
                    raise
                exitStatus = 1
                self._log_failure(f"failed on {format_data_id(dataRef.dataId)}", error)
            finally:
                task.writeMetadata(dataRef)
            return self._make_result(dataRef, exitStatus, task.getFullMetadata(), result)

    def runTask(self, task: "CmdLineTask", dataRef: DataRef, kwargs: dict[str, Any]) -> Any:
        """Call the task."""
        return task.runDataRef(dataRef, **kwargs)

    def _make_result(self, dataRef: DataRef, exitStatus: int, metadata: Any = None, result: Any = None) -> Struct:
        if not self.doReturnResults:
            return Struct(exitStatus=exitStatus)
        return Struct(exitStatus=exitStatus, dataRef=dataRef, metadata=metadata, result=result)

    def _log_failure(self, what: str, error: Exception) -> None:
        """Log an error; one of the tree says what it has to say, of all others the traceback is wanted."""
        notes = "".join(f" ({note})" for note in getattr(error, "__notes__", ()))
        traceback = None if isinstance(error, AlertprodError) else error
        self.log.error("%s: %s: %s%s", what, type(error).__name__, error, notes, exc_info=traceback)


class ButlerInitializedTaskRunner(TaskRunner):
    """A runner of tasks whose constructor takes the butler."""

    def getTaskKeyArgs(self, parsedCmd: argparse.Namespace | None, args: Target | None) -> dict[str, Any]:
        """Return the butler."""
        if parsedCmd is not None:
            return {"butler": parsedCmd.butler}
        return {"butler": None if args is None else args[0].butler}


class TemplateIdTaskRunner(ButlerInitializedTaskRunner):
    """A runner that hands the data ids of ``--templateId`` to `runDataRef`, as templateIdList."""

    @staticmethod
    def getTargetList(parsedCmd: argparse.Namespace, **kwargs: Any) -> list[Target]:
        """Return what to run on, with the template ids."""
        return TaskRunner.getTargetList(parsedCmd, templateIdList=parsedCmd.templateId.idList, **kwargs)


@contextmanager
def _bound(dataId: DataId) -> Iterator[None]:
    """Name the exposure in every log line."""
    instrument, visit, detector = (dataId.get(key) for key in ("instrument", "visit", "detector"))
    if visit is None or detector is None:
        yield
        return
    with bind_exposure(instrument=str(instrument or ""), visit=int(visit), detector=int(detector)):
        yield
