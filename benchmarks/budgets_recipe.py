"""attar's side of `budgets.py`: the recipe for each data set, and what its run came to."""

import argparse
import json
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from budgets_tables import LOST, OVER_FLOAT
from int8 import FASHION, Teacher

from pipeline.events import Event, Events
from pipeline.plan import plan
from pipeline.recipe import load_text
from pipeline.runner import Outcome, Runner
from pipeline.steps import PlannedStep
from pipeline.store import Store
from stages.settings import TrainConfig

__all__ = ["DATA", "QUICK_IMAGES", "SEARCH", "TRAINED", "Made", "by_budget", "recovery_of", "teller"]

CIFAR = FASHION.parent / "cifar10"
HERE = Path(__file__).resolve().parent  # the recipes' folder: images.py lies here

DATA: dict[str, dict[str, Any]] = {
    "cifar10": {
        "source": "images:cifar10",
        "args": {part: str(CIFAR / f"cifar10_{part}_jpeg.npz") for part in ("train", "test")},
        "mean": [0.491, 0.482, 0.447],
        "std": [0.247, 0.243, 0.262],
        "channels": 3,
        "validation": 0.1,
        "limit": 20_000,
    },
    "fashion_mnist": {
        "source": str(FASHION),
        "mean": [0.286],
        "std": [0.353],
        "image_size": 32,
        "channels": 1,
        "validation": 0.05,
        "limit": 12_000,
    },
}
TEACHER = {
    "cifar10": TrainConfig(epochs=8, batch_size=128, learning_rate=0.1, augment="shift-flip"),
    "fashion_mnist": TrainConfig(epochs=3, batch_size=64, learning_rate=0.1, augment="shift"),
}
RECOVERY = {
    "cifar10": TrainConfig(epochs=16, batch_size=128, learning_rate=0.1, augment="shift-flip"),
    "fashion_mnist": TrainConfig(epochs=10, batch_size=64, learning_rate=0.05, augment="shift"),
}
DEPTH = 56
QUICK_DEPTH, QUICK_LOST, QUICK_FASTER, QUICK_IMAGES = 14, 30.0, 3.5, 1000

SEARCH, TRAINED = ("costs", "prune"), ("distill", "export", "quantize")
"""Stages of a run: those that find a structure, and those that make it an artifact."""


def recovery_of(data: str, quick: bool) -> TrainConfig:
    """How attar's candidates learn on, and peers' with it."""
    return RECOVERY[data].model_copy(update={"epochs": 1}) if quick else RECOVERY[data]


def recipe_of(data: str, weights: Path | None, quick: bool) -> str:
    """The whole of attar's side. JSON is YAML."""
    teacher = TEACHER[data].model_copy(update={"epochs": 1}) if quick else TEACHER[data]
    asked = {**DATA[data], "limit": QUICK_IMAGES} if quick else DATA[data]
    if quick and "args" in asked:
        asked = {**asked, "args": {**asked["args"], "first": 4 * QUICK_IMAGES}}
    args = {"depth": QUICK_DEPTH if quick else DEPTH, "in_channels": asked["channels"], "classes": 10}
    model = {"source": "stages.zoo:resnet", "args": args}
    model |= {"weights": str(weights)} if weights else {"train": teacher.model_dump(mode="json")}
    lost, faster = (QUICK_LOST, QUICK_FASTER) if quick else (LOST, OVER_FLOAT)
    budget = {"accuracy_drop_points": lost, "speedup_p50": faster}
    told = {
        "version": 1,
        "name": f"budgets_{data}",
        "seed": 1,
        "data": asked,
        "model": model,
        "stages": [
            {"prune": {"to": "budget", **({"trials": 1, "samples": 64} if quick else {})}},
            # On the labels alone, as peers learn: a teacher of a few epochs would hold back whoever follows it.
            {"distill": {**recovery_of(data, quick).model_dump(mode="json"), "label_weight": 1.0, "soft_weight": 0.0}},
            {"quantize": {"minutes": 0.5, "qat": None} if quick else {}},
            {"export": {}},
        ],
        "targets": [{"use": "local", "budget": budget}],
    }
    return json.dumps(told, indent=1)


def teller(every_s: float = 60) -> Callable[[Event], None]:
    """Progress, on standard error; that inside of a step seldom."""
    last = time.monotonic()

    def tell(event: Event) -> None:
        nonlocal last
        told = {name: value for name, value in event.values.items() if name in ("text", "seconds", "error")}
        if event.kind == "progress":
            if time.monotonic() - last < every_s:
                return
            told = {"share": f"{event.values['share']:.0%}", "what": event.values["what"]}
        last = time.monotonic()
        print(time.strftime("%H:%M:%S"), event.kind, event.step, *told.values(), file=sys.stderr, flush=True)

    return tell


@dataclass(frozen=True)
class Made:
    """What attar's run came to on one data set."""

    runner: Runner
    outcome: Outcome

    @property
    def pick(self) -> tuple[PlannedStep, ...]:
        """The steps that made the chosen candidate."""
        return self.runner.plan.lineage(self.outcome.goal.candidates[self.outcome.choice.chosen])

    @property
    def prune(self) -> PlannedStep:
        return next(step for step in self.pick if step.stage == "prune")

    @property
    def trials(self) -> int:
        return len(self.outcome.goal.candidates)

    def onnx(self) -> Path:
        path = self.runner.candidate(self.pick[-1].key).onnx
        assert path is not None
        return path

    def values(self, key: str) -> Mapping[str, Any]:
        """What is kept of a step: `metrics`, `notes`, `seconds`."""
        return self.runner.entry(key).values

    def seconds(self, *stages: str) -> float:
        """Of these stages in all trials, without what made the teacher and its float graph."""
        before = {step.key for step in self.runner.plan.lineage(self.outcome.goal.baseline)}
        return sum(step.seconds for step in self.runner.done if step.stage in stages and step.key not in before)

    def teacher(self, quick: bool) -> Teacher:
        """The float network as peers get it, with the meter that all are measured by."""
        goal, runner = self.outcome.goal, self.runner
        trained, graph = (runner.candidate(key) for key in (runner.plan.lineage(goal.baseline)[0].key, goal.baseline))
        meter = goal.target.meter.model_copy(update={"energy_s": 0, "samples": 300 if quick else 1200, "blocks": 24})
        target = goal.target.model_copy(update={"meter": meter})
        return Teacher(trained, graph, target, runner.data, runner.recipe.seed)


def by_budget(data: str, store: Store, options: argparse.Namespace) -> Made:
    """The recipe, run as `attar run` does."""
    weights = options.weights.absolute() / f"{data}.safetensors" if options.weights else None
    recipe, document = load_text(recipe_of(data, weights, options.quick), str(HERE / f"budgets_{data}.yaml"))
    runner = Runner(recipe, HERE, plan(recipe, HERE), store, Events(teller()), document=document)
    return Made(runner, runner.run()[0])
