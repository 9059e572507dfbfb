"""``python -m mhim``."""

from mhim.cli import main

main()
