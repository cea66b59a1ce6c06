"""``python -m alertprod``."""

from alertprod.cli import main

main()
