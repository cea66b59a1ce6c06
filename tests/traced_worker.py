"""A worker that says what it opened: ``python traced_worker.py CONFIG EVENT``, both JSON; a line of JSON comes back.

It is built and warmed up as the daemon's are, claims the exposure, processes it, and is watched while it does: files it
opens, folders it lists, addresses it connects to, processes it starts, classes it unpickles.
"""

import json
import os
import sys
from pathlib import Path

from alertprod.config import DaemonConfig
from alertprod.factory import WorkerPipeline
from alertprod.service.work import WorkOrder
from alertprod.store.database import Database
from alertprod.store.ledger import EventPosition, ExposureKey, Ledger
from alertprod.stream.messages import VisitReady


def run(config: DaemonConfig, event: VisitReady) -> dict[str, object]:
    pipeline = WorkerPipeline(config)()
    pipeline.warm_up()
    ledger = Ledger(Database(config.store.database_url))
    position = EventPosition("visit-ready", 0, event.visit)
    key = ExposureKey(event.instrument, event.visit, event.detector)
    claim = ledger.claim(key, owner="test", lease_s=600.0, event=position)
    order = WorkOrder(event=event, position=position, claim=claim, received_unix_s=0.0, deadline_s=600.0)
    seen: list[tuple[str, str]] = []
    is_watching = True

    def watch(name: str, arguments: tuple[object, ...]) -> None:
        if not is_watching:
            return
        if name == "open" and isinstance(arguments[0], str | bytes | os.PathLike):
            flags = int(arguments[2] or 0)
            seen.append(("read" if flags & os.O_ACCMODE == os.O_RDONLY else "written", os.fsdecode(arguments[0])))
        elif name in ("os.listdir", "os.scandir"):
            seen.append(("listed", os.fsdecode(arguments[0] or ".")))
        elif name in ("socket.connect", "socket.getaddrinfo", "subprocess.Popen", "pickle.find_class"):
            seen.append((name, repr(arguments)))

    sys.addaudithook(watch)
    result = pipeline.process(order)
    is_watching = False
    cache = result.cache.hits, result.cache.misses
    return {"outcome": result.outcome, "n_alerts": result.outbox.n_messages, "cache": cache, "seen": seen}


def bytes_from_disk() -> int:
    """Return what the kernel has read from storage for this process so far."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("read_bytes")))


if __name__ == "__main__":
    config, event = (json.loads(Path(path).read_text()) for path in sys.argv[1:3])
    sys.stdout.write(json.dumps(run(DaemonConfig.model_validate(config), VisitReady(**event))) + "\n")
