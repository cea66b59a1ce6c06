"""Instrument profiles: how one observatory's files say what `Exposure` needs to know.

A profile is a TOML file; ``alertprod/images/profiles`` holds examples, addressed by their name. Nothing
is guessed: a fact that no table of the profile names is *absent* and is never compared with an event.
A key the profile does not know is an error, not a comment.
"""

import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from alertprod.errors import ConfigError
from alertprod.ids import EXPOSURE_BITS, RUBIN_INSTRUMENTS, ExposurePacker, RubinPacker, SequencePacker
from alertprod.images.mask import MASK_PLANES

PROFILES_DIRECTORY = Path(__file__).parent / "profiles"
NATIVE_PROFILE = "alertprod"
"""The profile of files that `save_exposure` writes; used where none is named."""

Scalar = bool | int | float | str


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Fact(_Table):
    """Where one fact stands: in a card, in the file's name, or here as a constant (exactly one of the three).

    In TOML a bare value is a constant (``detector = 0``), a table says where to look
    (``band = { card = "FILTERS", values = { 58 = "I" } }``).
    """

    card: tuple[str, ...] = ()
    """Name of the header card, or a list of names, the first that is there counts. Looked for in the image's
    HDU, then in the primary one."""

    file_name: str | None = None
    """Regular expression searched for in the file's name (without folders); its first group is the value."""

    value: Scalar | None = None
    """The same for every file."""

    pattern: str | None = None
    """Regular expression searched for in the card's text; its first group is the value."""

    values: dict[str, Scalar] = Field(default_factory=dict)
    """From what the file says to what it means, ``{ 58 = "I" }``. What is not listed is an error."""

    factor: float = 1.0
    """Numbers are multiplied by this, to bring them to the unit that the fact is meant to have."""

    @model_validator(mode="before")
    @classmethod
    def _accept_a_bare_constant(cls, data: Any) -> Any:
        return {"value": data} if isinstance(data, bool | int | float | str) else data

    @field_validator("card", mode="before")
    @classmethod
    def _accept_one_card(cls, data: Any) -> Any:
        return (data,) if isinstance(data, str) else data

    @field_validator("file_name", "pattern")
    @classmethod
    def _require_a_group(cls, data: str | None) -> str | None:
        if data is not None:
            try:
                n_groups = re.compile(data).groups
            except re.error as error:
                msg = f"not a regular expression: {error}"
                raise ValueError(msg) from error
            if n_groups != 1:
                msg = f"{data!r} has {n_groups} groups; one, around the value, is needed"
                raise ValueError(msg)
        return data

    @model_validator(mode="after")
    def _require_one_place(self) -> Self:
        if (bool(self.card), self.file_name is not None, self.value is not None).count(True) != 1:
            msg = "give exactly one of card, file_name and value"
            raise ValueError(msg)
        return self


class Visit(Fact):
    """The visit's number; as `Fact`, or ``from_time = true`` where nobody numbers visits."""

    from_time: bool = False
    """Whole seconds, TAI, from 2000-01-01 to the shutter's opening (of every detector the same, one hopes)."""

    @model_validator(mode="after")
    def _require_one_place(self) -> Self:
        places = (bool(self.card), self.file_name is not None, self.value is not None, self.from_time)
        if places.count(True) != 1:
            msg = "give exactly one of card, file_name, value and from_time"
            raise ValueError(msg)
        return self


def describe_place(fact: Fact | None) -> str:
    """Say where a fact is looked for, for whoever misses it."""
    if fact is None:
        return "nowhere"
    if fact.file_name is not None:
        return f"in the file's name, by {fact.file_name!r}"
    return f"in the card {' or '.join(fact.card)}" if fact.card else "in the time of the exposure"


class Moment(_Table):
    """One instant of the exposure."""

    card: tuple[str, ...]
    """Card with the date and time, or with the date alone where `time_card` is given."""

    time_card: str | None = None
    """Card with the time of day, where the date has a card of its own."""

    format: Literal["mjd", "jd", "iso"] = "mjd"
    """``iso`` is ``2013-06-27T23:13:12``, also with slashes or a space."""

    scale: Literal["utc", "tai"] = "utc"
    """Time scale of the card, unless a TIMESYS card beside it says UTC or TAI."""

    @field_validator("card", mode="before")
    @classmethod
    def _accept_one_card(cls, data: Any) -> Any:
        return (data,) if isinstance(data, str) else data


class Times(_Table):
    """When the shutter was open: two of the four, or one instant and `exposure_time`."""

    start: Moment | None = None
    """The shutter opens."""

    middle: Moment | None = None
    """Half way between open and close."""

    end: Moment | None = None
    """The shutter closes."""

    exposure_time: Fact | None = None
    """Seconds."""


HduNames = tuple[str | int, ...]


