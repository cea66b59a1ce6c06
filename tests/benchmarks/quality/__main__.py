"""``python tests/benchmarks/quality``: measure the science quality on simulations that nobody tuned on."""

import sys
from pathlib import Path

# The folder itself must not be searched: its modules are `benchmarks.quality.…`.
sys.path[0] = str(Path(__file__).resolve().parents[2])

from benchmarks.quality.command import main  # noqa: E402

sys.exit(main())
