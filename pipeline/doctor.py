"""What attar finds on this machine, and what is missing for what."""

from __future__ import annotations

import os
import platform
import sys

from pipeline import digests
from pipeline.store import Store
from targets.target import load

__all__ = ["findings"]

_BASE = ("jinja2", "numpy", "onnx", "onnxruntime", "pydantic", "pyyaml", "rich", "typer")
_COMPRESS = ("neural-compressor", "onnxscript", "pillow", "safetensors", "scikit-learn", "torch", "torch-pruning")


def findings(store: Store) -> tuple[list[tuple[str, str, str]], bool]:
    """Rows of (what, found, remark), and whether everything that the base install needs is there."""
    base, extra = digests.of_libraries(_BASE), digests.of_libraries(_COMPRESS)
    rows = [("python", platform.python_version(), sys.executable)]
    rows += [(name, found, "" if found != "absent" else "pip install attar") for name, found in base.items()]
    rows += [
        (name, found, "" if found != "absent" else "to compress: pip install 'attar[compress]'")
        for name, found in extra.items()
    ]
    local = load("local")
    rows.append(("processor", f"{os.cpu_count()} cores", local.summary))
    rules = local.int8
    rows.append(("int8 here", f"{rules.activations} activations", "7-bit weights" if rules.reduce_range else ""))
    rows.append(("store", f"{store.size_bytes() / 1e6:.1f} MB", f"{store.root} (set ATTAR_STORE to move it)"))
    return rows, "absent" not in base.values()
