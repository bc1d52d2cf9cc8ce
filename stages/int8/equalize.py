"""Rescaling channels before rounding: cross-layer equalization and SmoothQuant. The float network computes the same.

One scale serves a whole activation, and on some targets a whole weight. A channel a hundred times wider than its
neighbours leaves them a few steps. Factors per channel, taken out of one layer and put into the next, even that out.

    cross-layer equalization  Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction"
                              (ICCV 2019), section 4.1: both weights get the same range in each channel
    SmoothQuant               Xiao et al., "SmoothQuant" (ICML 2023): wide activations are made narrow at the cost of
                              the weights that read them
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from stages import graph
from stages.graph import Floats
from stages.int8.bench import Attempt, Bench, Setup, Try
from stages.int8.constants import Constants
from stages.int8.correction import redone
from stages.int8.seams import Seam, rescale, seams

__all__ = ["cross_layer", "smooth_quant"]

ALPHAS = (0.5, 0.75)
ROUNDS, SETTLED = 40, 0.01  # a seam's factors depend on its neighbours'; largest change, as a logarithm, that is none
SMALLEST = 1e-5  # of the widest channel: a narrower one counts as this wide, else its factor would have no bound


def cross_layer(bench: Bench, best: Attempt) -> Iterator[Try]:
    """Equalizes the weights of neighbours; nothing to try where no two layers can be."""
    constants = Constants(best.setup.model)
    if any(seam.written(constants) is not None for seam in seams(constants)[0]):
        change = partial(equalized, bench)
        yield Try("cross-layer equalization", partial(redone, bench, best.setup, change))


def smooth_quant(bench: Bench, best: Attempt) -> Iterator[Try]:
    """Moves wide activations into weights, once for each alpha; nothing to try where no layer can be."""
    if seams(Constants(best.setup.model))[0]:
        for alpha in ALPHAS:
            change = partial(smoothed, bench, alpha=alpha)
            yield Try(f"SmoothQuant alpha {alpha:g}", partial(redone, bench, best.setup, change))


def equalized(bench: Bench, setup: Setup) -> Setup:
    """The setup with equal weight ranges r1, r2 on both sides of each seam: factor sqrt(r1 / r2) per channel."""
    constants = Constants(setup.model)
    found, blocked = seams(constants)
    found = [seam for seam in found if seam.written(constants) is not None]
    for _ in range(ROUNDS):
        changes = [0.0]
        for seam in found:
            written = seam.written(constants)
            assert written is not None
            factor = np.sqrt(_bounded(written) / _bounded(seam.read(constants)))
            rescale(constants, seam, factor)
            changes.append(float(np.abs(np.log(factor)).max()))
        if max(changes) < SETTLED:
            break
    return _anew(bench, setup, constants, _told("cross-layer equalization", len(found), blocked))


def smoothed(bench: Bench, setup: Setup, alpha: float) -> Setup:
    """The setup with factors max|x|^alpha / max|w|^(1 - alpha) per channel of each seam's value x and its readers' w.

    Memory is bounded by one batch: the values of all seams.
    """
    constants = Constants(setup.model)
    found, blocked = seams(constants)
    for seam, reach in zip(found, _reaches(bench, setup, found), strict=True):
        factor = _bounded(reach) ** alpha / _bounded(seam.read(constants)) ** (1 - alpha)
        rescale(constants, seam, factor)
    return _anew(bench, setup, constants, _told(f"SmoothQuant alpha {alpha:g}", len(found), blocked))


def _bounded(reach: Floats) -> Floats:
    largest = float(reach.max())
    return np.maximum(reach, SMALLEST * largest) if largest else np.ones_like(reach)


def _reaches(bench: Bench, setup: Setup, found: Sequence[Seam]) -> list[Floats]:
    """Largest magnitude of each channel of each seam's value on calibration data."""
    seen, _ = graph.watched(setup.model)
    outputs = {info.name: info for info in seen.graph.output}
    wanted = [seam.value for seam in found]
    del seen.graph.output[:]
    seen.graph.output.extend(outputs[name] for name in dict.fromkeys(wanted))
    runner = graph.session(seen)
    source = runner.get_inputs()[0].name
    reaches: list[Floats] = [np.zeros(seam.channels, np.float32) for seam in found]
    for inputs in bench.batches():
        for n, value in enumerate(runner.run(wanted, {source: inputs})):
            # a flattened value has several positions for each channel, channels first
            by_channel = np.moveaxis(np.abs(value), found[n].axis, 0).reshape(value.shape[found[n].axis], -1).max(1)
            reaches[n] = np.maximum(reaches[n], by_channel.reshape(found[n].channels, -1).max(1))
    return reaches


def _anew(bench: Bench, setup: Setup, constants: Constants, note: str) -> Setup:
    ranges = bench.calibrated(constants.model, setup.method)
    return replace(setup, model=constants.model, ranges=ranges, notes=(*setup.notes, note))


def _told(what: str, done: int, blocked: Counter[str]) -> str:
    rest = ", ".join(f"{count} behind {why}" for why, count in sorted(blocked.items()))
    return f"{what}: {done} values rescaled" + (f"; others stand {rest}" if rest else "")
