"""What each stage can be told, as frozen data. The acts are in the stages' own files; importing this wakes no torch."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, JsonValue, model_validator

from targets.documents import Frozen

__all__ = [
    "CascadeConfig",
    "CostsConfig",
    "DistillConfig",
    "ExportConfig",
    "PruneConfig",
    "QuantizeConfig",
    "Student",
    "TrainConfig",
]

Share = Annotated[float, Field(gt=0, le=1)]
Weight = Annotated[float, Field(ge=0, le=1000)]


class TrainConfig(Frozen):
    """One training run: SGD with Nesterov momentum, one-cycle cosine learning rate with linear warm-up."""

    epochs: Annotated[int, Field(ge=1, le=10_000)] = 10
    batch_size: Annotated[int, Field(ge=2, le=65_536)] = 64
    learning_rate: Annotated[float, Field(gt=0, le=100)] = Field(0.05, description="peak, for one batch of this size")
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    weight_decay: Annotated[float, Field(ge=0, le=1)] = 5e-4
    augment: Literal["none", "shift", "shift-flip"] = Field(
        "none", description="random shifts by up to an eighth of the image, and mirror images"
    )


class Student(Frozen):
    """A subset of the teacher (`keep`) or a model of its own (`source`)."""

    keep: Share | None = Field(None, description="share of the teacher's channels or blocks, inheriting its weights")
    by: Literal["channels", "blocks"] = Field("channels", description="what `keep` counts")
    source: str | None = Field(None, description='"module:function" that builds the student')
    args: dict[str, JsonValue] = Field(default_factory=dict, description="arguments of that function")
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9 ._-]*$", max_length=60)] | None = Field(
        None, description="how the report calls it: letters, digits, spaces, - _ and ."
    )

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if (self.keep is None) == (self.source is None):
            raise ValueError("a student has either keep or source")
        if self.title in ("teacher", "float teacher"):
            raise ValueError(f"a student cannot be called {self.title!r}: the report calls the teacher so")
        return self

    @property
    def title(self) -> str:
        """How the report calls this student."""
        if self.name:
            return self.name
        if self.source:
            return self.source.rpartition(":")[2]
        return f"keep {self.keep:g}" + (" of blocks" if self.by == "blocks" else "")


class DistillConfig(TrainConfig):
    """Teacher to student. Without `students` it trains what comes in: recovery after any stage."""

    students: tuple[Student, ...] = Field((), description="one branch each; empty: the incoming network learns on")
    loss: Literal["kd", "dkd", "dist"] = Field("kd", description="Hinton 2015, DKD (CVPR 2022), DIST (NeurIPS 2022)")
    temperature: Annotated[float, Field(gt=0, le=100)] = 4.0
    soft_weight: Weight = Field(0.9, description="weight of the teacher's soft targets")
    label_weight: Weight = Field(0.1, description="weight of the true labels")
    features: dict[str, Weight] = Field(
        default_factory=dict, description="module name pattern -> weight: match the teacher's features there"
    )
    attention: dict[str, Weight] = Field(
        default_factory=dict, description="module name pattern -> weight: match the teacher's attention maps there"
    )
    together: bool = Field(
        False, description="all branches learn at once and share their weights, each smaller one from the largest"
    )

    @model_validator(mode="after")
    def _something_to_learn_from(self) -> Self:
        if not any((self.soft_weight, self.label_weight, *self.features.values(), *self.attention.values())):
            raise ValueError("there is nothing to learn from: soft_weight, label_weight and all others are 0")
        return self


class PruneConfig(Frozen):
    """Structured pruning: `to: budget` lets the target's limits decide, `keep` and `speedup` are ratios."""

    to: Literal["budget"] | None = Field(
        None, description="blocks and channels leave until the target's limits on latency, size, memory and energy hold"
    )
    aim: Annotated[float, Field(gt=0, le=1)] = Field(
        0.85, description="share of each limit to spend; the rest is for the noise of the machine"
    )
    trials: Annotated[int, Field(ge=1, le=20)] = Field(
        3,
        description="structures to train at most: each after the first corrects what the last one missed or left over",
    )
    minutes: Annotated[float, Field(gt=0, le=100_000)] = Field(
        240, description="after which no further trial begins, counted over the steps of all trials"
    )
    keep: Share | None = Field(None, description="share of channels that stay")
    speedup: Annotated[float, Field(ge=1, le=100)] | None = Field(
        None, description="how many times fewer multiply-accumulates (MACs); not milliseconds"
    )
    importance: Literal["l2", "taylor"] | None = Field(None, description="default: l2; to: budget takes taylor alone")
    steps: Annotated[int, Field(ge=1, le=100)] | None = Field(
        None, description="rounds, importance is taken anew in each; default: 1, or 3 to a budget"
    )
    exclude: tuple[str, ...] = Field((), description="module name patterns that stay whole")
    samples: Annotated[int, Field(ge=1)] = Field(256, description="training examples that importance is taken on")

    @model_validator(mode="after")
    def _one_goal(self) -> Self:
        if [self.to, self.keep, self.speedup].count(None) != 2:
            raise ValueError("one of to, keep and speedup must be given")
        if self.to and self.importance == "l2":
            raise ValueError("to: budget weighs channels against blocks by the loss they cost: leave importance out")
        return self


