"""Instruments that tell how much energy was used: each with a name, and joules that only grow.

One joule is counted once:
    RAPL    the kernel's powercap tree: the packages, and each package's DRAM. Intel's manual has DRAM as a domain
            beside the package (SDM vol. 3B, "RAPL Domains and Platform Specificity"; Khan et al., "RAPL in Action",
            TOMPECS 3(2), 2018), though the kernel hangs it below (https://docs.kernel.org/power/powercap/powercap.html).
            Core and uncore are parts of the package, psys holds all of it, and intel-rapl-mmio is the same package
            through another register: none of them is added.
    NVML    the energy counter of the GPUs (Volta and later), through `pynvml` where it is installed; beside RAPL, for
            the processor that feeds them works too. Only when the model runs there.
    rails   INA power monitors in hwmon, by label, sampled and integrated here. A rail that feeds the whole board holds
            all others.
    Apple   IOReport's counters, through `zeus_apple_silicon` where it is installed.

Zeus itself (ml.energy/zeus) is not used. It would bring a data-science stack onto the board, runs one more process per
counter while it measures (to see wrap-around), and puts each of a Jetson's rails, read ten times a second, into one of
CPU, GPU and total, whatever else the rail feeds. Of the places that only Zeus reaches, Apple's chips are served by its
small extension alone; an AMD GPU is not served.
"""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

__all__ = ["Apple", "Instrument", "Missing", "Nvml", "Rails", "Rapl", "accelerated", "find"]

# A provider whose work is the CPU time of this process; of any other, CPU time says little.
CPU_PROVIDERS = ("", "CPU", "Xnnpack", "Dnnl", "ACL", "ArmNN", "OpenVINO")
GPU_PROVIDERS = ("CUDAExecutionProvider", "TensorrtExecutionProvider", "NvTensorRTRTXExecutionProvider")
WHOLE_BOARD = ("VDD_IN", "POM_5V_IN", "VIN")  # Jetson Orin NX and Nano, Xavier NX; Nano; AGX Thor


class Missing(Exception):  # noqa: N818  nothing is wrong: the instrument is not there
    """Why an instrument cannot be used here."""


class Instrument(Protocol):
    """Something that counts energy.

    Attributes:
        grade: "counter" (the hardware adds up) or "rail" (power, sampled and added up here).
        name: what it counts: "RAPL package-0".
        step_s: how often its count moves, seconds; 0: whenever it is read.
        period_s: how often it must be read so as not to miss any energy, seconds; None: it does not matter.
    """

    grade: str
    name: str
    step_s: float
    period_s: float | None

    def joules(self) -> float:
        """Energy since an arbitrary start.

        Raises:
            OSError, ValueError: it cannot be read any more.
        """


def find(settings: Mapping[str, Any]) -> tuple[list[Instrument], str]:
    """The instruments whose sum is the energy of this machine, and what there is to say about them.

    Args:
        settings: powercap, hwmon (roots of those trees), rails (labels), provider, options (of onnxruntime).
    """
    remarks: list[str] = []
    provider = str(settings.get("provider") or "")
    outside = accelerated(settings) and not provider.startswith("OpenVINO")  # its devices are in the package, mostly

    def tried(kind: Callable[..., Instrument], *arguments: Any) -> list[Instrument]:
        try:
            return [kind(*arguments)]
        except Missing as missing:
            remarks.append(str(missing))
            return []

    rails = tuple(settings.get("rails") or ())
    found = tried(_rails, Path(settings.get("hwmon") or "/sys/class/hwmon"), rails) if rails else []
    if not found and sys.platform == "darwin":
        found = tried(Apple)
    elif not found:
        if provider in GPU_PROVIDERS:
            found = tried(Nvml)
        elif outside:
            remarks.append(f"no instrument is known for {provider}")
        if outside and not found:  # the processor's share would be taken for the whole
            return [], "; ".join(remarks)
        found += tried(Rapl, Path(settings.get("powercap") or "/sys/class/powercap"))
    return found, "; ".join(remarks)


def _rails(root: Path, labels: tuple[str, ...]) -> Rails:
    """The rail of the whole board where there is one, for the others are parts of it; else those that are asked for.
    So one profile serves boards that have the one and boards that have the others."""
    for label in labels:
        if label in WHOLE_BOARD:
            with suppress(Missing):
                return Rails(root, (label,))
    return Rails(root, tuple(label for label in labels if label not in WHOLE_BOARD) or labels)


