"""What is in a folder repository: ``repository.json``, and how exposures and templates get into it."""

import fnmatch
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from alertprod.errors import BadInputError, ConfigError, CorruptImage
from alertprod.images.fits_io import read_facts
from alertprod.images.profile import NATIVE_PROFILE, InstrumentProfile, load_profile
from alertprod.store.dataset_files import written
from alertprod.store.files import local_path, read_bytes, translated_errors
from alertprod.store.template_index import IndexReport, index_templates, list_images

DESCRIPTION_NAME = "repository.json"
"""The file that makes a folder a repository."""

_FORMAT, _FORMAT_VERSION = "alertprod.repository", 1


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid")


class ExposureEntry(_Part):
    """One exposure: where it is, and its data id."""

    uri: str
    instrument: str
    visit: int
    detector: int
    band: str | None = None

    @property
    def data_id(self) -> dict[str, int | str]:
        """The data id, with the keys that describe it."""
        band: dict[str, int | str] = {} if self.band is None else {"band": self.band}
        return {"instrument": self.instrument, "visit": self.visit, "detector": self.detector, **band}


class TemplateEntry(_Part):
    """An index of template tiles of one kind of coadd."""

    index: str
    profile: str = NATIVE_PROFILE
    subfilter: int | None = None
    """Part of the band that these tiles are of; None where they are of the whole."""


class Description(_Part):
    """What ``repository.json`` says; paths are absolute, or relative to the folder."""

    format: str = _FORMAT
    version: int = _FORMAT_VERSION
    parent: str | None = None
    """The repository that this one holds results of; it has no exposures and templates of its own then."""

    profile: str = NATIVE_PROFILE
    """How to read the exposures."""

    release: int = 0
    """Of the DiaSource ids."""

    exposures: list[ExposureEntry] = Field(default_factory=list)
    """Ordered by visit and detector."""

    templates: dict[str, list[TemplateEntry]] = Field(default_factory=dict)
    """By kind of coadd."""

    def save(self, root: Path) -> None:
        """Write it, making the folder where it is not there.

        Raises
        ------
        StoreUnavailable, DiskFull
            Raised if it cannot be written.
        """
        with translated_errors(str(root)):
            root.mkdir(parents=True, exist_ok=True)
            with written(root / DESCRIPTION_NAME) as partial:
                partial.write_text(self.model_dump_json(indent=1, exclude_none=True))

    @classmethod
    def load(cls, root: Path) -> Self:
        """Read it.

        Raises
        ------
        ConfigError
            Raised if it is not there or is none.
        """
        path = root / DESCRIPTION_NAME
        try:
            description = cls.model_validate_json(path.read_bytes())
        except (FileNotFoundError, NotADirectoryError) as error:
            hint = "not a repository: make one with `alertprod repository add-exposures`"
            raise ConfigError(str(root), DESCRIPTION_NAME, hint) from error
        except OSError as error:
            raise ConfigError(str(path), "(file)", error.strerror or str(error)) from error
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise ConfigError(str(path), where or "(file)", first["msg"]) from error
        found = (description.format, description.version)
        if found != (_FORMAT, _FORMAT_VERSION):
            raise ConfigError(str(path), "format", f"is {found}; {(_FORMAT, _FORMAT_VERSION)} is known")
        return description


@dataclass(frozen=True, slots=True)
class ExposuresReport:
    """What `add_exposures` found: the exposures of the folder, and the files that cannot be one, with the reason."""

    added: tuple[ExposureEntry, ...]
    unusable: tuple[BadInputError, ...]


