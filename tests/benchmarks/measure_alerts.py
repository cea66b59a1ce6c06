"""How large alerts are, and how many of them one core cuts out, packs, encodes and hands to a broker.

CPU seconds of this process, librdkafka's threads included; a broker's own are another process's. Each figure is the best of
three runs: what else the machine does makes it slower, never quicker.
"""

from __future__ import annotations

import io
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fastavro
import numpy as np
from kafka_broker import KafkaBroker

from alertprod.alerts.avro import decode_alert
from alertprod.alerts.cutouts import CutoutConfig, Cutouts, make_cutouts
from alertprod.alerts.encoding import encode_rows
from alertprod.alerts.export import ExportItem, export_alerts
from alertprod.alerts.packet import AlertMessage, PacketInfo, make_messages
from alertprod.alerts.registry import load_record_schema
from alertprod.alerts.validation import validate_packet
from alertprod.alerts.wire_names import DIA_SOURCE_WIRE_NAMES
from alertprod.association.associate import Association, associate
from alertprod.association.columns import DIA_FORCED_SOURCE_COLUMNS
from alertprod.association.forced import ExposureFacts, ForcedFluxes
from alertprod.association.history import History
from alertprod.geometry.wcs import SkyWcs
from alertprod.images.exposure import Exposure, ExposureInfo
from alertprod.images.masked_image import MaskedImage
from alertprod.measurement.catalog import DIA_SOURCE_COLUMNS, Catalog
from alertprod.psf.analytic import GaussianPsf
from alertprod.stream.embedded import EmbeddedBroker
from alertprod.stream.producer import AlertProducer
from alertprod.stream.records import OutgoingMessage

SHAPE = (4096, 4096)
PSF = GaussianPsf(fwhm=4.4, size=41)
WCS = SkyWcs.from_tangent(ra_deg=150.0, dec_deg=-30.0, x=2048.0, y=2048.0, scale_arcsec=0.2)
MJD = 61_100.0
RUNS = 3


def measure_alerts(n: int, n_history: int, *, kafka: bool) -> dict[str, float]:
    """Return figures by name, of `n` alerts of one exposure with so many earlier sources, and forced ones, each.

    With `kafka` they go to a real one, with each of the compressions, instead of the embedded broker.
    """
    rng = np.random.default_rng(1)
    images = [make_image(rng) for _ in range(3)]
    sources = make_sources(rng, n)
    cutouts, seconds = best(lambda: cut(sources, images))
    figures = {"triplets cut out a second": n / seconds}
    for name, with_history in (("no history", 0), (f"{n_history} sources and {n_history} forced", n_history)):
        association = make_association(rng, sources, with_history)
        messages, seconds = best(
            lambda association=association: list(make_messages(association, cutouts.triplets, INFO))
        )
        figures[f"bytes, {name}"] = max(len(message.value) for message in messages)
        figures[f"packed and encoded a second, {name}"] = n / seconds
        for where, per_second in produce(messages, kafka=kafka):
            figures[f"produced a second, {name}, {where}"] = per_second
            figures[f"packed, encoded and produced a second, {name}, {where}"] = 1 / (seconds / n + 1 / per_second)
        _, seconds = best(lambda messages=messages: [decode_alert(message.value) for message in messages])
        figures[f"decoded a second, {name}"] = n / seconds
    small = cut(sources, images, max_psf_size=25)
    association = make_association(rng, sources, 0)
    figures["bytes, no history, PSF cropped to 25"] = max(
        len(message.value) for message in make_messages(association, small.triplets, INFO)
    )
    figures |= measure_rows(sources)
    packets = [decode_alert(message.value) for message in messages[:100]]
    _, seconds = best(lambda: [validate_packet(packet) for packet in packets])
    figures["validated a second"] = len(packets) / seconds
    items = [ExportItem(packet, message.value) for packet, message in zip(packets, messages, strict=False)]
    with tempfile.TemporaryDirectory(prefix="alertprod-bench-") as folder:
        for file_format in ("avro", "parquet"):
            path = Path(folder) / f"alerts.{file_format}"
            _, seconds = best(lambda f=file_format, path=path: export_alerts(iter(items), path, f))
            figures[f"exported a second, {file_format}"] = len(items) / seconds
    return figures


INFO = PacketInfo(target_name="field", program_version="0.1.0", config_hash="0" * 64)


def measure_rows(sources: Catalog) -> dict[str, float]:
    """Return what a DiaSource costs: encoded from its table, by a general encoder, and spliced as bytes kept earlier."""
    rows, seconds = best(lambda: encode_rows(sources, DIA_SOURCE_WIRE_NAMES, "diaSource").split())
    figures = {"microseconds a DiaSource, from the table": 1e6 * seconds / len(rows)}
    schema = load_record_schema("diaSource")
    records = [fastavro.schemaless_reader(io.BytesIO(row), schema, None) for row in rows]

    def encode_all() -> list[int]:
        return [fastavro.schemaless_writer(io.BytesIO(), schema, record) for record in records]

    _, seconds = best(encode_all)
    figures["microseconds a DiaSource, by a general encoder"] = 1e6 * seconds / len(rows)
    _, seconds = best(lambda: b"".join(rows))
    figures["microseconds a DiaSource, spliced"] = 1e6 * seconds / len(rows)
    figures["bytes a DiaSource"] = len(b"".join(rows)) / len(rows)
    return figures


