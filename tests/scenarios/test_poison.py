"""Files that are no exposures: each has a reason, in bounded time and memory, and the next exposure is unaffected."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from daemon_site import Verdict, report
from observatory import make_event, make_observatory
from poison_files import poison

from alertprod.stream.dead_letter import parse_dead_letter

N_FILES = 200
MEMORY_BYTES = 3 << 30
"""Of address space: what the libraries map, and a few times the file."""

TESTS = Path(__file__).resolve().parent.parent


def write_poison(night, folder: Path, n: int, seed: int) -> list[Path]:
    folder.mkdir()
    paths = []
    for name, content in poison(night.exposure_path(0, 0).read_bytes(), n, seed=seed):
        (folder / name).write_bytes(content)
        paths.append(folder / name)
    return paths


@pytest.mark.slow
@pytest.mark.parametrize("n_files", [60, pytest.param(N_FILES, marks=pytest.mark.faults)])
def test_spoilt_files_are_each_an_exposure_or_corrupt_within_bounds(tmp_path, small_night, n_files):
    files = write_poison(small_night, tmp_path / "poison", n_files, seed=n_files)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", TESTS / "poison_files.py", tmp_path / "poison", str(MEMORY_BYTES)],
        capture_output=True, text=True, timeout=250, check=False, env={**os.environ, "PYTHONPATH": f"{TESTS}:{TESTS.parent}"},
    )  # fmt: skip
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0, done.stderr[-2000:]
    assert len(found) == len(files)
    outcomes = Counter(each["outcome"] for each in found)
    assert set(outcomes) == {"loaded", "corrupt_image"}, [
        e for e in found if e["outcome"] not in ("loaded", "corrupt_image")
    ]
    assert outcomes["corrupt_image"] > n_files / 3
    assert max(each["seconds"] for each in found) < 10.0
    report("spoilt files to the loader, 3 GiB of address space", tries=len(files), verdict=Verdict(), **outcomes)


@pytest.mark.slow
@pytest.mark.kafka
@pytest.mark.timeout(1200)
@pytest.mark.faults
@pytest.mark.parametrize("n_files", [24, N_FILES])
def test_spoilt_files_end_as_what_they_are_and_the_good_ones_between_are_published(
    tmp_path, kafka_broker, small_night, n_files
):
    """Flipped bits in pixels leave an exposure: it is published. None ends as a bug or a worker's death."""
    night = small_night
    files = write_poison(night, tmp_path / "poison", n_files, seed=n_files)
    (tmp_path / "poison" / "folder.fits").mkdir()
    os.mkfifo(tmp_path / "poison" / "pipe.fits")
    files += [tmp_path / "poison" / name for name in ("folder.fits", "pipe.fits")]
    site = make_observatory(tmp_path / "site", kafka_broker, night, lanes=2)
    events = [
        make_event(night, 0, 0, visit=night.visit_id(100) + n, calexp_uri=str(path)) for n, path in enumerate(files)
    ]
    good = [make_event(night, visit, detector) for visit in range(3) for detector in (0, 1)]
    for n, event in enumerate(good):
        events.insert((n + 1) * len(files) // len(good), event)
    with site.start() as daemon:
        daemon.wait_ready()
        site.send(*events, lanes=[n % 2 for n in range(len(events))])
        daemon.wait_until(lambda: len(set(map(str, site.positions()))) == 1, timeout_s=1000.0)
        assert daemon.measure().total("alertprod_worker_deaths_total") == 0
        assert daemon.terminate() == 0
    summaries = {(summary.visit, summary.detector): summary for summary in site.summaries()}
    assert len(summaries) == len(events)
    assert all(summaries[event.visit, event.detector].outcome == "published" for event in good)
    letters = [parse_dead_letter(letter) for letter in site.read(site.topics.dead_letters)]
    reasons = Counter(letter.reason for letter in letters)
    assert not reasons.keys() & {"unexpected", "worker_died"}, [
        le.message for le in letters if le.reason == "unexpected"
    ]
    report("spoilt files through the daemon", tries=len(files), verdict=Verdict(), **reasons)
