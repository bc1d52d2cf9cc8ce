"""Energy of one inference: the same windows for all models, in turns, with an idle window before each round.

What comes back is raw: joules, seconds and inferences of each window, and the watts that the idle machine drew just
before. Where no instrument is there, the windows hold CPU time alone, from which the host may estimate.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from targets.probe.counters import Instrument, accelerated, find

__all__ = ["Meter", "measure"]

IDLE_TICK_S = 0.02  # an idle window sleeps so long at a time
MOST_ROUNDS = 30


class Meter:
    """Counts this machine's energy while it is open.

    Attributes:
        remark: what a person should know: why there is no instrument, or what it leaves out.
    """

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self._instruments, self.remark = find(settings)
        self._lock, self._done = threading.Lock(), threading.Event()
        self._thread: threading.Thread | None = None
        self._own_s = 0.0

    def __enter__(self) -> Meter:
        if still := [one for one in self._instruments if not _moves(one)]:
            self._give_up("; ".join(f"{one.name} stands still (a virtual machine?)" for one in still))
        periods = [one.period_s for one in self._instruments if one.period_s]
        if periods:
            self._thread = threading.Thread(target=self._follow, args=(min(periods),), daemon=True, name="energy")
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        if self._thread is not None:
            self._thread.join()

    @property
    def instrument(self) -> str:
        """Grade and name: "counter: RAPL package-0", "rail: ina3221 VDD_IN"; empty where there is none."""
        if not self._instruments:
            return ""
        return f"{self._instruments[0].grade}: " + " + ".join(one.name for one in self._instruments)

    @property
    def step_s(self) -> float:
        """How often the slowest of the counters moves, seconds."""
        return max((one.step_s for one in self._instruments), default=0.0)

    def joules(self) -> float | None:
        """Energy since an arbitrary start; None where nothing counts, or does not any more."""
        return self._sum(self._instruments)

    def slow_joules(self) -> float | None:
        """Energy by the slowest counter alone."""
        return self._sum([one for one in self._instruments if one.step_s == self.step_s])

    @property
    def own_cpu_s(self) -> float:
        """CPU time that following the instruments has taken."""
        return self._own_s

    def _sum(self, instruments: list[Instrument]) -> float | None:
        with self._lock:
            try:
                return sum(one.joules() for one in instruments) if instruments else None
            except (OSError, ValueError) as error:
                self._give_up(f"the instrument failed while measuring: {error}")
                return None

    def _give_up(self, why: str) -> None:
        self._instruments = []
        self.remark = "; ".join(part for part in (self.remark, why) if part)

    def _follow(self, period_s: float) -> None:
        while not self._done.wait(period_s):
            self.joules()
            self._own_s = time.thread_time()


def _moves(instrument: Instrument) -> bool:
    """Whether a counter counts at all. Some virtual machines show one that never does. A rail may well rest at 0 W."""
    if instrument.grade == "rail":
        return True
    until = time.perf_counter() + max(0.25, 5 * instrument.step_s)
    try:
        start = instrument.joules()
        while time.perf_counter() < until:
            if instrument.joules() != start:
                return True
            time.sleep(0.002)
    except (OSError, ValueError):
        return False
    return False


def measure(
    runs: Mapping[str, Callable[[], Any]], settings: Mapping[str, Any], seconds: float
) -> dict[str, dict[str, Any]]:
    """Windows of each model, in turns; round i of all models has the same idle window before it.

    Args:
        runs: by model name, what does one inference.
        settings: powercap, hwmon (roots of those trees), rails (labels), provider, options (of onnxruntime).
        seconds: time for each model, idle windows not included; a fifth of it where nothing counts energy. There are
            three rounds at least, unless inferences are so slow that three would take several times as long.

    Returns:
        For each model, {"instrument", "remark", "accelerated": whether the work is not in the CPU time, "windows":
        [{"joules" or None, "seconds", "idle_watts" or None, "cpu_seconds", "inferences"}, ...]}.
    """
    names = list(runs)
    windows: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    with Meter(settings) as meter:
        instrument = meter.instrument  # also where it fails on the way: the windows before that are sound
        window_s, rounds = _plan(meter, seconds)
        limit, started = seconds * (len(names) + 1), time.perf_counter()
        for turn in range(rounds):
            idle = _idle_watts(meter, window_s) if meter.instrument else None
            for name in names[turn % len(names) :] + names[: turn % len(names)]:
                runs[name]()  # the caches held another model
                windows[name].append({**_window(meter, runs[name], window_s), "idle_watts": idle})
            spent = time.perf_counter() - started
            if spent > limit and (turn >= 2 or spent > 3 * limit):
                break
        remark = meter.remark
    told = {"instrument": instrument, "remark": remark, "accelerated": accelerated(settings)}
    return {name: {**told, "windows": windows[name]} for name in names}


def _plan(meter: Meter, seconds: float) -> tuple[float, int]:
    """(length of a window, number of rounds). A window is 100 steps of the counter, or begins and ends with one."""
    best, least = (1.0, 0.5) if meter.step_s > 0.005 else (0.5, 0.1)
    if not meter.instrument:
        seconds, best, least = seconds / 5, 0.2, 0.05
    rounds = max(3, min(MOST_ROUNDS, int(seconds / best + 1e-6)))
    return max(least, seconds / rounds), rounds


def _idle_watts(meter: Meter, seconds: float) -> float | None:
    time.sleep(0.05)  # for what ran before to come to rest
    got = _window(meter, partial(time.sleep, IDLE_TICK_S), seconds)
    return None if got["joules"] is None else round(got["joules"] / got["seconds"], 6)


def _window(meter: Meter, work: Callable[[], Any], seconds: float) -> dict[str, Any]:
    """Works for so long, and at least once."""
    clock = time.perf_counter
    aligned = meter.step_s > seconds / 100
    if aligned:
        _to_step(meter, work)
    before, cpu, started = meter.joules(), time.process_time() - meter.own_cpu_s, clock()
    count = 0
    while count == 0 or clock() - started < seconds:
        work()
        count += 1
    if aligned:
        count += _to_step(meter, work)
    after, ended = meter.joules(), clock()
    return {
        "joules": None if before is None or after is None else round(after - before, 6),
        "seconds": round(ended - started, 6),
        "cpu_seconds": round(time.process_time() - meter.own_cpu_s - cpu, 6),
        "inferences": count,
    }


def _to_step(meter: Meter, work: Callable[[], Any]) -> int:
    """Works on until the slowest counter moves; gives how many times."""
    seen, until, count = meter.slow_joules(), time.perf_counter() + 5 * meter.step_s, 0
    while meter.slow_joules() == seen and time.perf_counter() < until:
        work()
        count += 1
    return count
