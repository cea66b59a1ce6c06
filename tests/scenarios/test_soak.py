"""Many exposures in a row through the real daemon: memory, files and threads stay where they are."""

import itertools
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import psutil
import pytest
from astropy.io import fits
from daemon_site import Verdict, report
from observatory import Observatory, header_of, make_event, make_observatory

from alertprod.service.clock import mjd_tai_from_unix
from alertprod.sim.night import Night, NightConfig, make_night
from alertprod.sim.scene import SceneConfig
from alertprod.store.template_index import index_templates
from alertprod.stream.tail import AlertTail

pytestmark = [pytest.mark.kafka, pytest.mark.slow]

WARM_EXPOSURES = 50
"""After these allocators and caches have what they need."""
MAX_DRIFT_BYTES = 20e6

PLOT = Path(__file__).resolve().parents[2] / ".cache" / "soak.png"


def make_larger_night(folder: Path) -> Night:
    """Three exposures of 1024², just taken, with their template."""
    scene = SceneConfig(transients_per_arcmin2=1.0, variables_per_arcmin2=0.3)  # a thousand times its alerts are kept
    start = mjd_tai_from_unix(time.time())
    night = make_night(folder, NightConfig(seed=12, n_visits=3, n_detectors=1, start_mjd_tai=start, scene=scene))
    index_templates(str(night.templates_directory))
    return night


@pytest.mark.timeout(7200)
@pytest.mark.parametrize("n_exposures", [10, pytest.param(1000, marks=pytest.mark.faults)])
def test_memory_files_and_threads_are_flat_over_many_exposures(tmp_path, kafka_broker, request, n_exposures):
    """A few of 512² in the short version, of 1024² in the long one."""
    is_long = n_exposures > 2 * WARM_EXPOSURES
    night = make_larger_night(tmp_path / "night") if is_long else request.getfixturevalue("small_night")
    site = make_observatory(
        tmp_path / "site",
        kafka_broker,
        night,
        lanes=2,
        limits="max_event_age_s = 1e9\n[association]\nhistory_days = 0.01",
    )
    samples: list[tuple[int, float, float, int, int, int]] = []
    visits = range(night.visit_id(200), night.visit_id(200) + n_exposures)
    sources = itertools.cycle([night.exposure_path(visit, 0) for visit in range(3)])
    folder = tmp_path / "images"
    folder.mkdir()

    with site.start() as daemon:
        daemon.wait_ready()
        main = psutil.Process(daemon.process.pid)
        began = time.monotonic()
        for n, visit in enumerate(visits):
            image = folder / f"{visit}.fits"
            image.write_bytes(next(sources).read_bytes())
            fits.setval(image, "VISIT", value=visit)
            shift_days = (n - n_exposures) * 60.0 / 86400.0  # a minute apart: histories do not grow without end
            event = night.event(n % 3, 0)
            times = {name: event[name] + shift_days for name in ("shutter_open_mjd_tai", "shutter_close_mjd_tai")}
            site.send(make_event(night, n % 3, 0, visit=visit, calexp_uri=str(image), **times), lanes=[n % 2])
            daemon.wait_until(lambda visit=visit: site.state((visit, 0)) == "published", timeout_s=300.0)
            image.unlink()
            workers = [process for process in main.children(recursive=True) if process.num_threads() > 1]
            worker_bytes = max(process.memory_info().rss - process.memory_info().shared for process in workers)
            threads = main.num_threads() + sum(process.num_threads() for process in workers)
            files = main.num_fds() + sum(process.num_fds() for process in workers)
            n_left = sum(1 for path in site.folder.rglob("*") if path.is_file() and path.suffix != ".outbox")
            samples.append((n, main.memory_info().rss, worker_bytes, files, threads, n_left))
            if n % WARM_EXPOSURES == WARM_EXPOSURES - 1:
                draw(np.array(samples))
        seconds = time.monotonic() - began
        assert daemon.measure().total("alertprod_worker_deaths_total") == 0
        assert daemon.terminate() == 0

    table = np.array(samples)
    settled = table[min(WARM_EXPOSURES, n_exposures // 2) :]
    slopes = [np.polyfit(settled[:, 0], settled[:, column], 1)[0] * len(settled) for column in (1, 2)]
    draw(table)
    verdict = check(site, visits)
    report(
        f"exposures of {night.config.size}² in a row",
        tries=n_exposures,
        verdict=verdict,
        drift_bytes=[round(slope) for slope in slopes],
        seconds=round(seconds),
    )
    assert verdict.is_good, verdict
    if is_long:
        assert max(slopes) < MAX_DRIFT_BYTES, slopes
    assert np.ptp(settled[:, 3]) <= 6, "open files"
    assert np.ptp(settled[:, 4]) <= 4, "threads"
    assert settled[-1, 5] - settled[0, 5] <= 3, "files on the disk"


def check(site: Observatory, visits: Sequence[int]) -> Verdict:
    """Compare what a consumer sees, one message at a time, with what the summaries promise."""
    summaries = site.summaries()
    promised = {summary.visit: summary.n_alerts for summary in summaries if summary.outcome == "published"}
    ids: dict[int, list[str]] = defaultdict(list)
    with AlertTail(site.broker.bootstrap_servers, [site.topics.alerts]) as tail:
        for message in tail.messages(idle_s=10.0):
            ids[int(header_of(message, "visit"))].append(header_of(message, "diaSourceId"))
    verdict = Verdict(lost=len(set(visits) - set(promised)), duplicated=len(summaries) - len(promised))
    for visit in visits:
        distinct = len(set(ids[visit]))
        verdict.lost += max(0, promised.get(visit, 0) - distinct)
        verdict.duplicated += len(ids[visit]) - distinct
    return verdict


def draw(table) -> None:
    """Draw memory, files and threads over exposures, where matplotlib is there."""
    pyplot = pytest.importorskip("matplotlib.figure")
    figure = pyplot.Figure(figsize=(8, 6))
    above, below = figure.subplots(2, 1, sharex=True)
    for column, name in ((1, "daemon"), (2, "worker, private")):
        above.plot(table[:, 0], table[:, column] / 1e6, label=name)
    above.set(ylabel="memory [MB]", ylim=(0, None))
    for column, name in ((3, "open files"), (4, "threads"), (5, "files on the disk, outbox apart")):
        below.plot(table[:, 0], table[:, column], label=name)
    below.set(xlabel="exposure", ylabel="number", ylim=(0, None))
    for axes in (above, below):
        axes.set_ylim(top=1.3 * axes.get_ylim()[1])  # room for the legend
        axes.legend(loc="upper right")
    PLOT.parent.mkdir(exist_ok=True)
    figure.savefig(PLOT, dpi=100)
