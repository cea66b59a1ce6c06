"""``python tests/benchmarks/speed``: measure what an exposure, its alerts and its history cost."""

import sys
from pathlib import Path

# The folder itself must not be searched: its modules are `benchmarks.speed.…`.
sys.path[0] = str(Path(__file__).resolve().parents[2])

from benchmarks.speed.command import main  # noqa: E402

sys.exit(main())
