"""Which cores the process stays on while it measures. Standard library alone."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from targets.probe.machine import read_text

__all__ = ["busy", "choose", "pin"]

CPUS = "/sys/devices/system/cpu"
LOOK_S = 0.1


def pin(threads: int) -> list[int]:
    """Keeps this process, and all threads that it starts from now on, on as many cores as it has threads.

    A process that wanders finds cold caches and, on a chip of two kinds of cores, another speed.

    Returns:
        The cores; none where the system has no such call.
    """
    if not hasattr(os, "sched_setaffinity"):
        return []
    allowed = sorted(os.sched_getaffinity(0))
    if threads < len(allowed):
        before = read_text("/proc/stat")
        time.sleep(LOOK_S)
        load = busy(before, read_text("/proc/stat"))
        allowed = choose(allowed, threads, {c: _speed(c) for c in allowed}, load, {c: _core(c) for c in allowed})
    try:
        os.sched_setaffinity(0, allowed)
    except OSError:
        return []
    return allowed


def choose(
    allowed: Sequence[int], count: int, speed: Mapping[int, int], load: Mapping[int, float], core: Mapping[int, str]
) -> list[int]:
    """The idlest of the fastest cores, and no two that share one physical core while there are others as fast.

    Args:
        allowed: CPU numbers to choose from.
        speed: of each CPU, in any unit; within a tenth of each other they count as equal (turbo bins).
        load: share of time that each CPU was busy, 0 to 1.
        core: name of the physical core of each CPU; CPUs of one core disturb each other.
    """
    shared: dict[str, float] = {}
    for cpu, share in load.items():
        if cpu in core:
            shared[core[cpu]] = shared.get(core[cpu], 0.0) + share
    top = max(speed.values())
    seen: dict[str, int] = {}
    ranked: list[tuple[bool, int, int, int, int]] = []
    for cpu in sorted(allowed, key=lambda cpu: (round(shared.get(core[cpu], 0.0), 1), load.get(cpu, 0.0), cpu)):
        slow = speed[cpu] < 0.9 * top
        ranked.append((slow, -speed[cpu] if slow else 0, seen.get(core[cpu], 0), len(ranked), cpu))
        seen[core[cpu]] = seen.get(core[cpu], 0) + 1
    return sorted(cpu for *_, cpu in sorted(ranked)[:count])


def busy(before: str, after: str) -> dict[int, float]:
    """Share of time that each CPU was not idle between two texts of /proc/stat."""
    first, second = _ticks(before), _ticks(after)
    found = {}
    for cpu, (idle, total) in second.items():
        idle0, total0 = first.get(cpu, (0, 0))
        found[cpu] = 1 - (idle - idle0) / (total - total0) if total > total0 else 0.0
    return found


def _ticks(stat: str) -> dict[int, tuple[int, int]]:
    """CPU -> (ticks idle or waiting for a disk, ticks in all)."""
    found = {}
    for line in stat.splitlines():
        name, *numbers = line.split() or [""]
        if name.startswith("cpu") and name[3:].isdigit():
            ticks = [int(number) for number in numbers]
            found[int(name[3:])] = (sum(ticks[3:5]), sum(ticks[:8]))
    return found


def _speed(cpu: int) -> int:
    """Highest frequency (kHz), or Linux's own idea of a core's capacity, or 1 for all."""
    for name in ("cpufreq/cpuinfo_max_freq", "cpu_capacity"):
        text = read_text(f"{CPUS}/cpu{cpu}/{name}").strip()
        if text.isdigit():
            return int(text)
    return 1


def _core(cpu: int) -> str:
    siblings = read_text(str(Path(CPUS) / f"cpu{cpu}/topology/thread_siblings_list")).strip()
    return siblings or str(cpu)