class ExportConfig(Frozen):
    """torch to one self-contained ONNX file, proven equal on real inputs."""

    opset: Annotated[int, Field(ge=18, le=30)] | None = Field(None, description="default: 20, or the target's ceiling")
    tolerance: Annotated[float, Field(gt=0, le=1)] = Field(
        1e-4, description="largest difference allowed, as a share of the largest output"
    )
    samples: Annotated[int, Field(ge=1)] = Field(64, description="validation examples compared")


class CostsConfig(Frozen):
    """In what form structures are measured: as the recipe's stages will ship them."""

    int8: bool = False
    pays: bool = True  # float ships where int8 is slower
    float_nodes: tuple[str, ...] = ()  # patterns of nodes that stay float in an int8 graph
    exclude: tuple[str, ...] = ()  # patterns of modules that stay whole
    opset: int | None = None


class CascadeConfig(Frozen):
    """Two branches in one graph: the small one answers where it is sure, the large one elsewhere."""

    small: str | None = Field(None, description="name of a branch; default: of two branches the smaller file")
    large: str | None = Field(None, description="name of a branch; default: of two branches the larger file")
    drop_points: Annotated[float, Field(ge=0, le=100)] = Field(
        0.0, description="percentage points of accuracy that may be lost against the large one on validation"
    )


class QatConfig(TrainConfig):
    """Training on the int8 placement, with the teacher's soft targets."""

    epochs: Annotated[int, Field(ge=1, le=10_000)] = 3
    learning_rate: Annotated[float, Field(gt=0, le=10)] = 0.005
    temperature: Annotated[float, Field(ge=1, le=100)] = 4.0
    soft_weight: Annotated[float, Field(ge=0, le=1)] = Field(0.7, description="the rest goes to the labels")


class QuantizeConfig(Frozen):
    """Static int8 quantization of the exported graph. Signs and ranges come from the target."""

    engine: Literal["auto", "onnxruntime", "neural_compressor"] = Field(
        "auto",
        description="who decides; auto: a ladder of both engines, corrections, float fallback and training, until the "
        "accuracy limit holds",
    )
    minutes: Annotated[float, Field(gt=0, le=10_000)] = Field(20, description="that the ladder may take")
    qat: QatConfig | None = Field(QatConfig(), description="training as the ladder's last rung; null: none")
    pays: bool = Field(True, description="operators that are not faster in int8 on the target stay float")
    memory_mb: Annotated[float, Field(ge=32, le=1_000_000)] = Field(1024, description="that calibration may take")
    calibration: Literal["minmax", "percentile", "entropy"] = "minmax"
    percentile: Annotated[float, Field(gt=50, le=100)] = Field(99.99, description="for calibration: percentile")
    samples: Annotated[int, Field(ge=1)] = Field(256, description="training examples that calibrate")
    batch_size: Annotated[int, Field(ge=1)] = Field(32, description="of calibration; bounds its memory")
    exclude: tuple[str, ...] = Field((), description="ONNX node name patterns that stay float")

    @model_validator(mode="after")
    def _known_to_the_engine(self) -> Self:
        if self.engine == "neural_compressor" and self.calibration == "percentile":
            raise ValueError("neural_compressor has no percentile calibration: choose minmax or entropy")
        return self