class Planes(_Table):
    """Which HDU is which plane: a name, a number, or a list of them, the first that is there counts."""

    image: HduNames = ("IMAGE",)
    """Integers or floats; BSCALE and BZERO are applied."""

    mask: HduNames = ()
    """Bits; see `mask_bits`. A file without it has no masked pixels but those found from the image."""

    variance: HduNames = ()
    """Image unit squared."""

    weight: HduNames = ()
    """Inverse variance; zero: unusable, BAD is set."""

    rms: HduNames = ()
    """Standard deviation."""

    mask_bits: dict[str, tuple[int, ...]] = Field(default_factory=dict)
    """Our plane for the file's bit number, or numbers: ``{ SAT = 2, BAD = [0, 5] }``. Where it is left out, the
    mask's ``MP_*`` cards say it; where there are none, every non-zero pixel is BAD."""

    checksums: bool = False
    """Compare DATASUM cards with the data, and NEXTEND with the number of extensions. Off, because many programs
    rewrite pixels and leave the cards."""

    @field_validator("image", "mask", "variance", "weight", "rms", mode="before")
    @classmethod
    def _accept_one_hdu(cls, data: Any) -> Any:
        return (data,) if isinstance(data, str | int) else data

    @field_validator("mask_bits", mode="before")
    @classmethod
    def _accept_one_bit(cls, data: Any) -> Any:
        return {k: (v,) if isinstance(v, int) else v for k, v in data.items()} if isinstance(data, Mapping) else data

    @field_validator("mask_bits")
    @classmethod
    def _require_known_planes(cls, data: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
        unknown = sorted(set(data) - set(MASK_PLANES))
        if unknown:
            msg = f"no such plane: {', '.join(unknown)}; there are {', '.join(MASK_PLANES)}"
            raise ValueError(msg)
        return data

    @model_validator(mode="after")
    def _require_one_noise_plane(self) -> Self:
        if (bool(self.variance), bool(self.weight), bool(self.rms)).count(True) > 1:
            msg = "give at most one of variance, weight and rms"
            raise ValueError(msg)
        return self


class Noise(_Table):
    """How the variance comes about where the file has no plane of it."""

    source: Literal["auto", "gain", "pixels"] = "auto"
    """``gain``: photons and read noise. ``pixels``: the scatter of the sky and a photon slope estimated from it.
    ``auto``: gain where it is known and positive, else pixels."""

    gain: Fact | None = None
    """Electrons per image unit."""

    read_noise: Fact | None = None
    """Electrons; taken as 0 where absent."""

    pedestal: float | None = None
    """Image units of the sky level that no photon made (bias left in the image). Give 0 where the bias is known to be
    subtracted: then the sky's scatter bounds the photon slope. Left out: unknown, and with a gain taken as 0."""

    sky_subtracted: bool = False
    """The sky is no longer in the image, so that its photon noise must come from the pixels."""

    cell_size: int = Field(default=64, ge=16, le=4096)
    """Side in pixels of the cells in which sky level and scatter are measured: large against stars."""


class Saturation(_Table):
    """Which pixels are full, where the file's own mask has no plane for it."""

    level: Fact | None = None
    """Image units; pixels at or above it get SAT. Take it below the pile-up of full pixels."""

    grow: int = Field(default=2, ge=0, le=32)
    """Pixels around them that get SAT too: charge spills, and resampling smears."""


class Pixels(_Table):
    """Pixels without data and pixels at the border."""

    no_data_value: float | None = None
    """Pixels with exactly this value have no data (a resampled image's zeros)."""

    edge: int = Field(default=0, ge=0)
    """Rows and columns at each border that get EDGE."""


class Pointing(_Table):
    """Where the telescope looked; where absent, the middle of the image by its WCS."""

    ra: Fact | None = None
    """Number: degrees. Text with colons or blanks: hours, minutes, seconds."""

    dec: Fact | None = None
    """Number: degrees. Text with colons or blanks: degrees, minutes, seconds."""

    ra_in_hours: bool = False
    """A plain number in the RA card is in hours."""

    rotation: Fact | None = None
    """Degrees."""


class World(_Table):
    """World coordinates."""

    source: Literal["header", "nominal", "none"] = "header"
    """``nominal``: a tangent plane about the pointing in the middle of the image, to be registered later."""

    scale_arcsec: float | None = Field(default=None, gt=0)
    """Arcsec per pixel of the nominal plane."""

    rotation_deg: float = 0.0
    """Position angle of +y, east of north, of the nominal plane."""

    east_left: bool = True
    """Parity of the nominal plane: RA grows towards -x."""

    @model_validator(mode="after")
    def _require_a_scale(self) -> Self:
        if self.source == "nominal" and self.scale_arcsec is None:
            msg = 'source = "nominal" needs scale_arcsec'
            raise ValueError(msg)
        return self


class Photometry(_Table):
    """From image units to nJy.

    The first that is there of `njy_per_count`, `zero_point`, what Rubin's files carry (FLUXMAG0, archived
    PhotoCalib), BUNIT nJy, `nominal_zero_point`; else 1 nJy, nominal.
    """

    njy_per_count: Fact | None = None
    """nJy of one image unit."""

    zero_point: Fact | None = None
    """AB magnitude of one image unit."""

    per_second: bool = False
    """`zero_point` is that of one image unit per second, while the image holds the whole exposure's."""

    is_nominal: Fact | None = None
    """Card that says that the calibration above is a stand-in."""

    nominal_zero_point: float | None = None
    """AB magnitude of one image unit where nobody measured it: called nominal wherever it goes."""


class Ids(_Table):
    """How visit and detector are packed into 38 bits; see `alertprod.ids`."""

    packer: Literal["sequence", "rubin"] = "sequence"
    """``rubin`` for 13-digit visits YYYYMMDDnnnnn, ``sequence`` for visits that count up."""

    n_detectors: int = Field(default=256, ge=1)
    """Detectors are numbered from 0 to below it."""

    n_visits: int = Field(default=1 << 30, ge=1)
    """Visits are numbered from 0 to below it."""

    instrument_number: int = Field(default=0, ge=0)
    """Sets instruments apart that share one database and alert topic: each its own number, with the same `packer`,
    `n_detectors` and `n_visits`. Two fit with ``rubin``, as many with ``sequence`` as those two leave room for."""

    @model_validator(mode="after")
    def _require_room(self) -> Self:
        if self.packer == "sequence" and self.n_detectors * self.n_visits * (self.instrument_number + 1) > (
            1 << EXPOSURE_BITS
        ):
            msg = f"n_detectors * n_visits * (instrument_number + 1) exceeds 2**{EXPOSURE_BITS}"
            raise ValueError(msg)
        if self.packer == "rubin" and self.instrument_number >= RUBIN_INSTRUMENTS:
            msg = (
                f"instrument_number is {self.instrument_number}; {RUBIN_INSTRUMENTS} instruments with packer rubin fit"
            )
            raise ValueError(msg)
        return self


class InstrumentProfile(_Table):
    """Everything `load_exposure` wants to know about an observatory's files.

    Sections are tables of the TOML file: ``[planes] [noise] [saturation] [pixels] [time] [pointing] [wcs]
    [photometry] [ids]``.
    """

    instrument: Fact
    """The name that events and ledger use; usually a constant."""

    description: str = ""
    """For people."""

    visit: Visit | None = None
    """Number of the exposure; the same for all its detectors."""

    detector: Fact | None = None
    """Number of the detector, from 0."""

    band: Fact | None = None
    """One short name per passband, as templates and alerts call it."""

    physical_filter: Fact | None = None
    """The filter's own name."""

    target_name: Fact | None = None
    """What was pointed at."""

    observation_reason: Fact | None = None
    """Why, in the observatory's words."""

    planes: Planes = Planes()
    noise: Noise = Noise()
    saturation: Saturation = Saturation()
    pixels: Pixels = Pixels()
    time: Times = Times()
    pointing: Pointing = Pointing()
    wcs: World = World()
    photometry: Photometry = Photometry()
    ids: Ids = Ids()

    def create_packer(self) -> ExposurePacker:
        """Return the packer of this instrument's visits and detectors."""
        if self.ids.packer == "rubin":
            return RubinPacker(instrument_number=self.ids.instrument_number)
        return SequencePacker(
            n_detectors=self.ids.n_detectors, n_visits=self.ids.n_visits, instrument_number=self.ids.instrument_number
        )


def packaged_profiles() -> list[str]:
    """Return the names of the profiles that come with the package."""
    return sorted(path.stem for path in PROFILES_DIRECTORY.glob("*.toml"))


def load_profile(name_or_path: str | Path, overrides: Mapping[str, Any] | None = None) -> InstrumentProfile:
    """Load a profile.

    Parameters
    ----------
    name_or_path
        A packaged profile's name, or the path of a TOML file (anything with a slash or ending in ``.toml``).
    overrides
        Settings laid over the file's, table by table.

    Raises
    ------
    ConfigError
        Raised if the file cannot be read, or one of its fields is unknown, missing or wrong.
    """
    text = str(name_or_path)
    is_path = "/" in text or text.endswith(".toml")
    path = Path(text) if is_path else PROFILES_DIRECTORY / f"{text}.toml"
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        known = "" if is_path else f"; packaged profiles are {', '.join(packaged_profiles())}"
        raise ConfigError(text, "profile", f"no such file{known}") from error
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(text, "profile", f"cannot be read as TOML: {error}") from error
    try:
        return InstrumentProfile.model_validate(_merge(content, overrides or {}))
    except ValidationError as error:
        problems = list(_list_problems(error))
        field, problem = problems[0]
        more = "".join(f"; {other}: {what}" for other, what in problems[1:])
        raise ConfigError(text, field, problem + more) from error


def _merge(content: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(content)
    for key, value in overrides.items():
        below: Any = merged.get(key)
        # A fact is replaced as a whole: its ways to say where it stands exclude one another.
        is_section = (
            isinstance(value, Mapping) and isinstance(below, Mapping) and not {*below, *value} & set(Visit.model_fields)
        )
        merged[key] = _merge(below, value) if is_section else value
    return merged


def _list_problems(error: ValidationError) -> Iterator[tuple[str, str]]:
    for detail in error.errors():
        field = ".".join(str(part) for part in detail["loc"]) or "profile"
        message = detail["msg"].removeprefix("Value error, ")
        if detail["type"] == "extra_forbidden":
            message = "no such field"
        yield field, message
