"""Int8 by attar's engines beside float, onnxruntime's quantizer by hand, NNCF and Olive: four networks, in turns.

    python benchmarks/int8.py [--nets resnet56,mobile] [--engines onnxruntime,neural_compressor] [--quick]
        [--peers-nncf PYTHON] [--peers-olive PYTHON]

A float teacher of each network is trained by attar once and kept in its store (ATTAR_STORE, else .attar/store), on
Fashion-MNIST where ../shared/data has it, else on scikit-learn's digits. All int8 models come from its exported graph
and the same calibration images. They are measured in turns in one run on this machine; accuracy is on the test split.
Let nothing else run: beside a load of more than its cores the machine favours short runs, see `int8_tables.py`.

NNCF and Olive stay in environments of their own; PYTHON is the interpreter there:

    python -m venv nncf  && nncf/bin/pip install nncf onnx onnxruntime
    python -m venv olive && olive/bin/pip install olive-ai requests onnxruntime

Prints Markdown tables, and whether each goal is held. Exit code 1 if one of these is missed on a residual network: at
least 2.5 times faster than float with every engine, both engines within 5 % of each other. 4 if one is undecided.
"""

import argparse
import json
import logging
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import onnxruntime
from int8_tables import Model, Results, goals, look, table, verdicts

from pipeline.events import Event, Events
from pipeline.plan import plan
from pipeline.recipe import load_text
from pipeline.runner import Runner
from pipeline.store import Store
from stages import STAGES
from stages.base import Candidate, Context, perform
from stages.data import Splits
from stages.settings import QuantizeConfig
from targets.errors import AttarError
from targets.target import Target

ROOT = Path(__file__).resolve().parents[1]
FASHION = (ROOT / "../shared/data/fashion_mnist").resolve()
SAMPLES = 256  # calibration images, for everyone

NETS = {
    "resnet56": ("stages.zoo:resnet", {"depth": 56}, 0.1),
    "resnet20": ("stages.zoo:resnet", {"depth": 20}, 0.1),
    "cnn": ("stages.zoo:seed_cnn", {}, 0.02),
    "mobile": ("stages.zoo:mobile", {"blocks": 2}, 0.1),
}
"""The function that builds a network, its arguments, and the peak learning rate."""

ENGINES = ("onnxruntime", "neural_compressor", "auto")

PEERS = {"NNCF": ("nncf_ptq.py", ("performance", "mixed")), "Olive": ("olive_ptq.py", ("defaults", "u8s8"))}
"""The script that runs in a peer's own environment, and the choices that it takes."""


@dataclass(frozen=True)
class Teacher:
    """A float network, exported; the target that it is judged on, and its data."""

    trained: Candidate
    exported: Candidate
    target: Target
    data: Splits
    seed: int


def recipe_of(net: str, weights: Path | None, quick: bool) -> str:
    """A recipe that trains and exports one float network. JSON is YAML."""
    source, args, rate = NETS[net]
    fashion = FASHION.is_dir()
    data = (
        {"source": str(FASHION), "mean": [0.286], "std": [0.353], "validation": 0.05}
        if fashion
        else {"source": "digits", "validation": 0.15, "test": 0.3}
    )
    data |= {"image_size": 32, "channels": 1, "limit": 2000 if quick else 12_000}
    train = {"epochs": 1 if quick else 3, "batch_size": 64, "learning_rate": rate, "augment": "shift"}
    if not fashion:
        train["epochs"] *= 4
    model = {"source": source, "args": {**args, "in_channels": 1, "classes": 10}}
    model |= {"weights": str(weights)} if weights else {"train": train}
    targets = [{"use": "local", "budget": {"accuracy_drop_points": 1.0}}]
    told = {"version": 1, "name": f"int8_{net}", "seed": 1, "data": data, "model": model}
    return json.dumps({**told, "stages": [{"export": {}}], "targets": targets})


