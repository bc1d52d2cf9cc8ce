"""What stands between a model and more speed, read off its operators: where the time goes, and what to do about it.

Each hint is a rule of thumb with the numbers that made it speak; it is silent where the profile cannot tell. Times come
in whole microseconds, which is much for a small operator.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from targets.operator_rows import COPIES, FLOATS, ROUNDING, Operator

__all__ = ["Hint", "hints"]

_SHOWN = 0.03  # share of the time in operators from which something is worth a word
_MOVERS = 0.10  # the same for what nearly every network has
_OUTSIDE = 0.20  # share of a run that is spent in no operator
_TINY_US = 2.0  # about what it costs to call an operator at all
_SOLID_US = 5.0  # from here on whole microseconds tell rates apart
_NARROW = 16  # channels: one vector of 8-bit values in 128 bits; onnxruntime's float layout has blocks of 8 or 16


@dataclass(frozen=True)
class Hint:
    """One thing that costs time, and what can be done.

    Attributes:
        kind: "int8_slower", "rounding", "copies", "narrow", "float_left", "memory", "tiny" or "outside".
        what, do: sentences.
        share: of the time in operators that is at stake, 0..1 ("outside": of the whole run).
        nodes: the operators, dearest first; as the file calls them where that can be told.
    """

    kind: str
    what: str
    do: str
    share: float
    nodes: tuple[str, ...] = field(default=())


def hints(
    operators: Sequence[Operator],
    *,
    latency_us: float | None = None,
    channel_multiple: int = 1,
    against: Mapping[str, Sequence[Operator]] | None = None,
) -> tuple[Hint, ...]:
    """What to look at, the most time first.

    Args:
        operators: of one model, as `targets.operator_rows.operators` gives them.
        latency_us: the median of a run without the profiler, microseconds.
        channel_multiple: what the target likes channel counts to be multiples of.
        against: operators of other models that were profiled on the same device, by model.
    """
    if not operators:
        return ()
    found = [
        _int8_slower(operators, against or {}),
        _rounding(operators),
        _copies(operators),
        _narrow(operators, channel_multiple),
        _float_left(operators, against or {}),
        _memory(operators),
        _tiny(operators),
        _outside(operators, latency_us),
    ]
    return tuple(sorted((hint for hint in found if hint), key=lambda hint: -hint.share))


def _hint(kind: str, rows: Iterable[Operator], what: str, do: str, least: float = _SHOWN) -> Hint | None:
    """A hint about some operators, if they take time enough. `{operators}` in `what` becomes "3 operators"."""
    rows = sorted(rows, key=lambda op: -op.us)
    share = sum(op.share for op in rows)
    if share <= least:
        return None
    told = f"{_percent(share)} of the time goes into {what.replace('{operators}', _count(len(rows), 'operator'))}"
    return Hint(kind, told, do, share, tuple(map(_called, rows)))


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def _called(op: Operator) -> str:
    return (op.source.name if op.source else "") or op.name


def _int8_slower(operators: Sequence[Operator], against: Mapping[str, Sequence[Operator]]) -> Hint | None:
    """Compares by the file's names. The float operator may hold an addition or activation that is one of its own in
    int8, so that it is never made to look slower than it is; and only intervals that do not touch count."""
    lost: dict[str, tuple[float, Operator, str]] = {}
    total = sum(op.us for op in operators)
    for model, others in against.items():
        floats = {op.source.name: op for op in others if op.source and op.source.name and op.precision in FLOATS}
        for op in operators:
            other = floats.get(op.source.name) if op.precision == "int8" and op.source else None
            if other is None or op.us_low <= max(other.us_high + 1, 1.1 * other.us):
                continue
            gap = op.us - other.us
            if gap > lost.get(op.name, (0.0,))[0]:
                lost[op.name] = (gap, op, model)
    share = sum(gap for gap, _, _ in lost.values()) / total if total else 0.0
    if share <= _SHOWN:
        return None
    rows = sorted(lost.values(), key=lambda row: -row[0])
    models = " and ".join(sorted({model for _, _, model in rows}))
    told = f"{_count(len(rows), 'int8 operator')} {'is' if len(rows) == 1 else 'are'} slower than in {models}"
    what = f"up to {_percent(share)} of the time is lost where {told}"
    do = "leave such operators in float (quantize: exclude), or look at the target's int8 rules (signs, range)"
    return Hint("int8_slower", what, do, share, tuple(_called(op) for _, op, _ in rows))


def _rounding(operators: Sequence[Operator]) -> Hint | None:
    rows = [op for op in operators if op.op_type in ROUNDING]
    what = "quantizing and dequantizing alone ({operators})"
    do = "quantize the float operators between them too, or none of that stretch"
    return _hint("rounding", rows, what, do)


def _copies(operators: Sequence[Operator]) -> Hint | None:
    rows = [op for op in operators if op.op_type in COPIES]
    made = sum(op.source is None for op in rows)
    of_these = f", {made} put in by the runtime" if made else ""
    what = f"copies to another layout or device ({{operators}}{of_these})"
    do = "they stand where operators that like different layouts meet: keep operators of one kind together"
    return _hint("copies", rows, what, do)


def _narrow(operators: Sequence[Operator], multiple: int) -> Hint | None:
    """Convolutions whose channels do not fill the hardware's vectors, and whose rate shows it."""
    rated = [op for op in operators if op.gmacs_per_s and op.profiled_us >= _SOLID_US and not op.depthwise]
    rows = []
    for op in rated:
        best = max(other.gmacs_per_s or 0.0 for other in rated if other.precision == op.precision)
        if op.channels is None or (op.gmacs_per_s or 0.0) >= best / 2:
            continue
        counts = op.channels[1:] if op.source and op.source.reads_input else op.channels  # an image has 3
        if any(count < _NARROW or count % multiple for count in counts):
            rows.append(op)
    off = f"under {_NARROW}" + (f" or no multiple of {multiple}" if multiple > 1 else "")
    what = f"{_count(len(rows), 'convolution')} with channels {off}, at less than half of the best rate"
    do = "removing more of their channels will not pay; remove whole blocks, or merge narrow layers into wider ones"
    return _hint("narrow", rows, what, do)


