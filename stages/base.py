"""The contract between the runner and a stage, in prose and types.

A stage is a plain function that anyone can call from a notebook:

    def prune(candidate: Candidate, config: PruneConfig, context: Context) -> Candidate

It takes one value and returns one value; nothing else travels. A `Candidate` is frozen and holds files, not live
objects: a torch network is *how to build it* (`origin`), *what was cut* (`surgery`) and *its weights* (safetensors);
an exported network is an ONNX file. A stage builds a fresh module (`stages.network.build`), works on it, writes what it
made into `context.out` and returns a new candidate. So it cannot edit its input, and reload from disk is what
every next stage does, not a feature to be tested on the side.

The frame (`perform`) checks `takes` before and `gives` after, and that the signature still holds. A stage that changed
nothing says so with `Step(changed=False)`; the frame makes it news.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from targets.documents import Frozen
from targets.errors import StageError

if TYPE_CHECKING:
    from stages.data import Splits
    from targets.target import Target

__all__ = ["Candidate", "Context", "Form", "Origin", "Signature", "Stage", "Step", "Surgery", "perform"]

Form = Literal["torch", "onnx"]


@dataclass(frozen=True)
class Signature:
    """Names and shapes at the border of the network. Batch is the first axis and is not in the shapes.

    Attributes:
        input_shape: (channels, height, width), or any shape without the batch axis.
        outputs: number of classes.
    """

    input_shape: tuple[int, ...]
    outputs: int
    input_name: str = "input"
    output_name: str = "logits"


@dataclass(frozen=True)
class Origin:
    """How to build the untouched network: `source` is "module:function" (called with `args`) or a path to an .onnx."""

    source: str
    args: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Surgery:
    """One cut, to be replayed on a freshly built network before its weights are loaded.

    Attributes:
        module: dotted name of the module as `named_modules()` gives it.
        kind: "out" or "in": remove these output / input channels (or features) of that one module;
            "norm": remove these channels of a normalization; "identity": the module hands its first input on;
            "zero": the module gives zeros, so that the sum behind it is what comes by the other way;
            "count": `module` names an integer attribute ("attn.num_heads"), which counts so many less.
        indexes: channels to remove, as numbered when the cut is replayed (after the cuts before it). For "identity" and
            "zero": (place, length) of the tensor in the tuple that the module returns; empty: it returns the tensor.
        idle: modules that only worked for one that gives zeros now; they hand on what they get, to nobody.
    """

    module: str
    kind: Literal["out", "in", "norm", "count", "identity", "zero"]
    indexes: tuple[int, ...] = ()
    idle: tuple[str, ...] = ()


@dataclass(frozen=True)
class Step:
    """What one stage did to a candidate.

    Attributes:
        changed: False when there was nothing to do (no channel removed, no node quantized).
        notes: sentences for the report: what was skipped and why.
        metrics: numbers for the report, units in the names: `parameters`, `macs`, `validation_accuracy`.
    """

    stage: str
    changed: bool = True
    notes: tuple[str, ...] = ()
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Candidate:
    """A network on its way to becoming an artifact. Frozen; its files are never written again.

    Attributes:
        name: the branch, as shown in the report: "teacher", "keep 0.5".
        weights: safetensors file of the torch network, or None where there was never one (.onnx sources).
        onnx: the ONNX file once exported, else None. `weights` stays beside it: the torch twin of the same network.
    """

    name: str
    origin: Origin
    signature: Signature
    surgery: tuple[Surgery, ...] = ()
    steps: tuple[Step, ...] = ()
    weights: Path | None = None
    onnx: Path | None = None

    @property
    def form(self) -> Form:
        """What stages can take it: "onnx" once it is exported."""
        return "onnx" if self.onnx is not None else "torch"

    def then(self, step: Step, **changes: Any) -> Candidate:
        """A new candidate: this one with `changes`, and `step` added to its history."""
        return replace(self, steps=(*self.steps, step), **changes)

    def save(self, folder: Path) -> None:
        """Writes `candidate.json` into `folder`, where the candidate's own files must already be."""
        state = asdict(self)
        for key in ("weights", "onnx"):
            path: Path | None = state[key]
            if path is not None and path.parent != folder:
                raise ValueError(f"{key} of candidate {self.name!r} lies in {path.parent}, not in {folder}")
            state[key] = None if path is None else path.name
        (folder / "candidate.json").write_text(json.dumps(state, indent=1, sort_keys=True) + "\n", encoding="utf-8")

    @staticmethod
    def load(folder: Path) -> Candidate:
        """Reads what `save` wrote. The network itself is built only when a stage asks for it."""
        state = json.loads((folder / "candidate.json").read_text(encoding="utf-8"))
        state["origin"] = Origin(**state["origin"])
        state["signature"] = Signature(**state["signature"] | {"input_shape": tuple(state["signature"]["input_shape"])})
        state["surgery"] = tuple(
            Surgery(s["module"], s["kind"], tuple(s["indexes"]), tuple(s.get("idle", ()))) for s in state["surgery"]
        )
        state["steps"] = tuple(Step(**s | {"notes": tuple(s["notes"])}) for s in state["steps"])
        for key in ("weights", "onnx"):
            state[key] = None if state[key] is None else folder / state[key]
        return Candidate(**state)


