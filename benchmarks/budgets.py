"""A budget in, an artifact out: attar beside a chain made by hand of its peers, on the same float teachers, in turns.

    python benchmarks/budgets.py [--only cifar10,fashion_mnist] [--ratios 0.3,0.5,0.7] [--weights FOLDER] [--quick]
        [--peers-nncf PYTHON] [--keep FOLDER]

A ResNet-56 is trained by attar once for each data set of ../shared/data, and kept in its store (ATTAR_STORE, else
.attar/store). Then, from that teacher:

* attar: `prune: {to: budget}`, `distill` on the labels to recover, `quantize: {}`; the budget is 0.5 points lost and
  8 times faster than float.
* the chain: torch-pruning by each of the ratios, fine-tuned on the labels for as many epochs as all of attar's trials
  had together with the same optimizer and augmentation, exported by torch.onnx, quantized by onnxruntime as someone
  does who knows the hardware, and by NNCF (in an environment of its own, see `int8.py`). Also the teacher itself, only
  quantized. The best is the fastest that loses at most 0.5 points on test.

All are measured in turns in one run on this machine; accuracy is on the test split. Let nothing else run. Prints
Markdown tables, and whether each goal is held (`budgets_tables.py` has them). Exit code 1 if one is missed or a
comparison could not be made, 4 if one is undecided.
"""

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path

import onnxruntime
from budgets_recipe import DATA, QUICK_IMAGES, SEARCH, TRAINED, Made, by_budget, recovery_of, teller
from budgets_tables import ATTAR, FLOAT, WHOLE, Found, goals, table
from int8 import FASHION, PEERS, SAMPLES, Teacher, by_attar, by_hand, by_peer
from int8_tables import Model, Results, look, verdicts
from peers.torch_pruning_chain import exported, tuned

from pipeline.events import Event
from pipeline.store import Store
from stages.settings import QuantizeConfig, TrainConfig
from targets.errors import AttarError


@dataclass(frozen=True)
class Chain:
    """One chain of peers. `make` quantizes it in a folder that is not there yet; `seconds`: what the rest took."""

    name: str
    how: str
    seconds: float
    make: Callable[[Path], Path]


def ours(made: Made, epochs: int) -> tuple[Model, str]:
    """attar's row, and how it was made."""
    of = made.values(made.prune.key)["metrics"]
    told = (
        f"{made.outcome.choice.chosen} of {made.trials}: {of.get('blocks_removed', 0):.0f} blocks gone, "
        f"{of['macs_before'] / of['macs']:.1f} times fewer MACs; trained, epochs: {epochs}; quantize"
    )
    return Model("attar", made.onnx(), made.seconds(*SEARCH, *TRAINED)), told


def chains(teacher: Teacher, config: TrainConfig, options: argparse.Namespace, folder: Path) -> Iterator[Chain]:
    """Each ratio by each quantizer, with the teacher itself first."""
    tell = teller()
    for number, ratio in enumerate((0.0, *options.ratios)):
        title = f"channels pruned by {ratio:g}" if ratio else "not pruned"
        tell(Event("step_started", f"chain of peers, {title}"))
        progress = partial(_progress, tell, title)
        net = tuned(
            teacher.trained, teacher.data, teacher.seed, ratio, config, options.keep, options.round_to, progress
        )
        graph = exported(net.module, teacher.data, folder / f"chain{number}.onnx")
        theirs = replace(teacher, exported=replace(teacher.exported, onnx=graph))
        made = f"{net.fewer_macs:.1f} times fewer MACs; fine-tuned, epochs: {config.epochs}" if ratio else "the teacher"
        yield Chain(
            f"{title}, onnxruntime u8s8", f"{made}; quantize_static", net.seconds, partial(by_hand, theirs, True)
        )
        script, choices = PEERS["NNCF"]
        for choice in choices if options.peers_nncf else ():
            make = partial(by_peer, theirs, options.peers_nncf, script, choice)
            yield Chain(f"{title}, NNCF {choice}", f"{made}; nncf.quantize", net.seconds, make)


def _progress(tell: Callable[[Event], None], title: str, share: float, what: str) -> None:
    tell(Event("progress", title, values={"share": share, "what": what}))


