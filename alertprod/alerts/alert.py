"""One alert, for those who read them: its records as dictionaries, its history as tables, its pictures as images."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from alertprod.alerts.cutouts import load_cutout
from alertprod.alerts.tables import make_record_table

if TYPE_CHECKING:
    from astropy.nddata import CCDData
    from astropy.table import Table

CUTOUT_FIELDS: Mapping[str, str] = {
    "science": "cutoutScience",
    "template": "cutoutTemplate",
    "difference": "cutoutDifference",
}


class Alert(Mapping[str, Any]):
    """A decoded alert: a mapping of the packet's fields, with what one mostly wants of them at hand.

    Parameters
    ----------
    packet
        As `alertprod.alerts.avro.decode_alert` gives it.
    """

    __slots__ = ("packet",)

    def __init__(self, packet: Mapping[str, Any]) -> None:
        self.packet = packet

    def __getitem__(self, field: str) -> Any:
        return self.packet[field]

    def __iter__(self) -> Iterator[str]:
        return iter(self.packet)

    def __len__(self) -> int:
        return len(self.packet)

    def __repr__(self) -> str:
        source = self.source
        snr = "?" if source["snr"] is None else f"{source['snr']:.1f}"
        return f"<Alert {self.id}: {source['band'] or '?'} {source['midpointMjdTai']:.5f}, S/N {snr}>"

    @property
    def id(self) -> int:
        """The DiaSource's id, which is the alert's."""
        return int(self.packet["diaSourceId"])

    @property
    def object_id(self) -> int | None:
        """The object's id, or that of the Solar System body; None where there is neither."""
        source = self.source
        found = source["diaObjectId"] or source["ssObjectId"]
        return int(found) if found else None

    @property
    def source(self) -> Mapping[str, Any]:
        """The detection that the alert is about."""
        found: Mapping[str, Any] = self.packet["diaSource"]
        return found

    @property
    def sources(self) -> Table:
        """All detections of the object that the alert knows, oldest first, this one last."""
        return make_record_table([*(self.packet["prvDiaSources"] or ()), self.source], "diaSource")

    @property
    def forced_sources(self) -> Table:
        """All measurements at the object's place that the alert knows, oldest first."""
        return make_record_table(self.packet["prvDiaForcedSources"] or (), "diaForcedSource")

    def cutout(self, which: str) -> CCDData | None:
        """Return ``science``, ``template`` or ``difference``: nJy, with variance, mask, PSF and world coordinates.

        Raises
        ------
        KeyError
            Raised if `which` is none of these.
        """
        data = self.packet[CUTOUT_FIELDS[which]]
        return None if data is None else load_cutout(data)


@dataclass(frozen=True, slots=True, kw_only=True)
class AlertFilter:
    """Which alerts are wanted; what is None does not matter."""

    since_mjd_tai: float | None = None
    """Midpoints from here on."""
    until_mjd_tai: float | None = None
    """Midpoints before this."""
    object_ids: frozenset[int] = frozenset()
    """DiaObjects or Solar System bodies; none: all of them."""
    min_snr: float | None = None
    """Significance of the detection, of either sign."""

    def takes(self, packet: Mapping[str, Any]) -> bool:
        """Tell whether an alert is wanted."""
        source = packet["diaSource"]
        time, snr = source["midpointMjdTai"], source["snr"]
        if self.since_mjd_tai is not None and time < self.since_mjd_tai:
            return False
        if self.until_mjd_tai is not None and time >= self.until_mjd_tai:
            return False
        if self.object_ids and not self.object_ids & {source["diaObjectId"], source["ssObjectId"]}:
            return False
        return self.min_snr is None or (snr is not None and abs(snr) >= self.min_snr)
