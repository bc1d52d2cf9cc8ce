"""Quantize: float to int8, by static calibration on training data.

    check        the graph is float, the data fits, patterns match
    fold         batch norms into convolutions, constants computed
    decide       engine auto: the ladder (`stages.int8.ladder`); else one engine with one calibration
    pay          operators that are not faster in int8 on the target go back to float (`stages.int8.pays`)
    prove        agreement with the float network on validation

Whoever decides, one placement writes Q/DQ into the graph: onnxruntime's quantizer, by the target's rules. With engine
onnxruntime no torch is needed.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path

from onnx import ModelProto

from stages import graph
from stages.base import Candidate, Context, Step
from stages.data import Split
from stages.int8 import dynamic
from stages.int8 import rules as rules_of
from stages.int8.bench import Attempt, Bench, Setup
from stages.int8.calibration import examine
from stages.int8.correction import bias_correction
from stages.int8.equalize import cross_layer, smooth_quant
from stages.int8.fallback import float_fallback
from stages.int8.ladder import Climb, Rung, climb
from stages.int8.memory import batch_size
from stages.int8.pays import fastest, pays
from stages.int8.qat import qat
from stages.settings import QuantizeConfig
from stages.vendors import ort_quantizer
from targets.errors import Fault, InputError, StageError, nearest
from targets.target import Int8Rules

__all__ = ["quantize"]

RUNGS: Mapping[str, Rung] = {
    "bias correction": bias_correction,
    "cross-layer equalization": cross_layer,
    "SmoothQuant": smooth_quant,
    "single layers in float": float_fallback,
    "training": qat,
}
"""After calibration: what is tried while accuracy does not hold, cheap first."""

LOWEST_OPSET = 13  # the first whose QuantizeLinear takes one scale per channel


def quantize(candidate: Candidate, config: QuantizeConfig, context: Context) -> Candidate:
    """Writes an int8 `model.onnx` (and the torch twin's weights, if there are any) into `context.out`.

    Memory is bounded by one calibration batch: see `ort_quantizer.calibrate`.

    Raises:
        InputError: a pattern of `exclude` matches nothing; the data does not fit the network.
        StageError: the graph is int8 already or too old, an engine cannot work on it, or ranges are not finite.
        DeviceError: the target's device did not answer.
    """
    if candidate.onnx is None:
        raise StageError(f"quantize takes an exported network, and {candidate.name} is a torch one: export it first")
    model = graph.read(candidate.onnx)
    _check(model, candidate)
    _check_data(context.data.train, candidate)
    rules = context.target.int8 if context.target is not None else Int8Rules()
    op_types = ort_quantizer.operators(rules)
    excluded = _excluded(model, config.exclude)

    context.scratch.mkdir(parents=True, exist_ok=True)
    folded = ort_quantizer.fold(model, context.scratch)
    kept = rules_of.kept_float(folded, op_types)
    size = batch_size(folded, candidate.signature.input_shape, config.memory_mb, config.batch_size, config.samples)
    looked = examine(context.data.train, config.samples, context.data.classes, folded, size)
    bench = Bench(
        candidate,
        config,
        context,
        rules,
        folded,
        op_types,
        exclude=frozenset({*rules_of.after_folding(folded, excluded), *kept}),
        batch_size=size,
        extremes=looked.ranges,
    )
    chosen, notes = _decided(bench)
    if chosen is not None and config.pays:
        chosen, told = _paying(bench, chosen)
        notes += told
    digest = f"calibrated on {looked.examples} examples of the train split, sha256 {looked.digest}"
    return _written(bench, chosen, [*looked.notes, *_by_rule(kept), *notes, digest])


def _by_rule(kept: Mapping[str, str]) -> list[str]:
    """Which nodes stay float by rule, one sentence for each reason."""
    reasons: dict[str, list[str]] = {}
    for name, reason in kept.items():
        reasons.setdefault(reason, []).append(name)
    return [f"float by rule: {', '.join(names)}: {reason}" for reason, names in reasons.items()]


def _check(model: ModelProto, candidate: Candidate) -> None:
    if any(step.stage == "cascade" and step.changed for step in candidate.steps):
        raise StageError(f"{candidate.name} is a cascade, the last stage there is: quantize its two networks before")
    found = graph.int8_form(model)
    if found:
        raise StageError(f"{candidate.name} is quantized already: its graph holds {found}")
    if graph.opset_of(model) < LOWEST_OPSET:
        raise StageError(
            f"{candidate.name} uses opset {graph.opset_of(model)}; int8 needs at least {LOWEST_OPSET}: export it anew"
        )


def _check_data(train: Split, candidate: Candidate) -> None:
    shape, wanted = train.inputs(slice(0, 1)).shape[1:], candidate.signature.input_shape
    if shape != wanted:
        raise InputError(
            f"calibration data has inputs of shape {shape} and {candidate.name} takes {wanted}",
            help="set data.image_size and data.channels to what the network takes",
        )


def _excluded(model: ModelProto, patterns: tuple[str, ...]) -> list[str]:
    names = [node.name for node in model.graph.node]
    faults = [
        Fault(f"pattern {pattern!r} matches no node of the graph", key="exclude", help=nearest(pattern, names))
        for pattern in patterns
        if not any(fnmatchcase(name, pattern) for name in names)
    ]
    if faults:
        raise InputError(faults)
    return [name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)]


def _decided(bench: Bench) -> tuple[Attempt | None, list[str]]:
    """The int8 graph that holds accuracy best, and what led to it; None where no node can be int8."""
    config = bench.config
    if config.engine == "auto":
        found = climb(bench, RUNGS, config.minutes)
        chosen, notes = found.best, _told(bench, found)
        if (other := _dynamic(bench)) is not None and not other.score.accuracy < chosen.score.accuracy:
            chosen, told = _faster(bench, chosen, other)
            notes += told
    else:
        bench.context.progress(0.1, "watching ranges")
        title = f"{config.engine.replace('_', '-')} {config.calibration}"
        chosen, notes = bench.attempt(title, bench.setup(config.engine, config.calibration)), []
    if not _layers(chosen.int8):
        return None, ["nothing was quantized: no node is left that can be, by the target's op_types and exclude"]
    return chosen, [*notes, *chosen.setup.notes]


def _layers(model: ModelProto) -> int:
    return graph.tally(model).int8 + dynamic.layers(model)


def _dynamic(bench: Bench) -> Attempt | None:
    """The dynamically quantized graph, where it may pay and can be made."""
    if not dynamic.suits(bench.folded, bench.context.target):
        return None
    try:
        made = dynamic.make(bench)
    except StageError as error:
        bench.context.say(f"dynamic: {error}")
        return None
    return Attempt("dynamic", Setup(bench.folded, {}, bench.exclude), made, bench.score(made), 0.0)


def _faster(bench: Bench, static: Attempt, other: Attempt) -> tuple[Attempt, list[str]]:
    """Of two int8 graphs that hold accuracy alike, the faster on the target; the static one if nothing is measured."""
    if bench.context.target is None or not bench.config.pays:
        return static, []
    sample = next(bench.batches())[:8]
    number, told = fastest([static, other], bench.folded, bench.context.target, sample, say=bench.context.say)
    return (other if number == 1 else static), told


def _told(bench: Bench, found: Climb) -> list[str]:
    """The ladder in sentences: each rung's gain and cost, and where it ended. One rung that was enough needs none."""
    if len(found.attempts) == 1:
        return []
    start = bench.float_score.drop_points
    rows = [
        f"{attempt.title}: {attempt.score.drop_points - start:+.2f} points lost against the float network, "
        f"{attempt.seconds:.1f} s"
        for attempt in found.attempts
    ]
    return [*rows, f"the ladder ended with {found.best.title}: {found.end}"]


def _paying(bench: Bench, chosen: Attempt) -> tuple[Attempt | None, list[str]]:
    """The graph without operators that do not pay on the target; None where int8 does not pay at all."""
    bench.context.progress(0.85, "measuring what pays")
    if dynamic.layers(chosen.int8):  # the race has been run, and single operators are not placed
        return chosen, []
    return pays(bench, chosen)


def _written(bench: Bench, chosen: Attempt | None, notes: list[str]) -> Candidate:
    candidate, path = bench.candidate, bench.context.out / "model.onnx"
    assert candidate.onnx is not None
    if chosen is None:
        shutil.copyfile(candidate.onnx, path)
        int8, score = bench.folded, bench.float_score
    else:
        graph.write(chosen.int8, path)
        int8, score = chosen.int8, chosen.score
    count = graph.tally(int8)
    if chosen is not None and count.left:
        notes.append("stayed float: " + ", ".join(f"{n} {op}" for op, n in count.left.items()))
    metrics = {"nodes_int8": _layers(int8), "nodes_float": count.float, "size_mb": path.stat().st_size / 1e6}
    metrics |= {"agreement": score.agreement, "signal_to_noise_db": score.signal_to_noise_db}
    step = Step("quantize", changed=chosen is not None, notes=tuple(notes), metrics=metrics)
    own = chosen.setup.weights if chosen is not None else None
    if own is None:
        return candidate.then(step, weights=graph.bring_weights(candidate, bench.context.out), onnx=path)
    weights = Path(shutil.copyfile(own, bench.context.out / "weights.safetensors"))
    return candidate.then(step, weights=weights, onnx=path)
