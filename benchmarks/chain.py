"""A recipe's artifact beside the float teacher and beside what a short script would have made of the same teacher.

    python benchmarks/chain.py recipes/digits.yaml [--set key=value]...

The short script: onnxruntime's `quantize_static` on the exported teacher, with its defaults and the same calibration
images; no distillation, no pruning. All three are measured in turns in one run on the recipe's first target, so the
ratios hold even where the machine's speed drifts. Accuracy is on the test split. Then the recipe runs a second time, to
show what the frame itself costs when every step is stored. Prints a Markdown table.
"""

import argparse
import logging
import os
import platform
import sys
import tempfile
import time
from pathlib import Path

import onnxruntime

from pipeline.code import importable
from pipeline.events import Event, Events
from pipeline.plan import plan
from pipeline.recipe import load
from pipeline.runner import Runner
from pipeline.store import Store
from targets.accuracy import accuracy
from targets.measure import measure, outputs
from targets.samples import measurements


def by_hand(teacher: Path, data, folder: Path) -> Path:
    """The teacher through onnxruntime's quantizer, as its documentation shows it."""
    from onnxruntime.quantization import CalibrationDataReader, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
        def __init__(self):
            self.batches = data.train.batches(32, 256)

        def get_next(self):
            batch = next(self.batches, None)
            return None if batch is None else {"input": batch[0]}

    logging.getLogger().setLevel(logging.ERROR)
    quant_pre_process(str(teacher), str(folder / "prepared.onnx"))
    quantize_static(str(folder / "prepared.onnx"), str(folder / "by_hand.onnx"), Reader())
    return folder / "by_hand.onnx"


def tell(event: Event) -> None:
    """Progress, on standard error."""
    if event.kind == "step_started":
        print(event.step, file=sys.stderr)


def run_once(path: Path, sets: dict[str, str], store: Store):
    """(runner, outcome on the first target, seconds)."""
    start = time.perf_counter()
    recipe, _ = load(path, sets)
    base = path.absolute().parent
    runner = Runner(recipe, base, plan(recipe, base), store, Events(tell))
    with importable(base):
        outcome = runner.run()[0]
    return runner, outcome, time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--set", action="append", default=[])
    arguments = parser.parse_args()
    sets = dict(item.split("=", 1) for item in arguments.set)
    store = Store(Path(os.environ.get("ATTAR_STORE") or ".attar/store"))
    runner, outcome, first = run_once(arguments.recipe, sets, store)
    computed, share = sum(not step.stored for step in runner.done), 1 - runner.busy_seconds / first
    target, data = outcome.goal.target, runner.data
    with tempfile.TemporaryDirectory() as folder:
        teacher = runner.candidate(outcome.goal.baseline).onnx
        models = {
            "float teacher": teacher,
            "by hand: quantize_static": by_hand(teacher, data, Path(folder)),
            f"attar: {outcome.choice.chosen}": runner.candidate(outcome.goal.candidates[outcome.choice.chosen]).onnx,
        }
        measured = measure(target, models, data.test.inputs(slice(0, 64)))
        print(
            f"\n{platform.machine()}, {measured.environment['cpu']['model']}, onnxruntime {onnxruntime.__version__}, ",
            end="",
        )
        print(f"{target.runtime.threads} thread(s), batch 1, {len(data.test)} test images\n")
        print("| model | accuracy % | p50 ms | speed-up | size kB |")
        print("|---|---:|---:|---:|---:|")
        answers = outputs(target, models, (x for x, _ in data.test.batches(64)))
        for name, path in models.items():
            got = measurements(measured, name, None if path is teacher else "float teacher")
            right = accuracy(answers[name], data.test.labels, 0.95)
            ratio = got.get("speedup_p50")
            cells = (
                name,
                f"{right.value:.2f} ({right.low:.1f} to {right.high:.1f})",
                f"{got['latency_p50_ms'].value:.4f}",
                f"{ratio.value:.2f} ({ratio.low:.2f} to {ratio.high:.2f})" if ratio else "1",
                f"{path.stat().st_size / 1e3:.0f}",
            )
            print("| " + " | ".join(cells) + " |")
    again, _, second = run_once(arguments.recipe, sets, store)
    print(f"\nFirst run: {first:.0f} s, {computed} steps computed, {share:.1%} of it the frame's own.")
    print(f"Second run: {second:.2f} s, {sum(not step.stored for step in again.done)} steps computed.")
    store.close()


if __name__ == "__main__":
    main()
