"""The ladder's last rung: quantization-aware training. Asking for it wakes no torch; trying it does (learn.py)."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec

from stages.int8.bench import Attempt, Bench, Setup, Try

__all__ = ["qat"]


def qat(bench: Bench, best: Attempt) -> Iterator[Try]:
    """Training with the teacher, on the placement of the best graph so far. Nothing, where that cannot be; why is said.

    What is tried raises StageError: see `stages.int8.learn.learn`.
    """
    config, folder, candidate = bench.config.qat, bench.context.scratch / "training", bench.candidate
    missing = [name for name in ("torch", "onnxscript", "safetensors") if find_spec(name) is None]
    if config is None:
        bench.context.say("no training for int8: qat is null")
    elif candidate.weights is None:
        bench.context.say(
            f"no training for int8: {candidate.name} comes from {candidate.origin.source} and has no torch network"
        )
    elif missing:
        bench.context.say(f"no training for int8: {missing[0]} is not installed: pip install 'attar[compress]'")
    else:

        def make() -> Setup:
            from stages.int8.learn import learn

            return learn(bench, best, config, folder)

        yield Try("training with the teacher", make)