def accelerated(settings: Mapping[str, Any]) -> bool:
    """Whether the work is done elsewhere than in the CPU time of the process."""
    kind = str(settings.get("provider") or "").replace("ExecutionProvider", "")
    device = str((settings.get("options") or {}).get("device_type", "CPU"))  # of OpenVINO
    return kind not in CPU_PROVIDERS or (kind == "OpenVINO" and not device.startswith("CPU"))


class Rapl:
    """All packages of the machine, and their DRAM where it has a counter of its own."""

    grade, step_s = "counter", 0.001
    period_s: float | None = 30.0  # the shortest range, 65 kJ (32 bits of 15.3 uJ), lasts 65 s at 1 kW

    def __init__(self, root: Path) -> None:
        self._zones: list[tuple[Path, int]] = []
        names = []
        for zone in _matching(root, r"intel-rapl:\d+"):  # AMD's too
            if not (name := _text(zone / "name")).startswith("package"):
                continue
            parts = [part for part in _matching(zone, r"intel-rapl:\d+:\d+") if _text(part / "name") == "dram"]
            for path in (zone, *parts):
                try:
                    _number(path / "energy_uj")
                    self._zones.append((path / "energy_uj", _number(path / "max_energy_range_uj")))
                except PermissionError:
                    raise Missing(
                        f"RAPL: {path / 'energy_uj'} is readable by root only (CVE-2020-8694); to allow it: "
                        f"sudo chmod a+r {root}/intel-rapl:*/energy_uj"
                    ) from None
                except (OSError, ValueError) as error:
                    raise Missing(f"RAPL: {path} cannot be read: {error}") from None
            names.append(name + " and its DRAM" * bool(parts))
        if not names:
            raise Missing(f"RAPL: no package under {root}")
        self.name = "RAPL " + ", ".join(names)
        self._last = [_number(path) for path, _ in self._zones]
        self._total_uj = 0

    def joules(self) -> float:
        """See `Instrument`."""
        now = [_number(path) for path, _ in self._zones]
        for before, after, (_, most) in zip(self._last, now, self._zones):  # noqa: B905  not in Python 3.9
            self._total_uj += after - before + (most if after < before else 0)
        self._last = now
        return self._total_uj / 1e6


class Nvml:
    """The GPUs that CUDA_VISIBLE_DEVICES leaves visible. Its indices are taken as NVML's, which they are where all GPUs
    are alike or CUDA_DEVICE_ORDER is PCI_BUS_ID.

    The counter moves every 20 to 100 ms, and on some GPUs it sees a part of that time only (Yang, Adamek & Armour,
    "Part-time Power Measurements", arXiv 2312.02741): windows are seconds, and begin and end with a step.
    """

    grade, step_s = "counter", 0.1
    period_s: float | None = None  # 64 bits

    def __init__(self) -> None:
        try:
            self._nvml: Any = import_module("pynvml")
        except ImportError:
            raise Missing("NVML: pynvml is not installed there (pip install nvidia-ml-py)") from None
        try:
            self._nvml.nvmlInit()
            self._gpus = self._visible()
            names = [self._nvml.nvmlDeviceGetName(gpu) for _, gpu in self._gpus]
            self.joules()
        except (self._nvml.NVMLError, OSError) as error:  # a Jetson answers "Not Supported"
            raise Missing(f"NVML: {error}") from None
        texts = [name.decode() if isinstance(name, bytes) else name for name in names]
        which = [f"GPU {index} ({text})" for (index, _), text in zip(self._gpus, texts)]  # noqa: B905
        if not which:
            raise Missing("NVML: no GPU is visible")
        self.name = "NVML, " + ", ".join(which)

    def _visible(self) -> list[tuple[int, Any]]:
        """(index, handle) of each GPU."""
        nvml = self._nvml
        handles = [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(nvml.nvmlDeviceGetCount())]
        wanted = os.environ.get("CUDA_VISIBLE_DEVICES")
        if wanted is None:
            return list(enumerate(handles))
        words = [word.strip() for word in wanted.split(",")]
        if all(word.isdigit() for word in words):
            return [(int(word), handles[int(word)]) for word in words if int(word) < len(handles)]
        return [
            (index, gpu)
            for index, gpu in enumerate(handles)
            if any(word and _as_text(nvml.nvmlDeviceGetUUID(gpu)).startswith(word) for word in words)
        ]

    def joules(self) -> float:
        """See `Instrument`."""
        try:
            return float(sum(self._nvml.nvmlDeviceGetTotalEnergyConsumption(gpu) for _, gpu in self._gpus) / 1e3)
        except self._nvml.NVMLError as error:
            raise OSError(str(error)) from error