def _float_left(operators: Sequence[Operator], against: Mapping[str, Sequence[Operator]]) -> Hint | None:
    if not any(op.precision == "int8" and op.macs for op in operators):
        return None
    no_gain = {
        other.source.name: other.us_high
        for others in against.values()
        for other in others
        if other.source and other.precision == "int8"
    }
    rows = []
    for op in operators:
        if op.precision not in FLOATS or op.op_type in COPIES | ROUNDING:
            continue
        meant = op.source is not None and op.source.quantized  # a finding, and no hint
        slower = op.source is not None and no_gain.get(op.source.name, 0.0) > op.us_low
        if not meant and not slower:
            rows.append(op)
    kinds = ", ".join(sorted({op.op_type for op in rows}))
    what = f"{_count(len(rows), 'float operator')} of an int8 model ({kinds})"
    do = "quantize them (the target's int8.op_types, quantize: exclude), or use a form that has an int8 kernel"
    return _hint("float_left", rows, what, do)


def _memory(operators: Sequence[Operator]) -> Hint | None:
    """Operators that do next to nothing with each byte: depthwise convolutions, and element by element."""
    rows = [op for op in operators if op.profiled_us >= _SOLID_US and (op.depthwise or _elementwise(op))]
    kinds = ", ".join(sorted({"depthwise Conv" if op.depthwise else op.op_type for op in rows}))
    what = f"moving data: {{operators}} with little to compute ({kinds})"
    do = "their time follows bytes, not MACs: smaller activations, int8 instead of float, or fewer such layers help"
    return _hint("memory", rows, what, do, _MOVERS)


_ELEMENTWISE = {"Add", "Sub", "Mul", "Div", "Relu", "Clip", "Concat", "HardSwish", "BatchNormalization", "LeakyRelu"}


def _elementwise(op: Operator) -> bool:
    return op.op_type.removeprefix("QLinear") in _ELEMENTWISE


def _tiny(operators: Sequence[Operator]) -> Hint | None:
    rows = [op for op in operators if op.us <= _TINY_US]
    what = f"{{operators}} of at most {_TINY_US:g} µs, mostly for calling them"
    do = "make fewer operators, not smaller ones: remove whole blocks, fuse, fold constants"
    return _hint("tiny", rows, what, do, _OUTSIDE)


def _outside(operators: Sequence[Operator], latency_us: float | None) -> Hint | None:
    """The profiler lengthens operators, so what they leave of a run without it is the least that is spent outside."""
    inside = sum(op.us for op in operators)
    if not latency_us or latency_us - inside <= _OUTSIDE * latency_us:
        return None
    share = 1 - inside / latency_us
    what = f"at least {_percent(share)} of a run is spent in no operator: the runtime's own work for each call"
    do = "the network is too small for more speed from its operators; batches, or fewer calls, help"
    return Hint("outside", what, do, share)
