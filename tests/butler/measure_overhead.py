"""What a Butler costs beside plain files: ``python tests/butler/measure_overhead.py [SIZE]``.

Milliseconds a dataset of SIZE² pixels (512 by default), and seconds a quantum beside the same work on files.
"""

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from butler_repository import DETECTOR, INPUTS, INSTRUMENT, SKYMAP, WCS, Made, add_visit, make_repository
from lsst.daf.butler import Butler
from lsst.pipe.base.simple_pipeline_executor import SimplePipelineExecutor

from alertprod.butler.pipeline import ImageDifferenceTask
from alertprod.images.exposure import Exposure
from alertprod.images.fits_io import load_exposure, save_exposure
from alertprod.images.masked_image import MaskedImage
from alertprod.store.repository import FolderRepository
from alertprod.store.repository_description import add_exposures, add_templates
from alertprod.tasks import image_difference

N = 15
"""Datasets, and quanta: the median is what one costs."""


def time_each(work: Callable[[int], object], numbers: range) -> float:
    """Return the median of milliseconds of CPU: of one thread that waits for little, and true on a busy machine too."""
    durations = []
    for n in numbers:
        started = time.process_time()
        work(n)
        durations.append(1e3 * (time.process_time() - started))
    return statistics.median(durations)


def measure_datasets(folder: Path, size: int) -> None:
    made = make_repository(folder / "repository")
    rng = np.random.default_rng(1)
    shape = (size, size)
    noise = rng.normal(0.0, 5.0, shape).astype(np.float32)
    planes = MaskedImage(noise, np.zeros(shape, np.int32), np.full(shape, 25.0, np.float32))
    science: Exposure = replace(made.pairs[1].science, masked_image=planes, wcs=WCS)
    visits = range(100, 100 + N)
    with Butler.from_config(made.root, writeable=True, run="overhead") as butler:
        for visit in visits:
            add_visit(butler, visit)
        exposures = {visit: replace(science, info=replace(science.info, visit=visit)) for visit in visits}

        def data_id(visit: int) -> dict[str, int | str]:
            return {"instrument": INSTRUMENT, "visit": visit, "detector": DETECTOR}

        timed = {
            "write": (
                time_each(lambda n: save_exposure(exposures[n], folder / f"{n}.fits"), visits),
                time_each(lambda n: butler.put(exposures[n], "calexp", data_id(n)), visits),
            ),
            "read": (
                time_each(lambda n: load_exposure(folder / f"{n}.fits"), visits),
                time_each(lambda n: butler.get("calexp", data_id(n)), visits),
            ),
        }
    for what, (plain, through) in timed.items():
        print(f"{what} {size}²: file {plain:.1f} ms, butler {through:.1f} ms, overhead {through - plain:.1f} ms")


def measure_quanta(folder: Path) -> None:
    visits = tuple(range(1, N + 1))
    made = make_repository(folder / "repository", visits)
    plain, plain_cpu = run_on_files(made, folder)
    started = time.perf_counter()
    butler = SimplePipelineExecutor.prep_butler(str(made.root), list(INPUTS), "u/test/overhead")
    where = f"skymap = '{SKYMAP}' AND instrument = '{INSTRUMENT}'"
    executor = SimplePipelineExecutor.from_task_class(ImageDifferenceTask, where=where, butler=butler)
    graph = time.perf_counter() - started
    started, cpu = time.perf_counter(), time.process_time()
    n = len(executor.run(register_dataset_types=True, save_versions=False))
    ran, cpu = (time.perf_counter() - started) / n, (time.process_time() - cpu) / n
    print(f"graph of {n} quanta: {graph:.2f} s")
    print(f"quantum: folder {plain:.3f} s ({plain_cpu:.3f} s CPU), butler {ran:.3f} s ({cpu:.3f} s CPU)")


def run_on_files(made: Made, folder: Path) -> tuple[float, float]:
    """Return wall and CPU seconds an exposure of the same task on the same exposures in a folder."""
    images, tiles, root = (folder / name for name in ("images", "tiles", "folder"))
    images.mkdir()
    tiles.mkdir()
    for visit, pair in made.pairs.items():
        save_exposure(replace(pair.science, wcs=WCS), images / f"{visit}.fits")
    for n, tile in enumerate(made.tiles):
        save_exposure(tile, tiles / f"{n}.fits")
    add_exposures(root, str(images))
    add_templates(root, str(tiles))
    task = image_difference.ImageDifferenceTask()
    refs = FolderRepository(root).subset("calexp", [{}])
    task.runDataRef(refs[0])  # compiles
    started, cpu = time.perf_counter(), time.process_time()
    for ref in refs:
        task.runDataRef(ref)
        task.writeMetadata(ref)
    return (time.perf_counter() - started) / len(refs), (time.process_time() - cpu) / len(refs)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch_folder:
        measure_datasets(Path(scratch_folder) / "datasets", int(sys.argv[1]) if len(sys.argv) > 1 else 512)
        measure_quanta(Path(scratch_folder) / "quanta")
