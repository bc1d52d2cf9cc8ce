"""The climb: rungs, cheap first, until accuracy holds or the time is spent.

    for each rung:
        for each thing that it would try, given the best so far:
            found in the scratch folder? take it       (a killed run had finished it)
            else make it, score it, keep it there
            nothing left to gain? stop

Every attempt is kept as it is made, so that a kill loses the one in hand, and running out of time none.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from stages import graph
from stages.int8.bench import Attempt, Bench, Score, Setup, Try
from stages.vendors.ort_quantizer import Method
from targets.errors import StageError

__all__ = ["Climb", "calibrations", "climb"]

Rung = Callable[[Bench, Attempt], Iterator[Try]]


@dataclass(frozen=True)
class Climb:
    """All attempts in order, the best of them, and why it went no further."""

    attempts: tuple[Attempt, ...]
    best: Attempt
    end: str


def calibrations(bench: Bench) -> Iterator[Try]:
    """The same graph with ranges by every engine and method that works here, the one of the settings first."""
    titles: dict[Method, str] = {
        "minmax": "min-max",
        "percentile": f"percentile {bench.config.percentile:g}",
        "entropy": "entropy",
    }
    for method in sorted(titles, key=lambda method: method != bench.config.calibration):
        yield Try(titles[method], partial(bench.setup, "onnxruntime", method))
    if bench.candidate.weights is not None:
        yield Try("neural-compressor", lambda: bench.setup("neural_compressor", "minmax"))


def climb(bench: Bench, rungs: Mapping[str, Rung], minutes: float) -> Climb:
    """Tries until `bench.enough`, within `minutes` of work, those of killed runs before included.

    Raises:
        StageError: not even the first thing to try could be made.
    """
    kept = _Kept(bench)
    started, before = time.monotonic(), kept.seconds()
    bench.seconds_left = lambda: 60 * minutes - before - (time.monotonic() - started)
    attempts: list[Attempt] = []
    best: Attempt | None = None
    for name, rung in {"calibration": lambda b, _: calibrations(b), **rungs}.items():
        if best is not None and bench.enough(best.score):
            break
        for step in rung(bench, best):
            if best is not None and bench.seconds_left() <= 0:
                return Climb(tuple(attempts), best, f"its {minutes:g} minutes are spent")
            bench.context.progress(min(0.9, len(attempts) / 20), f"{name}: {step.title}")
            try:
                attempt = kept.find(step.title) or kept.keep(_made(bench, step))
            except StageError as error:
                if best is None:
                    raise
                bench.context.say(f"{step.title}: {error}")
                continue
            attempts.append(attempt)
            if best is None or attempt.score.accuracy > best.score.accuracy:
                best = attempt
            if bench.enough(best.score):
                break
    assert best is not None
    return Climb(tuple(attempts), best, "accuracy holds" if bench.enough(best.score) else "no rung is left")


def _made(bench: Bench, step: Try) -> Attempt:
    started = time.monotonic()
    attempt = bench.attempt(step.title, step.make())
    return Attempt(attempt.title, attempt.setup, attempt.int8, attempt.score, time.monotonic() - started)


class _Kept:
    """Attempts in the scratch folder, each a folder by its title; only those of the same float graph and settings."""

    def __init__(self, bench: Bench) -> None:
        config = bench.config.model_dump_json() + bench.rules.model_dump_json() + repr(sorted(bench.exclude))
        digest = hashlib.sha256(bench.folded.SerializeToString(deterministic=True) + config.encode())
        self.folder = bench.context.scratch / "ladder" / digest.hexdigest()[:16]
        self.folder.mkdir(parents=True, exist_ok=True)

    def _place(self, title: str) -> Path:
        return self.folder / hashlib.sha256(title.encode()).hexdigest()[:16]

    def find(self, title: str) -> Attempt | None:
        """What was kept under a title."""
        place = self._place(title)
        if not (place / "attempt.json").is_file():
            return None
        told = json.loads((place / "attempt.json").read_text(encoding="utf-8"))
        ranges = {name: (low, high) for name, (low, high) in told["ranges"].items()}
        weights = place / "weights.safetensors" if told["weights"] else None
        model = graph.read(place / "float.onnx")
        before = graph.read(place / "uncorrected.onnx") if (place / "uncorrected.onnx").is_file() else None
        setup = Setup(model, ranges, frozenset(told["exclude"]), tuple(told["notes"]), weights, told["method"], before)
        return Attempt(title, setup, graph.read(place / "int8.onnx"), Score(**told["score"]), told["seconds"])

    def keep(self, attempt: Attempt) -> Attempt:
        """Writes an attempt aside and moves it into place, whole."""
        place, setup = self._place(attempt.title), attempt.setup
        aside = place.with_suffix(".part")
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir()
        models = {"float.onnx": setup.model, "int8.onnx": attempt.int8, "uncorrected.onnx": setup.uncorrected}
        for name, model in models.items():
            if model is not None:
                (aside / name).write_bytes(model.SerializeToString(deterministic=True))
        if setup.weights is not None:
            shutil.copyfile(setup.weights, aside / "weights.safetensors")
        told = {
            "title": attempt.title,
            "ranges": setup.ranges,
            "exclude": sorted(setup.exclude),
            "notes": setup.notes,
            "weights": setup.weights is not None,
            "method": setup.method,
            "score": asdict(attempt.score),
            "seconds": attempt.seconds,
        }
        (aside / "attempt.json").write_text(json.dumps(told), encoding="utf-8")
        aside.rename(place)
        found = self.find(attempt.title)
        assert found is not None
        return found

    def seconds(self) -> float:
        """What all that is kept took."""
        files = self.folder.glob("*/attempt.json")
        return float(sum(json.loads(file.read_text(encoding="utf-8"))["seconds"] for file in files))
