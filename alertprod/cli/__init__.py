"""The command line. Errors of the tree become one line on standard error and an exit status.

Exit status: 0 done; 1 failed, with the reason; 2 wrong usage or configuration; of `run` also 69, something needed to
start does not answer, and 70, a condition that only a restart mends (the daemon was fenced, for example).
"""

import sys

from alertprod.cli.app import app
from alertprod.errors import AlertprodError, ConfigError


def main() -> None:
    """Run the command line of this process and exit."""
    try:
        app()
    except ConfigError as error:
        print(f"alertprod: configuration: {error}", file=sys.stderr)
        sys.exit(2)
    except AlertprodError as error:
        print(f"alertprod: {error.reason()}: {error}", file=sys.stderr)
        sys.exit(1)
    except OSError as error:
        if error.filename is None:  # no file that was named on the command line
            raise
        print(f"alertprod: {error.filename}: {error.strerror}", file=sys.stderr)
        sys.exit(1)


__all__ = ["main"]
