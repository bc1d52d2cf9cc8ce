"""Quantize: float to int8, by static calibration on training data.

Two engines decide on ranges, one placement writes them into the graph:

    onnxruntime        watches the exported graph                  -> ranges
    neural_compressor  watches the torch twin, matched by name     -> ranges, the rest by onnxruntime
    placement          onnxruntime's quantizer, by the target's rules, in QDQ form

With engine onnxruntime no torch is needed.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np
from onnx import ModelProto

from stages import graph
from stages.base import Candidate, Context, Step
from stages.data import Split
from stages.graph import Floats
from stages.settings import QuantizeConfig
from stages.vendors import ort_quantizer
from stages.vendors.ort_quantizer import Ranges
from targets.errors import Fault, InputError, StageError, nearest
from targets.target import Int8Rules

__all__ = ["quantize"]

PROOF_SAMPLES = 512
LOWEST_OPSET = 13  # the first whose QuantizeLinear takes one scale per channel


def quantize(candidate: Candidate, config: QuantizeConfig, context: Context) -> Candidate:
    """Writes an int8 `model.onnx` (and the torch twin's weights, if there are any) into `context.out`.

    Memory is bounded by one calibration batch: see `ort_quantizer.calibrate`.

    Raises:
        InputError: a pattern of `exclude` matches nothing; the data does not fit the network.
        StageError: the graph is int8 already or too old, an engine cannot work on it, or ranges are not finite.
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
    ranges, own = _ranges(folded, candidate, config, context)
    context.progress(0.8, "placing int8")
    int8 = ort_quantizer.place(folded, ranges, rules, op_types, _after_folding(folded, excluded))
    count = graph.tally(int8)

    path, notes = context.out / "model.onnx", []
    if count.int8:
        graph.write(int8, path)
        notes = _notes(int8, count, ranges, own)
    else:
        shutil.copyfile(candidate.onnx, path)
        notes = ["nothing was quantized: no node is left that can be, by the target's op_types and exclude"]
    context.progress(0.9, "comparing with float")
    metrics = {"nodes_int8": count.int8, "nodes_float": count.float, "size_mb": path.stat().st_size / 1e6}
    metrics |= _compare(model, path, context.data.validation)
    step = Step("quantize", changed=count.int8 > 0, notes=tuple(notes), metrics=metrics)
    return candidate.then(step, weights=graph.bring_weights(candidate, context.out), onnx=path)


def _check(model: ModelProto, candidate: Candidate) -> None:
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


def _after_folding(folded: ModelProto, excluded: list[str]) -> list[str]:
    """Nodes that stand for the excluded ones: a fusion keeps a name or puts its own behind it, "fc/MatMulAddFusion"."""
    gone = set(filter(None, excluded))
    return [node.name for node in folded.graph.node if node.name in gone or node.name.rpartition("/")[0] in gone]


def _ranges(
    folded: ModelProto, candidate: Candidate, config: QuantizeConfig, context: Context
) -> tuple[Ranges, Ranges | None]:
    """Ranges for every float value; and those that neural-compressor gave, if it was asked."""

    def batches() -> Iterator[Floats]:
        for inputs, _ in context.data.train.batches(config.batch_size, config.samples):
            yield inputs

    if config.engine != "neural_compressor":
        context.progress(0.1, "watching ranges")
        return ort_quantizer.calibrate(folded, batches, config.calibration, config.percentile), None
    if candidate.weights is None:
        raise StageError(
            f"engine neural_compressor works on the torch network, and {candidate.name} has none (it comes from "
            f"{candidate.origin.source}): choose engine onnxruntime"
        )
    try:
        from stages.network import build
        from stages.vendors import neural_compressor
    except ModuleNotFoundError as missing:
        raise StageError(
            f"engine neural_compressor needs {missing.name}, which is not installed: pip install 'attar[compress]', or "
            "choose engine onnxruntime"
        ) from missing
    context.progress(0.1, "watching ranges in torch")
    found = neural_compressor.activation_ranges(build(candidate), candidate.signature, batches(), config.calibration)
    context.progress(0.5, "watching ranges in ONNX")
    extremes = ort_quantizer.calibrate(folded, batches)
    _match(found, extremes)
    return extremes | {name: limits for name, limits in found.items() if name in extremes}, found


def _match(found: Ranges, extremes: Ranges) -> None:
    """Are neural-compressor's values those of the ONNX graph? Their names must be there, and each range must lie within
    the extremes of the value by its name: so a name that means another value is caught.

    Raises:
        StageError: they are not.
    """
    lost = sorted(found.keys() - extremes.keys())
    if len(lost) * 2 > len(found):
        raise StageError(
            f"only {len(found) - len(lost)} of neural-compressor's {len(found)} values are in the ONNX graph (not: "
            f"{', '.join(lost[:5])}): is it an export of this torch network? Choose engine onnxruntime"
        )
    for name in found.keys() & extremes.keys():
        (low, high), (least, most) = found[name], extremes[name]
        slack = 0.02 * (most - least)  # a step of int8, and what two runtimes differ by
        if low < least - slack or high > most + slack:
            raise StageError(
                f"neural-compressor's range of {name!r}, {low:.4g} to {high:.4g}, goes beyond what the ONNX graph "
                f"shows, {least:.4g} to {most:.4g}: the two are not the same network"
            )


def _notes(int8: ModelProto, count: graph.Tally, ranges: Ranges, own: Ranges | None) -> list[str]:
    notes = []
    if count.left:
        notes.append("stayed float: " + ", ".join(f"{n} {op}" for op, n in count.left.items()))
    if own is not None:
        matched = own.keys() & ranges.keys()
        placed = {node.input[1].removesuffix("_scale") for node in int8.graph.node if node.op_type == "QuantizeLinear"}
        rest = sorted(placed - matched)
        notes.append(f"neural-compressor: {len(matched)} of its {len(own)} ranges matched by value name")
        notes.append(f"min-max by onnxruntime for {len(rest)} values that it has no range for: {', '.join(rest)}")
    return notes


def _compare(before: ModelProto, after: Path, validation: Split) -> dict[str, float]:
    """Runs both graphs on validation examples.

    Returns:
        agreement: share of examples (0..1) whose largest logit is the same; signal_to_noise_db of the logits.
    """
    first, second = graph.session(before), graph.session(after)
    same = examples = 0
    signal = noise = 0.0
    for inputs, _ in validation.batches(64, PROOF_SAMPLES):
        expected, got = graph.predict(first, inputs), graph.predict(second, inputs)
        if not (np.isfinite(expected).all() and np.isfinite(got).all()):
            raise StageError("the network gives NaN or infinite outputs on validation examples")
        same += int((expected.argmax(1) == got.argmax(1)).sum())
        examples += len(inputs)
        signal += float(np.square(expected, dtype=np.float64).sum())
        noise += float(np.square(expected - got, dtype=np.float64).sum())
    if not examples:
        raise StageError("the int8 network is compared with float on validation examples, and there are none")
    ratio = 10 * np.log10(signal / noise) if signal and noise else 200.0  # 200 dB: no difference in 32 bits
    return {"agreement": same / examples, "signal_to_noise_db": round(float(ratio), 2)}
