"""The recipe: what a user types, as frozen values. `load` reads one and finds all its faults at once.

    version: 1
    name: digits
    data: {source: digits, image_size: 32, channels: 3}
    model: {source: "stages.zoo:seed_cnn", args: {classes: 10}, train: {epochs: 12}}
    stages: [{distill: {students: [{keep: 0.5}], epochs: 8}}, {quantize: {}}, {export: {}}]
    targets: [{use: local, budget: {accuracy_drop_points: 1.0, latency_p95_ms: 0.4}}]

Reading a recipe runs nothing that it names: user code is looked for, and its text is looked at.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, JsonValue, SerializeAsAny, ValidationInfo, field_validator, model_validator

from pipeline.space import SearchSpec
from stages.base import Form
from stages.settings import TrainConfig
from targets import target as profiles
from targets.budget import Budget
from targets.documents import Document, Frozen, parse, read
from targets.target import Target

__all__ = ["TEMPLATE", "DataSpec", "ModelSpec", "Recipe", "StageCall", "TargetSpec", "load", "load_text"]

Slug = Annotated[str, Field(pattern=profiles.SLUG, max_length=100)]
Share = Annotated[float, Field(gt=0, lt=1)]


class DataSpec(Frozen):
    """Where the data comes from, and how an example becomes the network's input (see `stages.data.Preprocessing`)."""

    source: str = Field(description="digits, a .npz file, a folder of images or IDX files, or module:function")
    args: dict[str, JsonValue] = Field({}, description="arguments of that function")
    image_size: Annotated[int, Field(ge=1, le=4096)] | None = Field(None, description="height and width, pixels")
    channels: Annotated[int, Field(ge=1, le=4)] | None = Field(None, description="1 or 3; grey is repeated")
    divide_by: Annotated[float, Field(gt=0)] | None = Field(
        None, description="the value that becomes 1.0; default: 16 for digits, 255 for bytes, 1 for floats"
    )
    mean: tuple[float, ...] = Field((0.0,), description="per channel, after the division")
    std: tuple[Annotated[float, Field(gt=0)], ...] = Field((1.0,), description="per channel, after the division")
    validation: Share = Field(0.15, description="share of the training data, for sources without a validation split")
    test: Share = Field(0.2, description="share of the data, for sources without a test split")
    limit: Annotated[int, Field(ge=1)] | None = Field(None, description="at most so many training examples")
    reference: Annotated[int, Field(ge=0, le=100_000)] = Field(
        512, description="test examples that stay with the artifact, for `attar validate`; 0: none"
    )

    @field_validator("mean", "std")
    @classmethod
    def _one_per_channel(cls, value: tuple[float, ...], info: ValidationInfo) -> tuple[float, ...]:
        channels = info.data.get("channels")
        if not value or (channels is not None and len(value) not in (1, channels)):
            raise ValueError(f"has {len(value)} values, where one, or one per channel, is expected")
        return value

    @model_validator(mode="after")
    def _something_to_learn_from(self) -> Self:
        if self.validation + self.test >= 1:
            raise ValueError(f"validation {self.validation:g} and test {self.test:g} leave nothing to train on")
        return self


class ModelSpec(Frozen):
    """The teacher: a function that builds a torch network, or an .onnx file."""

    source: str = Field(description='"module:function", or the path of an .onnx file')
    args: dict[str, JsonValue] = Field({}, description="arguments of that function")
    weights: str | None = Field(None, description="a .safetensors file, or a state dict saved by torch")
    train: TrainConfig | None = Field(None, description="train the teacher on the labels")

    @property
    def form(self) -> Form:
        """What the chain starts from."""
        return "onnx" if self.source.endswith(".onnx") else "torch"


class StageCall(Frozen):
    """One stage and its settings, an instance of `STAGES[name].Config`."""

    name: str
    config: SerializeAsAny[Frozen]


class TargetSpec(Frozen):
    """A place where the model must run, and what may be spent there."""

    use: str = Field(description="name of a shipped profile, or the path of one")
    name: Slug | None = Field(None, description="how the report calls it; default: the profile's own name")
    budget: Budget | None = Field(None, description="limits, laid over the profile's own")

    def resolve(self, base: Path) -> Target:
        """The profile with this budget laid over its own, limit by limit (`null` lifts one).

        Raises:
            InputError: there is no such profile, or it has faults.
        """
        profile = profiles.load(self.use, base)
        limits = {name: getattr(self.budget, name) for name in self.budget.model_fields_set} if self.budget else {}
        budget = profile.budget.model_copy(update=limits)
        return profile.model_copy(update={"name": self.name or profile.name, "budget": budget})


class Recipe(Frozen):
    """A whole recipe."""

    version: Literal[1] = Field(description="of this format: 1")
    name: Slug = Field(description="letters, digits, - _ and .")
    seed: Annotated[int, Field(ge=0, lt=2**63)] = Field(
        0, description="decides splits, weights and the order of examples"
    )
    task: Literal["classification"] = "classification"
    data: DataSpec = Field(description="such as {source: digits, image_size: 32, channels: 3}")
    model: ModelSpec = Field(description='such as {source: "stages.zoo:resnet", train: {epochs: 10}}')
    stages: tuple[StageCall, ...] = Field((), description="what is done to the model, in order")
    targets: tuple[TargetSpec, ...] = Field(
        description="such as [{use: local}]",
        json_schema_extra={"minItems": 1},  # not min_length: it would complain about every list with a faulty item too
    )

    search: SearchSpec | None = Field(None, description="what `attar search` explores")

    @field_validator("targets")
    @classmethod
    def _somewhere(cls, value: tuple[TargetSpec, ...]) -> tuple[TargetSpec, ...]:
        if not value:
            raise ValueError("is empty: a model is judged on at least one target")
        return value

    def resolved_targets(self, base: Path) -> tuple[Target, ...]:
        """All targets; `base` is the recipe's folder."""
        return tuple(target.resolve(base) for target in self.targets)


def load(path: Path | str, overrides: Mapping[str, str] | None = None) -> tuple[Recipe, Document]:
    """Reads a recipe file.

    Args:
        overrides: dotted key -> value as YAML: {"stages.0.distill.epochs": "2"}.

    Raises:
        InputError: all faults found, each with its line.
    """
    return _checked(read(path).override(overrides or {}))


def load_text(text: str, file: str) -> tuple[Recipe, Document]:
    """Reads a recipe from its text; `file` is the name that it has or will have. Raises what `load` raises."""
    return _checked(parse(text, file))


def _checked(document: Document) -> tuple[Recipe, Document]:
    from pipeline.faults import check  # it needs the types above

    return check(document), document


TEMPLATE = """\
# attar check {name}.yaml      every fault at once
# attar run {name}.yaml        the verdict and all that led to it, in runs/{name}/

version: 1
name: {name}
seed: 0
task: classification
data:
  source: digits                # or a .npz file, a folder of images, "module:function"
  image_size: 32
  channels: 3
model:
  source: "stages.zoo:seed_cnn"   # or your own "module:function", beside this file; or an .onnx file
  args: {{classes: 10}}
  train: {{epochs: 8}}            # or weights: teacher.safetensors
stages:                         # attar stages lists them, attar stages show NAME tells what each can be told
  - prune: {{to: budget}}         # blocks and channels leave until the limits below hold
  - distill: {{epochs: 6}}        # what is left learns from the teacher
  - quantize: {{}}
  - export: {{}}
targets:                        # attar targets lists them
  - use: local
    budget:
      accuracy_drop_points: 2.0
      latency_p95_ms: 2.0
      size_mb: 0.3
"""
