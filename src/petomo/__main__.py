"""``python -m petomo``."""

from petomo.cli import main

main()
