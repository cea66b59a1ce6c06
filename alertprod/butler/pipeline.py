"""`ImageDifferenceTask` as a PipelineTask: what ``pipetask run`` and the in-process executors run.

The science is the task's of `alertprod.tasks`, whose configuration this one's is too: here are the connections, and the
border that data and errors cross.
"""

import logging
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from lsst.pex.config import Config, ConfigField, Field, RangeField
from lsst.pipe.base import (
    InputQuantizedConnection,
    OutputQuantizedConnection,
    PipelineTask,
    PipelineTaskConfig,
    TaskMetadata,
)
from lsst.pipe.base import QuantumContext as RubinQuantumContext
from lsst.pipe.base import Struct as RubinStruct

from alertprod.butler.connections import ImageDifferenceConnections, ImageDifferenceFromTemplateConnections
from alertprod.butler.errors import quantum_errors, translated_errors
from alertprod.butler.exposures import complete, format_ref
from alertprod.errors import DatasetMismatch
from alertprod.ids import EXPOSURE_BITS, RELEASE_BITS, pack_release
from alertprod.images.exposure import Exposure
from alertprod.images.profile import NATIVE_PROFILE, load_profile
from alertprod.measurement.catalog import Catalog
from alertprod.tasks import image_difference, image_difference_from_template
from alertprod.tasks.protocols import DataId


class IdsConfig(Config):
    """How DiaSource ids begin; as the daemon's where the two are configured alike."""

    profile = Field(
        dtype=str,
        default=NATIVE_PROFILE,
        doc='Name or path of the instrument\'s profile, whose [ids] pack visit and detector; "rubin" for 13-digit visits',
    )
    release = RangeField(dtype=int, default=0, min=0, max=(1 << RELEASE_BITS) - 1, doc="Top six bits of every id")


def _check(config: Any) -> None:
    """Raise ValueError where connections and task would disagree."""
    if config.connections.coaddName != config.coaddName:
        raise ValueError(
            f"coaddName is {config.coaddName!r} and connections.coaddName {config.connections.coaddName!r}:"
            " the one chooses the tiles, the other names the datasets; set both"
        )
    if config.doApplyFinalizedPsf:
        raise ValueError("doApplyFinalizedPsf: only Rubin's own stack can read finalVisitSummary")
    if config.doAddCalexpBackground:
        raise ValueError("doAddCalexpBackground: quanta bring no background")


class ImageDifferenceConfig(  # type: ignore[call-arg]  # the middleware is untyped to us
    PipelineTaskConfig,
    image_difference.ImageDifferenceConfig,
    pipelineConnections=ImageDifferenceConnections,
):
    """The task's configuration, and the names of its datasets."""

    ids = ConfigField(dtype=IdsConfig, doc="How DiaSource ids begin")

    def validate(self) -> None:
        """Check that connections and task agree."""
        super().validate()
        _check(self)


class ImageDifferenceFromTemplateConfig(  # type: ignore[call-arg]  # the middleware is untyped to us
    PipelineTaskConfig,
    image_difference_from_template.ImageDifferenceFromTemplateConfig,
    pipelineConnections=ImageDifferenceFromTemplateConnections,
):
    """The same, for templates that were built before."""

    ids = ConfigField(dtype=IdsConfig, doc="How DiaSource ids begin")

    def validate(self) -> None:
        """Check that connections and task agree."""
        super().validate()
        _check(self)


