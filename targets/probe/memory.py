"""How much memory there is, how much was used, and a limit that keeps an absurd model from taking the machine down."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

from targets.probe.machine import read_text

__all__ = ["available_mb", "exhausted", "guard", "peak_mb", "total_mb"]

CGROUPS = "/sys/fs/cgroup"


def total_mb() -> float | None:
    """Memory of the machine, MB (10^6 bytes); None where Linux does not tell."""
    return _field(read_text("/proc/meminfo"), "MemTotal")


def available_mb() -> float | None:
    """What can still be taken without swapping, MB, also within this process's control group."""
    free = _field(read_text("/proc/meminfo"), "MemAvailable")
    return None if free is None else min([free, *_rooms(read_text("/proc/self/cgroup"))])


def peak_mb() -> float:
    """Most resident memory that this process ever had, MB. VmHWM first: on Linux, ru_maxrss may be the parent's, from
    before exec."""
    found = _field(read_text("/proc/self/status"), "VmHWM")
    if found is not None:
        return found
    try:
        import resource
    except ImportError:  # Windows
        return 0.0
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def guard(provider: str) -> float | None:
    """Limits this process to the memory that is free now, less a twentieth, 64 MB at least; gives that in MB.

    Without it, Linux promises memory that it does not have, and ends some process, perhaps not this one, when it is
    used. Swapping counts as not having it: nothing measured while it lasts is worth anything. Only for the CPU
    provider: drivers of accelerators reserve addresses that they never fill. None where no limit was set.
    """
    free, used = available_mb(), _field(read_text("/proc/self/status"), "VmData")
    if provider != "CPUExecutionProvider" or free is None or used is None:
        return None
    import resource

    spare = max(free - max(64.0, free / 20), 1.0)
    hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
    limit = int((used + spare) * 1e6)
    resource.setrlimit(resource.RLIMIT_DATA, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))
    return spare


_EXHAUSTED = re.compile(r"bad.alloc|Failed to allocate memory|out of memory|Unable to allocate", re.IGNORECASE)


def exhausted(error: BaseException) -> bool:
    """Whether an error of onnxruntime, numpy or Python says that memory ran out."""
    return isinstance(error, MemoryError) or bool(_EXHAUSTED.search(str(error)))


def _field(text: str, name: str) -> float | None:
    """A line like "MemTotal:   24684084 kB" of a file of /proc, in MB."""
    found = re.search(rf"^{name}:\s+(\d+) kB", text, re.MULTILINE)
    return int(found.group(1)) * 1024 / 1e6 if found else None


def _rooms(cgroup: str, root: str = CGROUPS) -> Iterator[float]:
    """What each limited control group above this process still leaves, MB; file cache can be given back, and counts
    as free.

    Args:
        cgroup: text of /proc/self/cgroup. In a container its paths may lead nowhere: the root is then the group.
    """
    for line in cgroup.splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            base, limit, usage, cache = Path(root), "memory.max", "memory.current", "inactive_file"
        elif "memory" in controllers.split(","):
            base = Path(root) / "memory"
            limit, usage, cache = "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"
        else:
            continue
        here = base / path.strip("/")
        for group in [here, *(above for above in here.parents if above == base or base in above.parents)]:
            bound, used = read_text(str(group / limit)).strip(), read_text(str(group / usage)).strip()
            if bound.isdigit() and used.isdigit():
                kept = re.search(rf"^{cache} (\d+)", read_text(str(group / "memory.stat")), re.MULTILINE)
                yield max(0, int(bound) - int(used) + (int(kept.group(1)) if kept else 0)) / 1e6
