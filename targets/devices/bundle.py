"""The probe as one zip file that Python runs as it is: what travels to a device."""

from __future__ import annotations

import io
import zipfile
from functools import cache
from pathlib import Path

import targets
from targets import probe

__all__ = ["bundle"]

_ENTRANCE = "import sys\nfrom targets.probe.__main__ import main\nsys.exit(main(sys.argv))\n"


@cache
def bundle() -> bytes:
    """The zip. The same sources give the same bytes: devices keep it under its digest."""
    sources = [Path(targets.__file__), *Path(probe.__file__).parent.glob("*.py")]
    root = Path(targets.__file__).parents[1]
    texts = {path.relative_to(root).as_posix(): path.read_bytes() for path in sources}
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_STORED) as archive:
        for name, text in sorted({**texts, "__main__.py": _ENTRANCE.encode()}.items()):
            info = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
            info.external_attr = 0o644 << 16
            archive.writestr(info, text)
    return packed.getvalue()