def _silent(_: str) -> None: ...


def _still(_fraction: float, _what: str) -> None: ...


@dataclass(frozen=True)
class Context:
    """What a stage may use besides its candidate and its settings.

    Attributes:
        data: the three splits; a stage trains and calibrates on `train`, decides on `validation`, never reads `test`.
        out: an empty folder that takes the stage's files.
        scratch: a folder that outlives a kill of this very step; checkpoints go here.
        others: more candidates, for stages that join several branches.
        costs: folder with what structures cost on the target, for a `prune` to a budget.
        target: only for stages that declare what they look at (`Stage.sees`).
        say: tells a person one sentence. progress: share of the work done (0..1) and what is being done.
    """

    data: Splits
    out: Path
    scratch: Path
    seed: int = 0
    teacher: Candidate | None = None
    others: tuple[Candidate, ...] = ()
    costs: Path | None = None
    target: Target | None = None
    say: Callable[[str], None] = _silent
    progress: Callable[[float, str], None] = _still


@dataclass(frozen=True)
class Stage:
    """One row of the table of stages (`stages.STAGES`). Data only: the function is named, and imported when it runs.

    Attributes:
        run: "module:function" of the plain function.
        sees: fields of `Target` that the stage looks at ("budget.size_mb" for a part of one); only these enter the
            step's key. `sees_if`: more fields, by the setting that makes the stage look at them.
        libraries: distributions whose version enters the step's key.
        extra: the optional dependency group that the stage needs, or None.
    """

    name: str
    summary: str
    Config: type[Frozen]
    run: str
    takes: Form
    gives: Form
    sees: tuple[str, ...] = ()
    sees_if: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    libraries: tuple[str, ...] = ()
    needs_teacher: bool = False
    extra: str | None = "compress"

    def looks_at(self, config: Frozen | None) -> tuple[str, ...]:
        """The fields of a target that it looks at with these settings."""
        more = (fields for setting, fields in self.sees_if.items() if getattr(config, setting, False))
        return (*self.sees, *(name for fields in more for name in fields))

    def function(self) -> Callable[[Candidate, Any, Context], Candidate]:
        """Imports the stage's function; a missing optional library is a `StageError` that names the extra."""
        module, _, name = self.run.partition(":")
        try:
            found = getattr(import_module(module), name)
        except ModuleNotFoundError as missing:
            if (missing.name or "").split(".")[0] in ("stages", "targets", "pipeline") or not self.extra:
                raise
            raise StageError(
                f"stage {self.name} needs {missing.name}, which is not installed: pip install 'attar[{self.extra}]'"
            ) from missing
        return found  # type: ignore[no-any-return]


def perform(stage: Stage, candidate: Candidate, config: Frozen, context: Context) -> Candidate:
    """Runs one stage inside its contract.

    Raises:
        StageError: the candidate has the wrong form, or the stage broke its promise.
    """
    done = " -> ".join(step.stage for step in candidate.steps) or "nothing yet"
    if candidate.form != stage.takes:
        raise StageError(f"{stage.name} takes a {stage.takes} network and got {candidate.form} (done: {done})")
    if stage.needs_teacher and context.teacher is None:
        raise StageError(f"{stage.name} needs a teacher (done: {done})")
    result = stage.function()(candidate, config, context)
    if result.form != stage.gives:
        raise StageError(f"{stage.name} promised a {stage.gives} network and gave {result.form}: a fault in the stage")
    if result.signature != candidate.signature:
        raise StageError(f"{stage.name} changed the signature {candidate.signature} to {result.signature}")
    if len(result.steps) != len(candidate.steps) + 1:
        raise StageError(f"{stage.name} must add exactly one Step to the candidate's history: use Candidate.then")
    if not result.steps[-1].changed:
        context.say(f"{stage.name} changed nothing in {candidate.name}")
    result.save(context.out)
    return result
