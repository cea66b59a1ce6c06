"""Compiles every loop into NUMBA_CACHE_DIR while an image is built, so that a container is ready in seconds."""

import sys
import time

from alertprod.factory import create_task
from alertprod.service.warm_up import warm_up

started = time.monotonic()
n_alerts = warm_up(create_task({}, source="image"), n_threads=1)
sys.stderr.write(f"compiled in {time.monotonic() - started:.0f} s; {n_alerts} alerts of the made-up exposure\n")
sys.exit(0 if n_alerts else 1)