def produce(messages: list[AlertMessage], *, kafka: bool) -> Iterator[tuple[str, float]]:
    """Yield the alerts a second of CPU that each compression allows."""
    outgoing = [OutgoingMessage(topic="alerts", key=m.key, value=m.value, headers=m.headers) for m in messages]
    if not kafka:
        # The embedded broker's threads are in its own process; it keeps 5 MiB and takes all.
        with EmbeddedBroker({"alerts": 4}, own_process=True) as broker:
            yield "embedded, zstd", _produce(broker.bootstrap_servers, outgoing, "zstd")
        return
    with KafkaBroker() as real:
        real.create_topics({"alerts": 4})
        for compression in ("zstd", "lz4", "snappy", "none"):
            yield f"Kafka, {compression}", _produce(real.bootstrap_servers, outgoing, compression)


def _produce(servers: str, outgoing: list[OutgoingMessage], compression: Any) -> float:
    with AlertProducer(servers, compression=compression) as producer:
        producer.publish(outgoing[:10])
        _, seconds = best(lambda: producer.publish(outgoing))
    return len(outgoing) / seconds


def best(work: Callable[[], Any]) -> tuple[Any, float]:
    """Return what some work gives, and the least CPU seconds that it took."""
    seconds = []
    for _ in range(RUNS):
        started = time.process_time()
        result = work()
        seconds.append(time.process_time() - started)
    return result, min(seconds)


def make_image(rng: np.random.Generator) -> Exposure:
    """Return noise: pictures of the sky between stars, which compress as badly."""
    planes = MaskedImage(
        image=rng.normal(0.0, 50.0, SHAPE).astype(np.float32),
        mask=np.zeros(SHAPE, dtype=np.int32),
        variance=(2500.0 * rng.uniform(0.98, 1.02, SHAPE)).astype(np.float32),
    )
    return Exposure(masked_image=planes, wcs=WCS, psf=PSF, info=ExposureInfo(rotation_deg=35.0))


def make_sources(rng: np.random.Generator, n: int) -> Catalog:
    """Return sources with every column that a packet has filled, as a good measurement fills them."""
    sources = Catalog(DIA_SOURCE_COLUMNS, n)
    for column in DIA_SOURCE_COLUMNS:
        if sources[column.name].dtype.kind == "f":
            sources[column.name][:] = rng.normal(1000.0, 300.0, n)
    sources["dia_source_id"] = (1 << 57) + np.arange(n)
    sources["visit"], sources["detector"], sources["band"] = 2026112200001, 94, "r"
    sources["x"], sources["y"] = rng.uniform(30, SHAPE[1] - 30, (2, n))
    sources["ra_deg"], sources["dec_deg"] = WCS.pixel_to_sky(x=sources["x"].astype(float), y=sources["y"].astype(float))
    sources["ra_err_deg"] = sources["dec_err_deg"] = 1e-5
    sources["ra_dec_cov_deg2"] = 0.0
    sources["reliability"], sources["extendedness"], sources["bbox_size"] = np.nan, 0.1, 30
    sources["midpoint_mjd_tai"], sources["time_processed_mjd_tai"] = MJD, MJD + 0.001
    for name in ("psf_ndata", "dipole_ndata", "trail_ndata"):
        sources[name] = 1681
    return sources


def cut(sources: Catalog, images: list[Exposure], **options: Any) -> Cutouts:
    """Return the cutouts of all sources."""
    difference, science, template = images
    config = CutoutConfig(**options)
    return make_cutouts(sources, difference=difference, science=science, template=template, config=config)


def make_association(rng: np.random.Generator, sources: Catalog, n_history: int) -> Association:
    """Return the sources associated with objects that were each seen so often before."""
    n = sources.n_rows
    if n_history == 0:
        history = History.empty()
    else:
        rows = np.repeat(np.arange(n), n_history)
        past = sources.select(rows)
        age = np.tile(np.arange(n_history, 0, -1), n)
        past["dia_object_id"] = 1 + rows
        past["dia_source_id"] = 1 + np.arange(len(rows))
        past["midpoint_mjd_tai"] = past["time_processed_mjd_tai"] = MJD - age
        objects = Catalog.from_rows(
            history_columns(),
            [
                {"dia_object_id": k + 1, "ra_deg": sources["ra_deg"][k], "dec_deg": sources["dec_deg"][k]}
                for k in range(n)
            ],
        )
        forced = Catalog(DIA_FORCED_SOURCE_COLUMNS, len(rows))
        for name in ("dia_object_id", "ra_deg", "dec_deg", "midpoint_mjd_tai", "time_processed_mjd_tai", "visit"):
            forced[name] = past[name]
        forced["dia_forced_source_id"] = past["dia_source_id"]
        forced["psf_flux"] = forced["science_flux"] = rng.normal(1000.0, 50.0, len(rows))
        forced["psf_flux_err"] = forced["science_flux_err"] = 50.0
        history = History(objects, past, forced)

    def measure_forced(*, x: np.ndarray, y: np.ndarray) -> ForcedFluxes:
        return ForcedFluxes(*(np.full(len(x), value) for value in (990.0, 40.0, 1490.0, 50.0)))

    return associate(
        sources.select(np.arange(n)),
        history,
        ExposureFacts(
            visit=2026112200001, detector=94, band="r", midpoint_mjd_tai=MJD, time_processed_mjd_tai=MJD + 0.001,
            wcs=WCS, shape=SHAPE,
        ),
        measure_forced=measure_forced,
        forced_id_factory=iter(range(1 << 57, 1 << 58)).__next__,
    )  # fmt: skip


def history_columns() -> Any:
    """Return the columns of an object."""
    return History.empty().objects.columns
