"""neural-compressor's ranges, carried over to the ONNX graph by value name. onnxruntime's need no carrying."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from onnx import ModelProto

from stages.base import Candidate
from stages.graph import Floats
from stages.vendors.ort_quantizer import Method, Ranges
from targets.errors import StageError

__all__ = ["by_neural_compressor"]


def by_neural_compressor(
    folded: ModelProto,
    candidate: Candidate,
    batches: Callable[[], Iterator[Floats]],
    method: Method,
    extremes: Ranges,
) -> tuple[Ranges, tuple[str, ...]]:
    """Ranges for every float value: neural-compressor's, and the extremes of what it has none for; and what to tell.

    Args:
        extremes: of every value of the graph, by onnxruntime.

    Raises:
        StageError: there is no torch network, the library is absent, or the two are not the same network.
    """
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
    found = neural_compressor.activation_ranges(build(candidate), candidate.signature, batches(), method)
    _match(found, extremes)
    matched = found.keys() & extremes.keys()
    values = {name for node in folded.graph.node for name in node.output} & extremes.keys()
    note = (
        f"neural-compressor: {len(matched)} of its {len(found)} ranges matched by value name; min-max by onnxruntime "
        f"for the other {len(values - matched)} values"
    )
    return extremes | {name: found[name] for name in matched}, (note,)


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