def tell(event: Event) -> None:
    """Progress, on standard error."""
    if event.kind in ("step_started", "step_done"):
        print(f"{time.strftime('%H:%M:%S')} {event.kind} {event.step}", file=sys.stderr, flush=True)


def teacher_of(net: str, store: Store, weights: Path | None, quick: bool) -> Teacher:
    """Trained and exported, or found in the store."""
    recipe, document = load_text(recipe_of(net, weights, quick), f"{net}.yaml")
    laid = plan(recipe, ROOT)
    goal = laid.goals[0]
    runner = Runner(recipe, ROOT, replace(laid, goals=()), store, Events(tell), document=document)
    runner.run()
    trained, exported = (runner.candidate(key) for key in (laid.steps[0].key, goal.baseline))
    meter = goal.target.meter.model_copy(update={"energy_s": 0, "samples": 300 if quick else 1200, "blocks": 24})
    return Teacher(trained, exported, goal.target.model_copy(update={"meter": meter}), runner.data, recipe.seed)


def by_attar(teacher: Teacher, config: QuantizeConfig, folder: Path) -> Path:
    """The stage as the runner runs it."""
    out = folder / "out"
    out.mkdir(parents=True)
    context = Context(
        teacher.data,
        out,
        folder / "scratch",
        teacher.seed,
        teacher.trained,
        target=teacher.target,
        say=lambda text: print(f"    {text}", file=sys.stderr, flush=True),
    )
    made = perform(STAGES["quantize"], teacher.exported, config, context)
    for note in made.steps[-1].notes:
        context.say(note)
    assert made.onnx is not None
    return made.onnx


def by_hand(teacher: Teacher, u8s8: bool, folder: Path) -> Path:
    """onnxruntime's quantizer as its documentation shows it, with all defaults (s8 activations and weights), or with
    what someone chooses who knows x86-64 with VNNI: u8 activations, s8 weights, per channel."""
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
        def __init__(self):
            self.batches = teacher.data.train.batches(32, SAMPLES)

        def get_next(self):
            batch = next(self.batches, None)
            return None if batch is None else {"input": batch[0]}

    logging.getLogger().setLevel(logging.ERROR)
    folder.mkdir()
    quant_pre_process(str(teacher.exported.onnx), str(folder / "prepared.onnx"))
    how = {"activation_type": QuantType.QUInt8, "weight_type": QuantType.QInt8, "per_channel": True} if u8s8 else {}
    quantize_static(str(folder / "prepared.onnx"), str(folder / "model.onnx"), Reader(), **how)
    return folder / "model.onnx"


def by_peer(teacher: Teacher, python: Path, script: str, option: str, folder: Path) -> Path:
    """A script in a peer's own environment, with the float graph and the calibration images."""
    folder.mkdir()
    np.savez(folder / "calibration.npz", input=teacher.data.train.inputs(slice(0, SAMPLES)))
    command = [
        python.absolute(),  # not resolved: a link is what makes it an environment's own
        ROOT / "benchmarks" / "peers" / script,
        teacher.exported.onnx,
        folder / "calibration.npz",
        folder / "model.onnx",
        option,
    ]
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder, env=clean)
    if done.returncode or not (folder / "model.onnx").is_file():
        said = (done.stderr.strip() or done.stdout.strip() or "nothing was written").splitlines()
        raise RuntimeError(said[-1])
    (folder / "versions.txt").write_text(done.stdout)
    return folder / "model.onnx"


def makers(teacher: Teacher, options: argparse.Namespace) -> Iterator[tuple[str, str, Callable[[Path], Path]]]:
    """(name, kind, what makes the model in a folder that is not there yet)."""
    for engine in options.engines:
        config = QuantizeConfig(engine=engine, samples=SAMPLES, pays=options.pays, minutes=options.minutes)
        yield f"attar: {engine}", "attar", partial(by_attar, teacher, config)
    yield "by hand: defaults", "peer", partial(by_hand, teacher, False)
    yield "by hand: u8s8", "peer", partial(by_hand, teacher, True)
    for peer, (script, choices) in PEERS.items():
        python = getattr(options, f"peers_{peer.lower()}")
        for choice in choices if python else ():
            yield f"{peer}: {choice}", "peer", partial(by_peer, teacher, python, script, choice)