def compared(data: str, store: Store, options: argparse.Namespace, folder: Path) -> Found:
    """Everything on one data set: made, and measured in turns."""
    made = by_budget(data, store, options)
    teacher, recovery = made.teacher(options.quick), recovery_of(data, options.quick)
    assert teacher.exported.onnx is not None
    costs = json.loads(store.read(made.runner.entry(made.prune.costs), "costs.json"))
    results = Results({FLOAT: Model(FLOAT, teacher.exported.onnx)})
    how = {FLOAT: "the teacher"}
    results.models[ATTAR], how[ATTAR] = ours(made, recovery.epochs)
    if int8 := costs["precision"]["int8"]:
        start = time.perf_counter()
        path = by_attar(teacher, QuantizeConfig(engine="onnxruntime", samples=SAMPLES), folder / "whole")
        results.models[WHOLE], how[WHOLE] = Model("whole", path, time.perf_counter() - start), "the teacher; quantize"
    config = recovery.model_copy(update={"epochs": recovery.epochs * made.trials})
    for number, chain in enumerate(chains(teacher, config, options, folder)):
        start = time.perf_counter()
        try:
            path = chain.make(folder / str(number))
        except Exception as error:  # a peer may raise anything; the others are measured all the same
            results.failed[chain.name] = f"{type(error).__name__}: {str(error).splitlines()[0]}"
            continue
        seconds = chain.seconds + time.perf_counter() - start
        results.models[chain.name], how[chain.name] = Model("chain", path, seconds), chain.how
    look(results, teacher.target, teacher.data.test, QUICK_IMAGES if options.quick else None)
    pruned = made.values(made.prune.key)
    predicted = costs["whole"]["latency_p50_ms"] / pruned["metrics"]["predicted_latency_p50_ms"]
    search = {
        stage: made.values(key)["seconds"]
        for stage, key in zip(SEARCH, (made.prune.costs, made.prune.key), strict=True)
    }
    told = [f"{step.title}: {note}" for step in made.pick[1:] for note in made.values(step.key)["notes"]]
    return Found(
        results,
        how,
        predicted,
        pruned["metrics"].get("predicted_speedup_p50"),
        search,
        made.seconds(*SEARCH),
        WHOLE if int8 else FLOAT,
        [
            *told,
            *made.outcome.trials,
            f"{made.outcome.choice.chosen} was chosen: {made.outcome.choice.ranked[0].reason}",
        ],
    )


def options_of() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", type=_names, default=list(DATA), help=f"some of {','.join(DATA)}")
    parser.add_argument("--ratios", type=_ratios, default=(0.3, 0.5, 0.7), help="of channels that peers remove")
    parser.add_argument("--round-to", type=int, metavar="N", help="torch-pruning's own setting; it has none by default")
    parser.add_argument("--peers-nncf", type=Path, metavar="PYTHON", help="an interpreter that has nncf")
    parser.add_argument("--weights", type=Path, metavar="FOLDER", help="take DATA.safetensors from there as teachers")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="of the nets that peers tuned; default: the store")
    parser.add_argument("--quick", action="store_true", help="small nets, few images, one epoch: does all of it work?")
    options = parser.parse_args()
    if unknown := set(options.only) - set(DATA):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; known: {', '.join(DATA)}")
    for data in options.only:
        if not (folder := FASHION.parent / data).is_dir():
            parser.error(f"{folder}: no such folder; leave {data} out with --only")
    if options.peers_nncf and not options.peers_nncf.is_file():
        parser.error(f"{options.peers_nncf}: no such interpreter")
    return options


def _names(text: str) -> list[str]:
    return text.split(",")


def _ratios(text: str) -> tuple[float, ...]:
    found = tuple(float(part) for part in text.split(","))
    if not all(0 < ratio < 1 for ratio in found):
        raise argparse.ArgumentTypeError("ratios lie between 0 and 1")
    return found


def main() -> int:
    options, began = options_of(), time.monotonic()
    store = Store(Path(os.environ.get("ATTAR_STORE") or ".attar/store"))
    options.keep = options.keep or store.root / "peers"
    found: dict[str, Found] = {}
    failed: dict[str, str] = {}
    versions: dict[str, None] = {}
    try:
        for data in options.only:
            with tempfile.TemporaryDirectory(prefix="attar-budgets-") as name:
                try:
                    found[data] = compared(data, store, options, Path(name))
                except AttarError as error:  # a budget out of reach, say; the other data may tell more
                    failed[data] = str(error)
                    print(f"\n### {data}\n\nNo comparison: {error}", flush=True)
                    continue
                if len(found) == 1:
                    cpu = found[data].results.measured.environment["cpu"]["model"]
                    print(f"{platform.machine()}, {cpu}, onnxruntime {onnxruntime.__version__}, ", end="")
                    print(f"torch-pruning {version('torch-pruning')}, one thread, batch 1")
                table(data, found[data])
                sys.stdout.flush()
                versions |= {path.read_text().splitlines()[-1]: None for path in Path(name).glob("*/versions.txt")}
    finally:
        store.close()
    code = verdicts([(data, goal) for data, of in found.items() for goal in goals(of)], "data")
    print("".join(f"\n{line}" for line in versions))
    print(f"\nAll of it took {(time.monotonic() - began) / 60:.1f} minutes.")
    return 1 if failed else code


if __name__ == "__main__":
    sys.exit(main())
