"""What the machine is, and how it is doing: only what it lets us read. Standard library alone."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

__all__ = ["cpu", "read_text", "state"]

RASPBERRY_THROTTLED = "/sys/devices/platform/soc/soc:firmware/get_throttled"
FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm", "sve")


def cpu(cpuinfo: str | None = None) -> dict[str, Any]:
    """The processor: {"model", "machine", "cores" (usable by this process), "flags" (those that matter for int8)}.

    Args:
        cpuinfo: text of /proc/cpuinfo; read from this machine when left out.
    """
    text = read_text("/proc/cpuinfo") if cpuinfo is None else cpuinfo
    fields: dict[str, str] = {}
    for line in text.splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip(), value.strip())
    present = set((fields.get("flags") or fields.get("Features") or "").split())
    part = fields.get("CPU part")
    board = read_text("/proc/device-tree/model").strip("\0\n") if cpuinfo is None else ""
    model = fields.get("model name") or board or fields.get("Model") or (f"CPU part {part}" if part else "")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return {
        "model": model or platform.processor() or "unknown",
        "machine": platform.machine(),
        "cores": cores,
        "flags": [flag for flag in FLAGS if flag in present],
    }


def read_text(path: str) -> str:
    """The file's text; empty where it cannot be read."""
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _numbers(folder: str, pattern: str, scale: float) -> list[float]:
    texts = [read_text(str(path)).strip() for path in sorted(Path(folder).glob(pattern))]
    return [round(float(text) / scale, 1) for text in texts if text.lstrip("-").isdigit()]


def state() -> dict[str, Any]:
    """What changes while measuring; only what this machine lets us read.

    Keys: load_average_1min, frequency_mhz [lowest, highest], governor (all in use), temperature_c (hottest zone),
    throttled (of a Raspberry Pi: its firmware's bits, in hexadecimal; "0" is good), throttle_count (of x86 cores,
    since boot, all added up).
    """
    found: dict[str, Any] = {}
    if hasattr(os, "getloadavg"):
        found["load_average_1min"] = round(os.getloadavg()[0], 2)
    frequencies = _numbers("/sys/devices/system/cpu", "cpu[0-9]*/cpufreq/scaling_cur_freq", 1e3)
    if not frequencies:
        lines = [line for line in read_text("/proc/cpuinfo").splitlines() if line.startswith("cpu MHz")]
        frequencies = [round(float(line.partition(":")[2]), 1) for line in lines]
    if frequencies:
        found["frequency_mhz"] = [min(frequencies), max(frequencies)]
    governors = {
        read_text(str(path)).strip()
        for path in Path("/sys/devices/system/cpu").glob("cpu[0-9]*/cpufreq/scaling_governor")
    }
    if governors:
        found["governor"] = sorted(governors)
    temperatures = _numbers("/sys/class/thermal", "thermal_zone*/temp", 1e3)
    if temperatures:
        found["temperature_c"] = max(temperatures)
    throttled = read_text(RASPBERRY_THROTTLED).strip()
    if throttled:
        found["throttled"] = throttled
    counts = _numbers("/sys/devices/system/cpu", "cpu[0-9]*/thermal_throttle/core_throttle_count", 1)
    if counts:
        found["throttle_count"] = int(sum(counts))
    return found
