"""The entrance of the probe; see `targets.probe`. Imports only what the chosen part needs: memory is measured here."""

from __future__ import annotations

import os
import signal
import sys

__all__ = ["main"]

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def main(argv: list[str]) -> int:
    """Does what the first argument says; gives the exit code."""
    if argv[1:2] == ["keep"]:
        from targets.probe.keeper import main as keep

        return keep(argv)
    _end_with(int(os.environ.pop("ATTAR_KEEPER", "0")))
    if argv[1:] == ["identity"]:
        from targets.probe.identity import main as identify

        return identify()
    from targets.probe.job import main as work

    return work(argv)


def _end_with(keeper: int) -> None:
    """Makes the kernel kill this process when its keeper dies, even of SIGKILL. Linux only; elsewhere the job itself
    looks now and then."""
    if not keeper or not sys.platform.startswith("linux"):
        return
    try:
        import ctypes

        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    except (ImportError, OSError, AttributeError):
        return
    if os.getppid() != keeper:
        sys.exit(1)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
