"""Tiny data, tiny networks, and the battery that every stage passes. Shipped, so that a stage from outside can take it:

    @pytest.mark.parametrize("check", battery("prune"), ids=str)
    def test_prune(check, tmp_path):
        check(tmp_path)

The cases of attar's own stages are in `CASES`; a stage from outside brings its own table.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stages import STAGES
from stages.base import Candidate, Context, Origin, Stage, perform
from stages.data import Preprocessing, Split, Splits
from stages.network import build, save_weights
from stages.settings import (
    CascadeConfig,
    DistillConfig,
    ExportConfig,
    PruneConfig,
    QuantizeConfig,
    Student,
    TrainConfig,
)
from stages.teacher import teach
from targets.documents import Frozen
from targets.errors import StageError

__all__ = [
    "CASES",
    "Case",
    "Check",
    "battery",
    "context",
    "digest_of",
    "heavy_tailed",
    "lopsided",
    "outlier_features",
    "tiny_cnn",
    "tiny_concat",
    "tiny_mobile",
    "tiny_residual",
    "tiny_splits",
    "tiny_teacher",
    "tiny_tokens",
    "unbalanced",
]


def tiny_splits(
    size: int = 8, channels: int = 1, classes: int = 4, train: int = 160, other: int = 80, seed: int = 0
) -> Splits:
    """Square images of `classes` noisy patterns, uint8, that a small network tells apart almost surely.

    Args:
        size: height and width, pixels.
        train: examples of the train split.
        other: examples of the validation split, and of the test split.
    """
    random = np.random.default_rng(seed)
    patterns = random.integers(40, 216, (classes, size, size, channels))
    preprocessing = Preprocessing(mean=(0.5,), std=(0.25,))

    def split(n: int) -> Split:
        labels = np.arange(n, dtype=np.int64) % classes
        noisy = patterns[labels] + random.normal(0, 40, (n, size, size, channels))
        return Split(noisy.clip(0, 255).astype(np.uint8), labels, preprocessing)

    parts = split(train), split(other), split(other)
    digest = hashlib.sha256(b"".join(part.raw.tobytes() for part in parts)).hexdigest()
    return Splits(*parts, classes=tuple(f"pattern {i}" for i in range(classes)), digest=digest)


def tiny_cnn(classes: int = 4, in_channels: int = 1, width: int = 8) -> nn.Module:
    """Two convolutions with batch norm, pooled; any image of at least 4x4."""
    return nn.Sequential(
        *(nn.Conv2d(in_channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(width, 2 * width, 3, padding=1), nn.BatchNorm2d(2 * width), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2 * width, classes)),
    )


class _Concat(nn.Module):
    def __init__(self, classes: int, in_channels: int, width: int) -> None:
        super().__init__()
        self.left = nn.Conv2d(in_channels, width, 3, padding=1)
        self.right = nn.Conv2d(in_channels, width + 2, 1)
        self.norm = nn.BatchNorm2d(2 * width + 2)
        self.mix = nn.Conv2d(2 * width + 2, width, 3, padding=1)
        self.head = nn.Linear(16 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(torch.cat([self.left(x), self.right(x)], 1)))
        return self.head(F.adaptive_max_pool2d(F.relu(self.mix(x)), 4).flatten(1))  # type: ignore[no-any-return]


def tiny_concat(classes: int = 4, in_channels: int = 1, width: int = 6) -> nn.Module:
    """Two branches that are concatenated, and a linear layer that reads flattened positions."""
    return _Concat(classes, in_channels, width)


def tiny_mobile(classes: int = 4, in_channels: int = 1, width: int = 8, groups: int = 0) -> nn.Module:
    """A depthwise convolution between two pointwise ones, with a PReLU.

    Args:
        groups: of the middle convolution; 0 makes it depthwise.
    """
    return nn.Sequential(
        *(nn.Conv2d(in_channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.PReLU(width)),
        *(nn.Conv2d(width, width, 3, padding=1, groups=groups or width), nn.BatchNorm2d(width), nn.ReLU()),
        *(nn.Conv2d(width, 2 * width, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        nn.Linear(2 * width, classes),
    )


class _Residual(nn.Module):
    def __init__(self, classes: int, in_channels: int, width: int) -> None:
        super().__init__()
        self.stem, self.stem_norm = nn.Conv2d(in_channels, width, 3, padding=1), nn.BatchNorm2d(width)
        self.one, self.one_norm = nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width)
        self.two, self.two_norm = nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width)
        rest = (nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()) for _ in "rest")
        self.rest, self.head = nn.Sequential(*rest), nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem_norm(self.stem(x)))
        x = self.rest(x + self.two_norm(self.two(F.relu(self.one_norm(self.one(x))))))
        return self.head(F.adaptive_avg_pool2d(x, 1).flatten(1))  # type: ignore[no-any-return]


def tiny_residual(classes: int = 4, in_channels: int = 1, width: int = 8) -> nn.Module:
    """A residual block and four plain convolutions."""
    return _Residual(classes, in_channels, width)


class _Tokens(nn.Module):
    def __init__(self, classes: int, in_channels: int, width: int) -> None:
        super().__init__()
        self.patches = nn.Conv2d(in_channels, width, 2, stride=2)
        self.norm, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = x + self.down(F.gelu(self.up(self.norm(x))))
        return self.head(x.amax(1))  # type: ignore[no-any-return]


def tiny_tokens(classes: int = 4, in_channels: int = 1, width: int = 16) -> nn.Module:
    """Patches of 2x2 as tokens, through one transformer-like feed-forward block."""
    return _Tokens(classes, in_channels, width)


def heavy_tailed(teacher: Candidate, folder: Path, data: Splits, gain: float = 300.0) -> Candidate:
    """A trained `tiny_cnn` with a unit that fires on one input in a hundred, up to `gain` times as strongly as others.

    Min-max calibration keeps its few numbers, and has hardly a step left for the rest.
    """
    module = build(teacher).eval()
    scale, bias, after, after_bias = (module.get_parameter(n) for n in ("1.weight", "1.bias", "4.weight", "4.bias"))
    with torch.no_grad():
        n = int((after.abs().sum((0, 2, 3)) * scale.abs()).argmin())  # the unit that is least missed
        plain = nn.Sequential(*list(module.children())[:2])(torch.from_numpy(data.train.inputs(slice(0, 256))))
        unit = (plain[:, n] - bias[n]) / scale[n]
        quiet = unit.amax((1, 2)).quantile(0.99)
        loud = gain * plain.max() / (unit.max() - quiet)
        after_bias.add_(after[:, n].sum((1, 2)) * F.max_pool2d(plain[:, n].relu(), 2).mean())
        after[:, n] *= scale[n].abs() / loud
        scale[n], bias[n] = loud, -loud * quiet
    return _changed(module, teacher, folder, data)


def unbalanced(teacher: Candidate, folder: Path, data: Splits, spread: float = 30.0) -> Candidate:
    """The same `tiny_mobile` with channels of very different width: each times a number between 1 / `spread` and
    `spread` that the next convolution divides by. One scale for a whole weight is too coarse for the narrow ones."""
    module = build(teacher).eval()
    for norm, after in (("1", "3"), ("4", "6")):
        factors = torch.logspace(-1, 1, len(module.get_parameter(f"{norm}.weight")), spread)
        _widen(module, (norm,), (after,), factors)
    return _changed(module, teacher, folder, data)


def lopsided(teacher: Candidate, folder: Path, data: Splits, gain: float = 300.0) -> Candidate:
    """The same `tiny_residual` with a quarter of the block's channels `gain` times as wide as the others.

    They are so on all inputs: no range fits both. And a sum is no place where factors could move from one layer to the
    next: only floats help.
    """
    module = build(teacher).eval()
    _widen(module, ("stem_norm", "two_norm"), ("one", "rest.0.0"), _some_wide(module, "stem_norm", gain))
    return _changed(module, teacher, folder, data)


def outlier_features(teacher: Candidate, folder: Path, data: Splits, gain: float = 300.0) -> Candidate:
    """The same `tiny_tokens` with a quarter of the layer norm's features `gain` times as wide as the others, as large
    transformers have them (Dettmers et al., "LLM.int8()", NeurIPS 2022)."""
    module = build(teacher).eval()
    _widen(module, ("norm",), ("up",), _some_wide(module, "norm", gain))
    return _changed(module, teacher, folder, data)


def _some_wide(module: nn.Module, norm: str, gain: float) -> Tensor:
    width = len(module.get_parameter(f"{norm}.weight"))
    return torch.where(torch.arange(width) < width // 4, gain, 1.0)


def _widen(module: nn.Module, norms: tuple[str, ...], readers: tuple[str, ...], factors: Tensor) -> None:
    """Multiplies what norms give by a factor per channel, and divides the weights that read it."""
    with torch.no_grad():
        for name in (f"{norm}.{part}" for norm in norms for part in ("weight", "bias")):
            module.get_parameter(name).mul_(factors)
        for name in readers:
            weight = module.get_parameter(f"{name}.weight")
            shape = [-1, 1] if weight.shape[1] == 1 else [1, -1]  # depthwise or not
            weight.div_(factors.view(*shape, *[1] * (weight.ndim - 2)))


def _changed(module: nn.Module, teacher: Candidate, folder: Path, data: Splits) -> Candidate:
    """The candidate with the module's weights, in a folder of its own."""
    folder.mkdir(parents=True)
    save_weights(module, folder / "changed.safetensors")
    return teach(teacher.origin, folder / "changed.safetensors", None, context(folder / "taught", data))