class ImageDifferenceTask(PipelineTask):
    """Subtract the template from an exposure; detect and measure what is left.

    Attributes
    ----------
    task
        The task of `alertprod.tasks` that does it.
    outputSchema
        An empty table of DiaSources.
    """

    ConfigClass = ImageDifferenceConfig
    _DefaultName: ClassVar[str] = "imageDifference"
    TaskClass: ClassVar[type[image_difference.ImageDifferenceTask]] = image_difference.ImageDifferenceTask

    def __init__(
        self,
        *,
        config: Config | None = None,
        log: logging.Logger | None = None,
        initInputs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(config=config, log=log, initInputs=initInputs, **kwargs)
        self.task = self.TaskClass(self.config, name=self.getName(), log=logging.getLogger(self.log.name))
        self.outputSchema: Catalog = self.task.outputSchema

    def run(self, **inputs: Any) -> RubinStruct:
        """Run on exposures in memory, as `alertprod.tasks.image_difference.ImageDifferenceTask.run`."""
        return RubinStruct(**self.task.run(**inputs).getDict())

    def runQuantum(
        self,
        butlerQC: RubinQuantumContext,
        inputRefs: InputQuantizedConnection,
        outputRefs: OutputQuantizedConnection,
    ) -> None:
        """Difference the exposure of a quantum.

        Raises
        ------
        lsst.pipe.base.NoWorkFound
            Raised if the template covers too little of the exposure.
        lsst.pipe.base.RepeatableQuantumError
            Raised if a store did not answer.
        AlertprodError
            Raised if the exposure or its template cannot be used, or the match fails.
        """
        with quantum_errors():
            self.task.runQuantum(QuantumContext(butlerQC, self.config.ids), inputRefs, outputRefs)

    def getFullMetadata(self) -> TaskMetadata:
        """Return the metadata of this task, and of the one in it with its subtasks."""
        full = super().getFullMetadata()
        for name, metadata in self.task.getFullMetadata().items():
            own = full[name] if name in full else TaskMetadata()
            for key, value in metadata.items():
                if value is not None:  # which theirs cannot hold: what nobody found is absent
                    own[key] = value.item() if isinstance(value, np.generic) else value
            full[name] = own
        return full


class ImageDifferenceFromTemplateTask(ImageDifferenceTask):
    """Subtract a template that is on the exposure's pixels already; detect and measure what is left."""

    ConfigClass = ImageDifferenceFromTemplateConfig
    _DefaultName: ClassVar[str] = "imageDifferenceFromTemplate"
    TaskClass = image_difference_from_template.ImageDifferenceFromTemplateTask


class QuantumContext:
    """Rubin's butler of a quantum as `alertprod.tasks.protocols.QuantumContext`.

    Parameters
    ----------
    butlerQC
        Rubin's.
    ids
        How DiaSource ids begin.
    """

    def __init__(self, butlerQC: RubinQuantumContext, ids: Config) -> None:
        self._context = butlerQC
        self.quantum = _Quantum(butlerQC.quantum, ids)

    def get(self, dataset: Any, /) -> Any:
        """Return what a reference names: of a list a list, deferred datasets as handles."""
        if isinstance(dataset, list | tuple):
            return [self.get(reference) for reference in dataset]
        ref = getattr(dataset, "datasetRef", dataset)
        with translated_errors(format_ref(ref)):
            found = self._context.get(dataset)
        return complete(found, ref.dataId, name=format_ref(ref)) if ref is dataset else _Handle(found)

    def put(self, values: Any, dataset: Any, /) -> None:
        """Store a value under a reference, or the attributes of a `Struct` that references of a quantum are named as."""
        if isinstance(dataset, OutputQuantizedConnection):
            for name, ref in dataset:
                value = getattr(values, name, None)
                if value is not None:
                    self.put(value, ref)
            return
        with translated_errors(format_ref(dataset), collection=dataset.run):
            self._context.put(values, dataset)


class _Handle:
    """A tile that is read when it is asked for."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle

    @property
    def dataId(self) -> DataId:
        data_id: DataId = {"tile": format_ref(self._handle.ref), **self._handle.ref.dataId.required}
        return data_id

    def get(self) -> Exposure:
        name = format_ref(self._handle.ref)
        with translated_errors(name):
            exposure: Exposure = complete(self._handle.get(), self._handle.ref.dataId, name=name)
        return exposure


class _Quantum:
    """A quantum whose data id can be packed."""

    def __init__(self, quantum: Any, ids: Config) -> None:
        self._data_id, self._ids = quantum.dataId, ids

    @property
    def dataId(self) -> "_Quantum":
        return self

    def __getitem__(self, key: str, /) -> Any:
        return self._data_id[key]

    def pack(self, name: str, /, *, returnMaxBits: bool = False) -> Any:
        """Return release and exposure as one number."""
        if name != "visit_detector":
            raise DatasetMismatch(str(self._data_id), f"data ids are packed by visit_detector, not by {name}")
        packer = load_profile(self._ids.profile).create_packer()
        try:
            packed = packer.pack(visit=self._data_id["visit"], detector=self._data_id["detector"])
        except ValueError as error:
            problem = f"{error}; the configuration's ids.profile = {self._ids.profile} packs data ids"
            raise DatasetMismatch(str(self._data_id), problem) from error
        number = pack_release(packed, release=self._ids.release)
        return (number, RELEASE_BITS + EXPOSURE_BITS) if returnMaxBits else number
