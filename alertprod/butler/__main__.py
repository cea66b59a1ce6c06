"""``python -m alertprod.butler REPOSITORY``: tell a Butler repository how our exposures and tables are kept."""

import argparse
import sys
from pathlib import Path

from alertprod.butler.definitions import prepare_repository
from alertprod.errors import ConfigError


def main() -> int:
    """Do it; 0 where the repository knows now, 2 where it is none."""
    parser = argparse.ArgumentParser(prog="python -m alertprod.butler", description=__doc__.partition(": ")[2])
    parser.add_argument("repository", type=Path, help="the folder with butler.yaml")
    repository: Path = parser.parse_args().repository
    try:
        changed = prepare_repository(repository)
    except ConfigError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    sys.stdout.write(f"{repository}: {'storage classes added' if changed else 'knew them already'}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
