"""The command `attar`: one file per group of commands. Heavy libraries wake inside the commands that need them."""

from pipeline.cli.app import main

__all__ = ["main"]
