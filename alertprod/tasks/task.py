"""The base of all tasks: configuration, name, metadata and timers under the field's names.

A task is configured once, when it is made, and then run on many exposures; nothing of one run may
leak into the next. Durations and numbers of a run go into `metadata`.
"""

import logging
import resource
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from types import SimpleNamespace
from typing import Any, ClassVar, TypeVar

from lsst.pex.config import Config, ConfigurableField

from alertprod.measurement.catalog import Catalog

_Method = TypeVar("_Method", bound=Callable[..., Any])


class Struct(SimpleNamespace):
    """What a task's `run` returns: results by attribute."""

    def getDict(self) -> dict[str, Any]:
        """Return the results as a dictionary."""
        return dict(vars(self))


class Task:
    """A configured step.

    Parameters
    ----------
    config
        An instance of `ConfigClass`; by default the parent's configuration of that name, or the
        class's defaults.
    name
        Required for a subtask; a top-level task has `_DefaultName`.
    parentTask
        The task that this one is part of.
    log
        Logger of a top-level task.

    Raises
    ------
    RuntimeError
        Raised if there is no name, or a subtask is given without one.

    Notes
    -----
    A task is pickled as its class, configuration, name and parent, and made again from them: metadata stay behind. A
    subclass whose constructor needs more says so in `_reduceKeyArgs`.
    """

    ConfigClass: ClassVar[type[Config]]
    _DefaultName: ClassVar[str]
    log: logging.Logger

    def __init__(
        self,
        config: Config | None = None,
        name: str | None = None,
        parentTask: "Task | None" = None,
        log: logging.Logger | None = None,
    ) -> None:
        if parentTask is not None:
            if name is None:
                raise RuntimeError("name is required for a subtask")
            self._name = name
            self._fullName: str = f"{parentTask.getFullName()}.{name}"
            if config is None:
                config = getattr(parentTask.config, name)
            self._taskDict: dict[str, weakref.ref[Task]] = parentTask._taskDict  # noqa: SLF001  one for the hierarchy
            logger_name = f"{parentTask.log.name}.{name}"
        else:
            if name is None:
                name = getattr(self, "_DefaultName", None)
                if name is None:
                    raise RuntimeError("name is required for a task that has no _DefaultName")
            self._name = self._fullName = name
            self._taskDict = {}
            logger_name = log.name if log is not None else f"alertprod.{name}"
        if config is None:
            config = self.ConfigClass()
        config.validate()
        self.config: Any = config
        self.log = logging.getLogger(logger_name)
        self.metadata: dict[str, Any] = {}
        self._parentTask = parentTask
        self._taskDict[self._fullName] = weakref.ref(self)

    def __reduce__(self) -> "tuple[Callable[..., Task], tuple[type[Task], dict[str, Any]]]":
        return _make_again, (type(self), self._reduceKeyArgs())

    def _reduceKeyArgs(self) -> dict[str, Any]:
        """Return the arguments that make a task like this one."""
        return {"config": self.config, "name": self._name, "parentTask": self._parentTask}

    def getName(self) -> str:
        """Return the last component of the name."""
        return self._name

    def getFullName(self) -> str:
        """Return the name with those of the tasks above, "top.sub"."""
        return self._fullName

    def getTaskDict(self) -> "dict[str, weakref.ref[Task]]":
        """Return a copy of {full name: weak reference} of every task of the hierarchy."""
        return dict(self._taskDict)

    def emptyMetadata(self) -> None:
        """Forget the metadata of this task and of all others of the hierarchy."""
        for reference in self._taskDict.values():
            task = reference()
            if task is not None:
                task.metadata = {}

    def getFullMetadata(self) -> dict[str, dict[str, Any]]:
        """Return the metadata of every task by full name, with ":" for "."."""
        tasks = {name: reference() for name, reference in self._taskDict.items()}
        return {name.replace(".", ":"): task.metadata for name, task in tasks.items() if task is not None}

    def getSchemaCatalogs(self) -> dict[str, Catalog]:
        """Return an empty catalog, for its columns, by dataset name of each table that this task itself makes."""
        return {}

    def getAllSchemaCatalogs(self) -> dict[str, Catalog]:
        """Return the schema catalogs of every task of the hierarchy; the same from any level."""
        schemas: dict[str, Catalog] = {}
        for reference in self._taskDict.values():
            task = reference()
            if task is not None:
                schemas.update(task.getSchemaCatalogs())
        return schemas

    def getResourceConfig(self) -> Config | None:
        """Return the configuration's `resources`, None where it has no such field."""
        return getattr(self.config, "resources", None)

    def makeSubtask(self, name: str, **keyArgs: Any) -> None:
        """Make the subtask that the configuration field `name` names, as an attribute of that name.

        Parameters
        ----------
        keyArgs
            Further arguments of the subtask's constructor; configuration and parent are not among them.

        Raises
        ------
        KeyError
            Raised if the configuration has no such field.
        TypeError
            Raised if the constructor does not take an argument.
        """
        field = getattr(self.config, name, None)
        if field is None:
            raise KeyError(f"{self._fullName}'s config does not have field {name!r}")
        setattr(self, name, field.apply(name=name, parentTask=self, **keyArgs))

    @classmethod
    def makeField(cls, doc: str) -> ConfigurableField:
        """Return a configuration field whose default target is this class."""
        return ConfigurableField(doc=doc, target=cls)

    @contextmanager
    def timer(self, name: str, logLevel: int = logging.DEBUG) -> Iterator[None]:
        """Record `name`'s wall and CPU seconds in the metadata, as <name>Start… and <name>End…."""
        self._mark(f"{name}Start")
        try:
            yield
        finally:
            self._mark(f"{name}End")
            elapsed = self.metadata[f"{name}EndWallTime"] - self.metadata[f"{name}StartWallTime"]
            self.log.log(logLevel, "%s took %.3f s", name, elapsed)

    def _mark(self, prefix: str) -> None:
        self.metadata[f"{prefix}WallTime"] = time.perf_counter()
        self.metadata[f"{prefix}CpuTime"] = time.process_time()
        self.metadata[f"{prefix}MaxResidentSetSize"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    def durations(self) -> dict[str, float]:
        """Return wall seconds of every finished timer of the hierarchy, by "task:timer"."""
        seconds: dict[str, float] = {}
        for task, metadata in self.getFullMetadata().items():
            for key, end in metadata.items():
                if key.endswith("EndWallTime"):
                    timer = key.removesuffix("EndWallTime")
                    seconds[f"{task}:{timer}"] = end - metadata[f"{timer}StartWallTime"]
        return seconds


def _make_again(cls: type[Task], keyArgs: dict[str, Any]) -> Task:
    return cls(**keyArgs)


def timeMethod(method: _Method) -> _Method:
    """Time each call of a task's method under the method's name."""

    @wraps(method)
    def wrapper(self: Task, *args: Any, **keyArgs: Any) -> Any:
        with self.timer(method.__name__):
            return method(self, *args, **keyArgs)

    return wrapper  # type: ignore[return-value]  # the wrapper has the method's signature
