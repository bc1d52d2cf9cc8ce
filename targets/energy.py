"""What an inference and a compression cost in energy, each with the grade of what measured it.

The grade is the first word of an instrument:
    counter     hardware adds up the energy of the part it names (RAPL, NVML, IOReport)
    rail        power into the board or a part of it, sampled and added up
    estimate    CPU time times the watts that the profile states for a busy core; it never meets a limit

An inference is counted above idle: what the machine draws anyway is subtracted. A computation of this machine's own (a
training) is counted with idle: hours of it keep the machine up, and a figure for idle taken at the start would not hold
for hours. That makes compression look dearer than it is, never cheaper.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from targets.budget import Measurement
from targets.probe.energy import Meter
from targets.statistics import mean_interval
from targets.target import Energy

__all__ = ["Payback", "Spent", "counting", "energy_measurement", "payback", "together"]


def energy_measurement(energy: Mapping[str, Any], power_w: float | None, confidence: float) -> Measurement | None:
    """Millijoules of one inference, idle subtracted; the interval is that of the mean over windows.

    Where idle noise drowns the load (a mean of zero or less), the upper bound is that of everything counted, idle
    included: the load cannot have used more. Such a measurement may meet a limit that even this bound stays within,
    cannot miss one, and is inconclusive in between.

    Args:
        energy: the probe's answer for one model; see `targets.probe`.
        power_w: watts that one busy core draws above idle, for an estimate where nothing counts energy.

    Returns:
        None where there is neither an instrument nor something to estimate from: no `power_w`, or a model that runs
        elsewhere than on the CPU, whose time says little then.
    """
    windows = energy["windows"]
    counted = [w for w in windows if w["joules"] is not None and w["idle_watts"] is not None]
    if energy["instrument"] and len(counted) >= 2:
        all_mj = np.array([1e3 * w["joules"] / w["inferences"] for w in counted])
        idle_mj = np.array([1e3 * w["idle_watts"] * w["seconds"] / w["inferences"] for w in counted])
        found, everything = mean_interval(all_mj - idle_mj, confidence), mean_interval(all_mj, confidence)
        assert found is not None
        assert everything is not None
        value, low, high = found
        instrument = f"{energy['instrument']}, idle subtracted"
        if value <= 0:
            high = max(high, everything.high)
            instrument += "; the load is lost in the noise of idle, and the upper bound includes idle"
        return Measurement("energy_mj", value, low, high, len(counted), instrument)
    if power_w is None or energy.get("accelerated"):
        return None
    estimate = mean_interval([1e3 * power_w * w["cpu_seconds"] / w["inferences"] for w in windows], confidence)
    return None if estimate is None else Measurement("energy_mj", *estimate, len(windows), _by_cpu_time(power_w))


def _by_cpu_time(power_w: float) -> str:
    return f"estimate: CPU time x {power_w:g} W per busy core (stated in the profile)"


@dataclass
class Spent:
    """What a computation on this machine cost; filled in when `counting` ends.

    Attributes:
        joules: None where it is not known.
        instrument: grade and name; empty where `joules` is None.
        seconds: wall clock.
        cpu_seconds: of this process and the children that it has waited for.
    """

    joules: float | None = None
    instrument: str = ""
    seconds: float = 0.0
    cpu_seconds: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; `Spent(**values)` is the inverse."""
        return asdict(self)


@contextmanager
def counting(energy: Energy) -> Iterator[Spent]:
    """Counts what the block inside costs, also where it raises.

    Args:
        energy: where *this* machine tells its energy, and what an estimate of it starts from: the profile of a board
            elsewhere says nothing about it.
    """
    spent = Spent()
    with Meter(energy.model_dump()) as meter:
        joules, cpu, started = meter.joules(), _cpu_seconds(), time.perf_counter()
        try:
            yield spent
        finally:
            instrument, after = meter.instrument, meter.joules()
            spent.seconds = time.perf_counter() - started
            spent.cpu_seconds = _cpu_seconds() - cpu
            if joules is not None and after is not None:
                spent.joules, spent.instrument = after - joules, f"{instrument}, idle included"
            elif energy.power_w is not None:
                spent.joules, spent.instrument = energy.power_w * spent.cpu_seconds, _by_cpu_time(energy.power_w)


def _cpu_seconds() -> float:
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def together(parts: Iterable[Spent]) -> Spent:
    """The sum. Its joules are known only if those of every part are, and are an estimate if any part's are."""
    parts = list(parts)
    known = bool(parts) and all(part.joules is not None for part in parts)
    return Spent(
        joules=sum(part.joules or 0.0 for part in parts) if known else None,
        instrument=_mixed(part.instrument for part in parts) if known else "",
        seconds=sum(part.seconds for part in parts),
        cpu_seconds=sum(part.cpu_seconds for part in parts),
    )


def _grade(instrument: str) -> str:
    return instrument.partition(":")[0]


def _mixed(instruments: Iterable[str]) -> str:
    """One instrument for what several measured: an estimate if any of them is."""
    different = list(dict.fromkeys(instruments))
    if len(different) == 1:
        return different[0]
    grades = [_grade(instrument) for instrument in different]
    worst = next(grade for grade in ("estimate", "rail", "counter") if grade in grades)
    names = [name.removeprefix(f"{worst}: ") for name in different]
    return f"{worst}: partly " + ", partly ".join(names)


@dataclass(frozen=True)
class Payback:
    """After how many inferences a compression has saved the energy that it took.

    Attributes:
        inferences: None: never, for nothing is saved.
        low, high: the interval; None: without end.
        saved_mj: what one inference saves.
        instrument: what measured it, an estimate if any part is.
    """

    inferences: float | None
    low: float | None
    high: float | None
    saved_mj: float
    instrument: str


def payback(spent: Spent, baseline: Measurement, candidate: Measurement) -> Payback | None:
    """Sets what a compression took against what each inference saves.

    The interval takes the worst of both energies, and holds with more than the confidence of either where they are
    independent.

    Args:
        spent: all that led to the candidate and would not have been spent otherwise.
        baseline, candidate: `energy_mj` of both, measured in turns.

    Returns:
        None where the cost is not known, or the two were not measured by one instrument: their difference would be the
        instruments'.
    """
    grades = {_grade(baseline.instrument), _grade(candidate.instrument)}
    if spent.joules is None or len(grades) > 1:
        return None

    def after(saved_mj: float) -> float | None:
        return 1e3 * spent.joules / saved_mj if spent.joules is not None and saved_mj > 0 else None

    saved = baseline.value - candidate.value
    instrument = _mixed([spent.instrument, baseline.instrument, candidate.instrument])
    most, least = baseline.high - candidate.low, baseline.low - candidate.high
    return Payback(after(saved), after(most), after(least), saved, instrument)
