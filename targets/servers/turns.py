"""Times requests: several ways to the same answers in turns, and many clients at once."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

__all__ = ["Call", "Rate", "at_once", "in_turns"]

Call = Callable[[int], object]
"""Asks for the answer to the example of this number; any number will do."""

_LEAST = 3  # requests of a block
_MOST = 500


@dataclass(frozen=True)
class Rate:
    """Requests of several clients at once.

    Attributes:
        client_cores: processor time that the clients themselves took, as cores.
    """

    per_s: float
    requests: int
    client_cores: float


def in_turns(calls: Mapping[str, Call], seconds: float, rounds: int = 12) -> dict[str, tuple[tuple[float, ...], ...]]:
    """Latencies of single requests, milliseconds, in blocks: block i of all was taken in the same round.

    Args:
        seconds: for all of it, warming up included. A block has 3 requests at least and 500 at most.
    """
    found: dict[str, list[tuple[float, ...]]] = {name: [] for name in calls}
    share = seconds / (rounds + 1) / len(calls)
    with _no_garbage_collection():
        for turn in range(rounds + 1):
            names = list(calls)[:: 1 if turn % 2 else -1]
            for name in names:
                block = _block(calls[name], share)
                if turn:  # the first round is for warming up
                    found[name].append(block)
    return {name: tuple(blocks) for name, blocks in found.items()}


def _block(call: Call, seconds: float) -> tuple[float, ...]:
    clock = time.perf_counter
    found: list[float] = []
    now = clock()
    end = now + seconds
    while len(found) < _LEAST or (now < end and len(found) < _MOST):
        start = clock()
        call(len(found))
        now = clock()
        found.append(round((now - start) * 1e3, 5))
    return tuple(found)


def at_once(calls: Sequence[Call], seconds: float) -> Rate:
    """All calls at once for so long, each in a thread of its own, one request after the other.

    Raises:
        Whatever a call raises; the others end then.
    """
    stop, start = threading.Event(), threading.Barrier(len(calls) + 1)
    counts, spent = [0] * len(calls), [0.0] * len(calls)
    errors: list[BaseException] = []

    def client(number: int) -> None:
        call = calls[number]
        start.wait()
        before, count = time.thread_time(), 0
        try:
            while not count or not stop.is_set():  # one request at least, so that no rate is 0
                call(count)
                count += 1
        except BaseException as error:
            errors.append(error)
            stop.set()
        counts[number], spent[number] = count, time.thread_time() - before

    threads = [threading.Thread(target=client, args=(number,), daemon=True) for number in range(len(calls))]
    with _no_garbage_collection():
        for thread in threads:
            thread.start()
        start.wait()
        began = time.perf_counter()
        stop.wait(seconds)
        stop.set()
        for thread in threads:
            thread.join()
        took = time.perf_counter() - began
    if errors:
        raise errors[0]
    return Rate(sum(counts) / took, sum(counts), sum(spent) / took)


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()