def collected(teacher: Teacher, options: argparse.Namespace, folder: Path) -> Results:
    """Makes all models that can be made."""
    assert teacher.exported.onnx is not None
    results = Results({"float": Model("float", teacher.exported.onnx)})
    for number, (name, kind, make) in enumerate(makers(teacher, options)):
        print(f"{time.strftime('%H:%M:%S')}   {name}", file=sys.stderr, flush=True)
        start = time.perf_counter()
        try:
            path = make(folder / str(number))
        except Exception as error:  # a peer may raise anything; the others are measured all the same
            results.failed[name] = f"{type(error).__name__}: {str(error).splitlines()[0]}"
        else:
            results.models[name] = Model(kind, path, time.perf_counter() - start)
    return results


def options_of() -> argparse.Namespace:
    def names(text: str) -> list[str]:
        return text.split(",")

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nets", type=names, default=list(NETS), help=f"some of {','.join(NETS)}")
    parser.add_argument("--engines", type=names, default=list(ENGINES), help=f"some of {','.join(ENGINES)}")
    parser.add_argument("--peers-nncf", type=Path, metavar="PYTHON", help="an interpreter that has nncf")
    parser.add_argument("--peers-olive", type=Path, metavar="PYTHON", help="an interpreter that has olive-ai")
    parser.add_argument("--weights", type=Path, metavar="FOLDER", help="take NET.safetensors from there, train nothing")
    parser.add_argument("--pays", action=argparse.BooleanOptionalAction, default=True, help="quantize's own setting")
    parser.add_argument("--minutes", type=float, default=5, help="that engine auto may take for each network")
    parser.add_argument("--quick", action="store_true", help="poor teachers, 2,000 test images, few latencies")
    parser.add_argument("--train-only", action="store_true", help="train what is not in the store, and stop")
    options = parser.parse_args()
    for given, known in ((options.nets, NETS), (options.engines, ENGINES)):
        if unknown := set(given) - set(known):
            parser.error(f"unknown: {', '.join(sorted(unknown))}; known: {', '.join(known)}")
    for python in filter(None, (options.peers_nncf, options.peers_olive)):
        if not python.is_file():
            parser.error(f"{python}: no such interpreter")
    return options


def main() -> int:
    options, began = options_of(), time.monotonic()
    store = Store(Path(os.environ.get("ATTAR_STORE") or ".attar/store"))
    found: dict[str, Results] = {}
    versions: dict[str, None] = {}
    try:
        for net in options.nets:
            weights = options.weights.absolute() / f"{net}.safetensors" if options.weights else None
            teacher = teacher_of(net, store, weights, options.quick)
            if options.train_only:
                continue
            with tempfile.TemporaryDirectory(prefix="attar-int8-") as name:
                found[net] = collected(teacher, options, Path(name))
                look(found[net], teacher.target, teacher.data.test, 2000 if options.quick else None)
                if len(found) == 1:
                    cpu = found[net].measured.environment["cpu"]["model"]
                    print(f"{platform.machine()}, {cpu}, onnxruntime {onnxruntime.__version__}, ", end="")
                    print(f"{teacher.target.runtime.threads} thread(s), batch 1, {SAMPLES} calibration images")
                table(net, found[net])
                sys.stdout.flush()
                versions |= {path.read_text().splitlines()[-1]: None for path in Path(name).glob("*/versions.txt")}
    except AttarError as error:
        sys.exit(str(error))
    finally:
        store.close()
    if options.train_only:
        return 0
    code = verdicts([(net, goal) for net, results in found.items() for goal in goals(net, results)])
    print("".join(f"\n{version}" for version in versions))
    print(f"\nAll of it took {(time.monotonic() - began) / 60:.1f} minutes.")
    return code


if __name__ == "__main__":
    sys.exit(main())
