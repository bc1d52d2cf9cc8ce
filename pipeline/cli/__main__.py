"""`python -m pipeline.cli` is `attar`."""

from pipeline.cli.app import main

main()