class Rails:
    """Power rails behind INA monitors, sampled and integrated by the trapezoid rule.

    A channel is called by its in*_label (ina3221, https://docs.kernel.org/hwmon/ina3221.html), or, on a chip that has
    one channel, by the chip's `label` or `name`. A chip refreshes a channel every few milliseconds.
    """

    grade, step_s = "rail", 0.0
    period_s: float | None = 0.02

    def __init__(self, root: Path, labels: tuple[str, ...]) -> None:
        self._channels: list[tuple[Path, int]] = []
        seen: dict[str, list[tuple[str, Path, int]]] = {}
        for folder in _matching(root, r"hwmon\d+"):
            if not (chip := _text(folder / "name")).startswith("ina"):
                continue
            named = {int(path.name[2:-6]): _text(path) for path in folder.glob("in[0-9]*_label")}
            for index, label in (named or {1: _text(folder / "label") or chip}).items():
                if (folder / f"curr{index}_input").exists() or (folder / f"power{index}_input").exists():
                    seen.setdefault(label, []).append((chip, folder, index))
        for label in labels:
            if len(of := seen.get(label, [])) != 1:
                known = ", ".join(sorted(seen)) or "none"
                raise Missing(f"rails: {len(of) or 'no'} rail{'s' * bool(of)} called {label} in {root}; there: {known}")
            self._channels.append(of[0][1:])
        self.name = " + ".join(f"{seen[label][0][0]} {label}" for label in labels)
        self._joules, self._at = 0.0, time.perf_counter()
        try:
            self._watts = self.watts()
        except (OSError, ValueError) as error:
            raise Missing(f"rails: {self.name} cannot be read: {error}") from None

    def watts(self) -> float:
        """Power at this moment, of all rails together."""
        return sum(_watts(folder, index) for folder, index in self._channels)

    def joules(self) -> float:
        """See `Instrument`."""
        watts = self.watts()
        now = time.perf_counter()
        self._joules += (self._watts + watts) / 2 * (now - self._at)
        self._watts, self._at = watts, now
        return self._joules


class Apple:
    """Processor, GPU, neural engine and memory of Apple silicon."""

    grade, step_s, name = "counter", 0.1, "Apple IOReport, CPU, GPU, ANE and DRAM"
    period_s: float | None = None
    _parts = ("cpu_total_mj", "gpu_mj", "gpu_sram_mj", "ane_mj", "dram_mj")  # None where a chip has no such counter

    def __init__(self) -> None:
        try:
            self._monitor: Any = import_module("zeus_apple_silicon").AppleEnergyMonitor()
            self.joules()
        except ImportError:
            raise Missing("Apple: no counter is read without its library (pip install zeus-apple-silicon)") from None
        except (OSError, RuntimeError) as error:
            raise Missing(f"Apple: {error}") from None

    def joules(self) -> float:
        """See `Instrument`."""
        now = self._monitor.get_cumulative_energy()
        return float(sum(getattr(now, part) or 0 for part in self._parts) / 1e3)


def _watts(folder: Path, index: int) -> float:
    power = folder / f"power{index}_input"
    if power.exists():
        return _number(power) / 1e6  # uW
    return _number(folder / f"in{index}_input") * _number(folder / f"curr{index}_input") / 1e6  # mV, mA


def _matching(root: Path, pattern: str) -> list[Path]:
    """Entries of a folder whose names match, sorted by the numbers in them; none where it cannot be listed."""
    try:
        names = [name for name in os.listdir(root) if re.fullmatch(pattern, name)]  # noqa: PTH208  raises at once
    except OSError:
        return []
    return [root / name for name in sorted(names, key=lambda name: [int(part) for part in re.findall(r"\d+", name)])]


def _number(path: Path) -> int:
    return int(path.read_text(encoding="ascii"))


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def _as_text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
