"""What tells this machine, with this Python, from one that would measure differently."""

from __future__ import annotations

import json
import platform
import sys
from importlib.util import find_spec
from typing import Any

from targets.probe.machine import cpu
from targets.probe.plugins import PLUGINS

__all__ = ["identity", "main"]


def identity() -> dict[str, Any]:
    """What is known without importing any package; `main` fills in "numpy", "onnxruntime" and "providers"."""
    return {**cpu(), "python": platform.python_version(), "numpy": "", "onnxruntime": "", "providers": []}


def main() -> int:
    """Prints the whole identity, as the last line. A package that cannot be imported counts as absent."""
    found = identity()
    try:
        import numpy as np

        found["numpy"] = str(np.__version__)
        import onnxruntime as ort

        plugins = [name for name, package in PLUGINS.items() if find_spec(package)]
        found["providers"] = list(dict.fromkeys([*plugins, *ort.get_available_providers()]))
        found["onnxruntime"] = str(ort.__version__)
    except Exception as error:  # a broken installation raises whatever it likes
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
    sys.stdout.write("\n" + json.dumps(found) + "\n")
    return 0
