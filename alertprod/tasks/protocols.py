"""What tasks ask of the world outside: data by name, template tiles by place, quanta, a place to draw.

Tasks are handed objects that have these methods and know nothing else of them; the folder repository in
`alertprod.store` and the pictures in `alertprod.view` are some. Methods that the field calls in camelCase keep it.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from alertprod._typing import FloatArray
from alertprod.geometry.wcs import SkyWcs
from alertprod.images.exposure import Exposure

DataId = Mapping[str, int | str]
"""What names one unit of data, {"visit": 12, "detector": 3}; further keys (instrument, band) describe it."""


class DatasetHandle(Protocol):
    """A dataset that is read when it is asked for."""

    @property
    def dataId(self) -> DataId:
        """What it is of; a template tile's has `tile`, its name, and `subfilter` where it is of one."""
        ...

    def get(self) -> Any:
        """Return the dataset."""
        ...


class TemplateSource(Protocol):
    """Knows which template tiles lie where."""

    def find(
        self, wcs: SkyWcs, shape: tuple[int, int], band: str, coaddName: str = "deep", /
    ) -> Sequence[DatasetHandle]:
        """Return the tiles of a band and kind of coadd that touch an image of `shape` (rows, columns), in a fixed order.

        Each one's `get` returns an `Exposure` with world coordinates.
        """
        ...


class DataRef(Protocol):
    """One exposure's data: inputs and outputs by dataset name."""

    @property
    def dataId(self) -> DataId:
        """What the data are of."""
        ...

    @property
    def butler(self) -> "Butler":
        """Where they come from."""
        ...

    def get(self, dataset: str, /) -> Any:
        """Return a dataset. "ccdExposureId" and "ccdExposureId_bits" are numbers for `makeIdFactory`.

        Raises
        ------
        ImageNotYetAvailable
            Raised if there is none.
        """
        ...

    def put(self, obj: Any, dataset: str, /) -> None:
        """Store a dataset, replacing an older one."""
        ...

    def datasetExists(self, dataset: str, /) -> bool:
        """Say whether `get` would find it."""
        ...


class Butler(TemplateSource, Protocol):
    """A repository of data; picklable, so that every process can have it."""

    def get(self, dataset: str, dataId: DataId | None = None, /) -> Any:
        """Return a dataset, one of the whole repository where there is no data id.

        Raises
        ------
        ImageNotYetAvailable
            Raised if there is none.
        """
        ...

    def put(self, obj: Any, dataset: str, dataId: DataId | None = None, /, *, backup: bool = False) -> None:
        """Store a dataset whole or not at all; an older one is replaced, or kept beside it with `backup`."""
        ...

    def exists(self, dataset: str, dataId: DataId | None = None, /) -> bool:
        """Say whether `get` would find it."""
        ...

    def keys(self, dataset: str, /) -> Mapping[str, type]:
        """Return the keys of a dataset's data ids and their types, int or str."""
        ...

    def subset(self, dataset: str, dataIds: Iterable[DataId], /) -> Sequence[DataRef]:
        """Return what there is of a dataset that agrees with any of the (partial) data ids, each once, in order."""
        ...


class QuantumDataId(Protocol):
    """The data id of a quantum."""

    def __getitem__(self, key: str, /) -> Any: ...

    def pack(self, name: str, /, *, returnMaxBits: bool = False) -> Any:
        """Return the id as one integer; with `returnMaxBits` also how many bits such integers can have."""
        ...


class Quantum(Protocol):
    """One piece of work."""

    @property
    def dataId(self) -> QuantumDataId:
        """What it is of."""
        ...


class QuantumContext(Protocol):
    """The `butlerQC` of `runQuantum`: a butler that knows the references of one quantum only."""

    @property
    def quantum(self) -> Quantum:
        """The piece of work."""
        ...

    def get(self, dataset: Any, /) -> Any:
        """Return what a reference names: a list for a list, {name: dataset} for all references of a quantum."""
        ...

    def put(self, values: Any, dataset: Any, /) -> None:
        """Store a value under a reference, or a `Struct` under all references of a quantum."""
        ...


@dataclass(frozen=True, slots=True)
class Marker:
    """A mark on a picture: `symbol` is o, + or x, `colour` a plain name; positions in pixels."""

    x: float
    y: float
    symbol: str = "o"
    colour: str = "yellow"
    label: str = ""


@dataclass(frozen=True, slots=True)
class Segment:
    """A straight line on a picture, between two positions in pixels."""

    x0: float
    y0: float
    x1: float
    y1: float
    colour: str = "yellow"


class Display(Protocol):
    """Where `runDebug` draws."""

    def show(
        self,
        title: str,
        image: Exposure | FloatArray,
        /,
        *,
        markers: Sequence[Marker] = (),
        segments: Sequence[Segment] = (),
        maskTransparency: float = 100.0,
    ) -> None:
        """Draw an image with marks on it.

        Parameters
        ----------
        title
            Names the picture; the same title again is another picture.
        image
            An exposure, whose mask is drawn over its pixels, or plain pixels.
        maskTransparency
            Percent; 100 hides the mask.
        """
        ...

    def stamps(self, title: str, images: Mapping[str, Exposure], markers: Sequence[Marker], /) -> None:
        """Draw squares about each marker, cut out of every image and side by side.

        Parameters
        ----------
        title
            Names the picture.
        images
            Exposures of one grid by what they are: "science", "template", "difference".
        markers
            Where to cut, and the label of each group of squares.
        """
        ...

    def histogram(self, title: str, samples: Mapping[str, FloatArray], /) -> None:
        """Draw how samples of pulls (values over their standard errors) are distributed, beside the unit normal.

        Parameters
        ----------
        title
            Names the picture.
        samples
            Values by what they are of; those that are not finite do not count.
        """
        ...