def add_exposures(
    root: Path,
    folder: str,
    profile: str = NATIVE_PROFILE,
    *,
    pattern: str = "*",
    release: int | None = None,
    on_file: Callable[[int, int], None] | None = None,
) -> ExposuresReport:
    """List the exposures in and below a folder in a repository, making this where it is not there.

    Parameters
    ----------
    root
        The repository's folder.
    folder
        A path or any fsspec URI. Exposures of it that were listed before are listed afresh.
    profile
        Name or path of the instrument's profile; the same for all of a repository.
    pattern
        What the names of the files match.
    release
        Of the DiaSource ids; 0 in a new repository.
    on_file
        Called with the number of files done and of all, for a progress bar.

    Raises
    ------
    ConfigError
        Raised if the repository holds results of another, or its exposures need another profile.
    StoreUnavailable, DiskFull
        Raised if the folder cannot be read or the list cannot be written.

    Notes
    -----
    Only headers are read. Two files of one visit and detector are one too many: the first by name counts.
    """
    description = _load_or_new(root)
    profile = _settle_profile(profile)
    if description.exposures and description.profile != profile:
        raise ConfigError(str(root), "profile", f"its exposures are read with {description.profile}, not {profile}")
    root = root.resolve()
    folder = (local_path(folder) or folder).rstrip("/")
    uris = [uri for uri in list_images(folder) if fnmatch.fnmatchcase(uri.rpartition("/")[2], pattern)]
    kept = [entry for entry in description.exposures if not locate(root, entry.uri).startswith(f"{folder}/")]
    names = {(entry.visit, entry.detector): entry.uri for entry in kept}
    added: list[ExposureEntry] = []
    unusable: list[BadInputError] = []
    how = load_profile(profile)
    for n, uri in enumerate(uris):
        try:
            entry = _describe_exposure(uri, how)
            name = (entry.visit, entry.detector)
            if name in names:
                problem = f"visit {entry.visit} detector {entry.detector} is {names[name]} already"
                raise CorruptImage(uri, "header", problem)
            names[name] = uri
            added.append(entry.model_copy(update={"uri": uri.removeprefix(f"{root}/")}))
        except BadInputError as error:
            unusable.append(error)
        if on_file is not None:
            on_file(n + 1, len(uris))
    exposures = sorted([*kept, *added], key=lambda entry: (entry.visit, entry.detector))
    update = {"profile": profile, "exposures": exposures, **({} if release is None else {"release": release})}
    description.model_copy(update=update).save(root)
    return ExposuresReport(tuple(added), tuple(unusable))


def add_templates(
    root: Path,
    folder: str,
    profile: str = NATIVE_PROFILE,
    *,
    coadd_name: str = "deep",
    subfilter: int | None = None,
    pattern: str = "*",
    band: str | None = None,
    on_tile: Callable[[int, int], None] | None = None,
) -> IndexReport:
    """Index the template tiles in and below a folder for a repository, making this where it is not there.

    Parameters
    ----------
    coadd_name
        The kind of coadd they are; an index that it had (of this subfilter) is replaced.
    subfilter
        Part of the band they are of, from 0; None where they are of the whole.
    root, folder, profile, pattern, band, on_tile
        As `add_exposures` and `index_templates` take them.

    Raises
    ------
    ConfigError
        Raised if the repository holds results of another.
    StoreUnavailable, DiskFull
        Raised if the folder cannot be read or the index cannot be written.
    """
    description = _load_or_new(root)
    profile = _settle_profile(profile)
    part = "" if subfilter is None else f"-{subfilter}"
    entry = TemplateEntry(index=f"templates-{coadd_name}{part}.json", profile=profile, subfilter=subfilter)
    with translated_errors(str(root)):
        root.mkdir(parents=True, exist_ok=True)
    report = index_templates(
        local_path(folder) or folder,
        load_profile(profile),
        band=band,
        pattern=pattern,
        index_uri=str(root.resolve() / entry.index),
        on_tile=on_tile,
    )
    others = [other for other in description.templates.get(coadd_name, []) if other.index != entry.index]
    templates = {**description.templates, coadd_name: [*others, entry]}
    description.model_copy(update={"templates": templates}).save(root)
    return report


def locate(root: Path, uri: str) -> str:
    """Return the absolute URI of what a description in `root` names."""
    return uri if "://" in uri else str(root / uri)


def _load_or_new(root: Path) -> Description:
    if not (root / DESCRIPTION_NAME).exists():
        return Description()
    description = Description.load(root)
    if description.parent is not None:
        raise ConfigError(str(root), "parent", f"it holds results of {description.parent}: add to that one")
    return description


def _settle_profile(profile: str) -> str:
    """Return a profile's name, or its absolute path: the repository may be used from any folder."""
    load_profile(profile)
    return str(Path(profile).resolve()) if "/" in profile or profile.endswith(".toml") else profile


def _describe_exposure(uri: str, profile: InstrumentProfile) -> ExposureEntry:
    path = local_path(uri)
    header = read_facts(read_bytes(uri) if path is None else path, profile, name=uri)
    info = header.info
    missing = [fact for fact in ("visit", "detector") if getattr(info, fact) is None]
    if info.visit is None or info.detector is None:
        raise CorruptImage(uri, "header", f"no {' and no '.join(missing)}, by which an exposure is known")
    return ExposureEntry(uri=uri, instrument=info.instrument, visit=info.visit, detector=info.detector, band=info.band)