def context(folder: Path, data: Splits, **more: Any) -> Context:
    """A context whose `out` and `scratch` lie in `folder`."""
    out, scratch = folder / "out", folder / "scratch"
    out.mkdir(parents=True)
    scratch.mkdir()
    return Context(data, out, scratch, **more)


def tiny_teacher(
    folder: Path, data: Splits, source: str = "stages.testing:tiny_cnn", epochs: int = 3, **args: Any
) -> Candidate:
    """A teacher trained for a moment, in a folder of its own.

    Args:
        args: arguments of the function that `source` names.
    """
    config = TrainConfig(epochs=epochs, batch_size=16, learning_rate=0.05)
    return teach(Origin(source, args), None, config, context(folder, data))


def digest_of(folder: Path) -> dict[str, str]:
    """SHA-256 of every file below a folder, by relative path."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(f.relative_to(folder)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


@dataclass(frozen=True)
class Case:
    """Settings under which a stage has something to do on `tiny_cnn`.

    Attributes:
        after: stages, by name, that run before with the settings of their own cases.
        beside: arguments of a second `tiny_cnn` that goes through the same, for a stage that joins two; None: there is
            no second.
    """

    config: Frozen
    after: tuple[str, ...] = field(default=())
    beside: Mapping[str, Any] | None = None


CASES: Mapping[str, Case] = {
    "distill": Case(DistillConfig(students=(Student(keep=0.5),), epochs=2, batch_size=16)),
    "prune": Case(PruneConfig(keep=0.5)),
    "export": Case(ExportConfig(samples=8)),
    "quantize": Case(QuantizeConfig(samples=32, batch_size=16), after=("export",)),
    "cascade": Case(CascadeConfig(drop_points=100), after=("export",), beside={"width": 2}),
}


@dataclass(frozen=True)
class Check:
    """One promise of the contract, for one stage. Call it with an empty folder; it raises AssertionError."""

    stage: Stage
    case: Case
    promise: Callable[[Stage, Case, Path], None]

    def __call__(self, folder: Path) -> None:  # noqa: D102 (said above)
        self.promise(self.stage, self.case, folder)

    def __str__(self) -> str:
        return f"{self.stage.name}-{self.promise.__name__.removeprefix('_')}"


def battery(
    name: str, stages: Mapping[str, Stage] = STAGES, cases: Mapping[str, Case] | None = None
) -> tuple[Check, ...]:
    """All checks of one stage.

    Raises:
        KeyError: the stage is not in the table, or has no case.
    """
    case = (CASES if cases is None else cases)[name]
    return tuple(Check(stages[name], case, promise) for promise in (_works, _repeats, _refuses_the_other_form))


def _prepared(case: Case, folder: Path) -> tuple[Candidate, Context]:
    """(the candidate that the stage takes, the context to run it in)."""
    data = tiny_splits()
    teacher = tiny_teacher(folder / "teacher", data, epochs=2)
    ready = [_after(case, teacher, folder, data)]
    if case.beside is not None:
        second = tiny_teacher(folder / "second", data, epochs=2, **case.beside)
        ready.append(_after(case, second, folder / "beside", data))
    candidate, *others = ready
    return candidate, context(folder / "run", data, teacher=teacher, others=tuple(others))


def _after(case: Case, teacher: Candidate, folder: Path, data: Splits) -> Candidate:
    candidate = teacher
    for name in case.after:
        candidate = perform(STAGES[name], candidate, CASES[name].config, context(folder / name, data, teacher=teacher))
    return candidate


def _works(stage: Stage, case: Case, folder: Path) -> None:
    """It changes something, says so in one step, leaves its input alone, and what it wrote loads from anywhere."""
    candidate, ctx = _prepared(case, folder)
    given = {f: digest for f, digest in digest_of(folder).items() if not f.startswith("run/")}
    result = perform(stage, candidate, case.config, ctx)
    assert {f: digest for f, digest in digest_of(folder).items() if not f.startswith("run/")} == given
    assert result.steps[:-1] == candidate.steps
    assert result.steps[-1].stage == stage.name
    assert result.steps[-1].changed
    assert result.signature == candidate.signature
    moved = ctx.out.rename(folder / "moved")  # a stored candidate is read from where the store keeps it
    loaded = Candidate.load(moved)
    paths = {key: moved / path.name for key in ("weights", "onnx") if (path := getattr(result, key)) is not None}
    assert loaded == replace(result, **paths)
    x = ctx.data.validation.inputs(slice(0, 4))
    assert _answers(loaded, x).shape == (4, loaded.signature.outputs)


def _repeats(stage: Stage, case: Case, folder: Path) -> None:
    """Same inputs, same seed: same bytes in every file."""
    candidate, once = _prepared(case, folder)
    again = replace(context(folder / "again", once.data), teacher=once.teacher, others=once.others)
    perform(stage, candidate, case.config, once)
    perform(stage, candidate, case.config, again)
    assert digest_of(once.out) == digest_of(again.out) != {}


def _refuses_the_other_form(stage: Stage, case: Case, folder: Path) -> None:
    """The frame stops a candidate of the wrong form, with a message that says which is right."""
    teacher, ctx = _prepared(Case(case.config), folder)
    other = teacher if stage.takes == "onnx" else replace(teacher, onnx=folder / "model.onnx")
    said = ""
    try:
        perform(stage, other, case.config, ctx)
    except StageError as error:
        said = str(error)
    assert f"takes a {stage.takes} network" in said


def _answers(candidate: Candidate, x: Any) -> Any:
    if candidate.form == "torch":
        with torch.no_grad():
            return build(candidate)(torch.from_numpy(x))
    import onnxruntime

    session = onnxruntime.InferenceSession(candidate.onnx, providers=["CPUExecutionProvider"])
    return session.run([candidate.signature.output_name], {candidate.signature.input_name: x})[0]
