import hashlib
from dataclasses import dataclass, replace

import pytest
import torch

from stages import graph
from stages.base import Signature, Surgery
from stages.export import export
from stages.network import build
from stages.quantize import quantize
from stages.settings import ExportConfig, QuantizeConfig
from stages.structure.anatomy import Anatomy, Block, Shape, Strand
from stages.structure.costs import StructureBench, levels
from stages.structure.mockup import Precision, mockup
from stages.structure.table import Costs
from stages.testing import context, tiny_residual, tiny_splits, tiny_teacher
from stages.vendors.torch_pruning import Group, groups
from stages.zoo import resnet
from targets.budget import Budget
from targets.errors import StageError
from targets.target import Int8Rules, Target, load
from targets.testing import FakeDevice

DATA = tiny_splits()
SIGNATURE = Signature((1, 8, 8), 4)
TARGET = Target(name="fake", energy={"power_w": 2.0})
BOTH_WAYS = [0.8] * 10 + [1.3] * 10  # as fast as the other, as far as can be told


def strands(module, inputs, kinds):
    """Those of these names, each with its kind."""
    return tuple(Strand(g, kinds[g.name]) for g in groups(module, inputs) if g.name in kinds)


@dataclass
class Counting(FakeDevice):
    """Counts what was measured; killed instead of measuring for the (`last` + 1)th time."""

    opened: int = 0
    last: int = 1000

    def open(self, say=lambda text: None):
        if self.opened == self.last:
            raise KeyboardInterrupt
        self.opened += 1
        return super().open(say)


@pytest.fixture(scope="module", autouse=True)
def _exported_once():
    """An export takes seconds and gives the same graph each time: tests that measure share them."""
    known, patch = {}, pytest.MonkeyPatch()

    def shared(module, signature, surgery, examples, opset):
        key = id(module), surgery, opset
        if key not in known:
            known[key] = module, mockup(module, signature, surgery, examples, opset)
        return known[key][1]

    patch.setattr("stages.structure.costs.mockup", shared)
    yield
    patch.undo()


@pytest.fixture(scope="module")
def residual():
    module = tiny_residual().eval()
    inputs = torch.from_numpy(DATA.train.inputs(slice(0, 2)))
    blocks = tuple(Block(f"rest.{i}", Surgery(f"rest.{i}", "identity"), "plain") for i in range(4))
    return module, Anatomy(blocks, strands(module, inputs, {"one": "inner", "two": "stream"}))


@pytest.fixture
def bench(residual, tmp_path):
    module, anatomy = residual
    times = {"whole": 4.0, "float": 8.0, "smallest": 1.0, "smallest 2": 1.1, "without plain": 2.0, "inner at 2": 4.0}
    times |= {"stream at 2": 3.2, "stream at 4": 3.6, "stream at 6": 5.0}
    steady = {name: [ms] * 200 for name, ms in times.items()}
    steady["inner at 2"] = [4 * ms for ms in BOTH_WAYS for _ in range(10)]
    told = []
    made = StructureBench(
        *(module, SIGNATURE, anatomy, DATA, TARGET, Precision(int8=True), tmp_path),
        say=told.append,
        device=Counting(steady),
    )
    made.told = told
    return made


def test_levels_are_rounded_up_to_what_the_target_and_the_strand_want():
    def of(channels, unit=1):
        return Strand(Group("a", (0.0,) * channels, ()), "kind", unit)

    assert levels(of(16)) == (4, 8, 12)
    assert levels(of(6)) == (2, 3, 5)
    assert levels(of(24), 8) == (8, 16)
    assert levels(of(64, unit=16), 8) == (16, 32, 48)
    assert levels(of(8), 16) == levels(of(1)) == ()


def test_savings_are_ratios_and_those_within_noise_are_none(bench):
    costs = bench.costs()
    assert costs.whole["latency_p50_ms"] == 4
    assert costs.whole["speedup_p50"] == pytest.approx(2)
    assert costs.smallest["latency_p50_ms"] == 1
    assert costs.smallest["size_mb"] < costs.whole["size_mb"]
    assert costs.blocks["plain"]["latency_p50_ms"] == pytest.approx((4 - 2) / 4)
    assert costs.blocks["plain"]["size_mb"] > 0
    stream, inner = costs.strands["stream"], costs.strands["inner"]
    assert [stream[n]["latency_p50_ms"] for n in (2, 4, 6)] == pytest.approx([0.8, 0.4, -1.0])
    assert stream[2]["size_mb"] > stream[4]["size_mb"] > stream[6]["size_mb"] > 0
    assert [inner[n]["latency_p50_ms"] for n in (2, 4, 6)] == [0, 0, 0]
    assert inner[4]["size_mb"] == pytest.approx(inner[2]["size_mb"] * 2 / 3)
    raced = {name for job in bench.device.jobs for name in job["models"]}
    assert raced == {*bench.device.latency_ms}  # the other widths of "inner" were not measured


def test_a_kill_loses_no_race(bench):
    first = replace(bench, device=Counting(bench.device.latency_ms, last=2))
    with pytest.raises(KeyboardInterrupt):
        first.costs()
    second = replace(bench, device=Counting(bench.device.latency_ms))
    costs = second.costs()
    assert (first.device.opened, second.device.opened) == (2, 2)
    again = replace(bench, device=Counting(last=0))
    assert again.costs() == costs
    shape = Shape(frozenset({"rest.0"}))
    timed = Counting({"whole": [4.0] * 200, "structure": [3.0] * 200})
    assert replace(bench, device=timed).check(shape, costs)["latency_p50_ms"] == pytest.approx(3)
    assert replace(bench, device=Counting(last=0)).check(shape, costs)["latency_p50_ms"] == pytest.approx(3)
    assert replace(bench, device=Counting(last=0)).check(Shape(), costs)["latency_p50_ms"] == 4
    other = replace(bench, target=TARGET.model_copy(update={"machine": "x86_64"}), device=Counting())
    other.check(shape, costs)
    assert other.device.opened == 2  # other hardware is measured anew, and what may not pay in int8 looked for
    assert not list(bench.scratch.rglob(".*"))


def test_a_spoiled_record_is_measured_again(bench):
    costs = bench.costs()
    files = list((bench.scratch / "measured").iterdir())
    files[0].write_text("{", encoding="utf-8")
    again = replace(bench, device=Counting(bench.device.latency_ms))
    assert again.costs() == costs
    assert again.device.opened == 1


def test_where_int8_is_slower_the_table_is_that_of_the_float_network(bench):
    slower = {**bench.device.latency_ms, "float": [2.0] * 200}
    made = replace(bench, device=Counting(slower))
    costs = made.costs()
    assert made.precision == Precision(int8=False)
    assert costs.whole["speedup_p50"] == 1
    assert any("int8 does not pay on the whole network (0.50 times the float's speed)" in text for text in bench.told)
    kept = replace(bench, device=Counting(slower), precision=Precision(int8=True, pays=False))
    assert kept.costs().whole["speedup_p50"] == pytest.approx(0.5)
    assert kept.precision.int8


def test_other_hardware_gives_estimates_and_says_so(bench):
    target = TARGET.model_copy(update={"machine": "aarch64"})
    replace(bench, target=target).costs()
    assert bench.told[0] == "fake is aarch64 hardware, and this is fake: what structures cost is an estimate"


def test_a_smallest_structure_that_cannot_be_exported_stops_it(bench, residual):
    _, anatomy = residual
    wrong = Block("stem", Surgery("stem", "identity"), "wrong")
    broken = replace(bench, anatomy=Anatomy((*anatomy.blocks, wrong), ()))
    with pytest.raises(StageError, match=r"the smallest structure of the network cannot be exported: .*torch\.export"):
        broken.costs()


def test_a_limited_percentile_gets_samples_enough(bench):
    target = TARGET.model_copy(update={"budget": Budget(latency_p99_ms=5), "meter": load("local").meter})
    target = target.model_copy(update={"meter": target.meter.model_copy(update={"samples": 30})})
    replace(bench, target=target).costs()
    assert bench.device.jobs[0]["meter"]["samples"] == 299


@pytest.mark.slow
def test_a_mockup_of_fresh_weights_is_the_artifact_of_trained_ones(tmp_path):
    teacher = tiny_teacher(tmp_path / "teacher", DATA, "stages.testing:tiny_residual", epochs=1)
    exported = export(teacher, ExportConfig(), context(tmp_path / "export", DATA))
    config = QuantizeConfig(engine="onnxruntime", samples=32, pays=False, exclude=("head",))
    shipped = graph.read(quantize(exported, config, context(tmp_path / "int8", DATA)).onnx)
    x = DATA.train.inputs(slice(0, 4))
    fresh = tiny_residual().eval()
    made = mockup(fresh, SIGNATURE, (), x, 20, Int8Rules(), ("head", "a layer that was cut away"))
    assert [node.op_type for node in made.graph.node] == [node.op_type for node in shipped.graph.node]
    assert made.ByteSize() == pytest.approx(shipped.ByteSize(), rel=0.01)
    floats = mockup(build(teacher), SIGNATURE, (), x, 20)
    assert [node.op_type for node in floats.graph.node] == [n.op_type for n in graph.read(exported.onnx).graph.node]
    once, twice = (mockup(fresh, SIGNATURE, (), x, 20, Int8Rules()).SerializeToString(deterministic=True) for _ in "ab")
    assert hashlib.sha256(once).digest() == hashlib.sha256(twice).digest()


def test_weights_that_make_infinities_still_give_an_int8_graph():
    module = tiny_residual().eval()
    with torch.no_grad():
        module.stem.weight.fill_(1e38)  # sums of a few are infinite
    made = mockup(module, SIGNATURE, (), DATA.train.inputs(slice(0, 2)), 20, Int8Rules())
    assert graph.tally(made).int8 >= 7


@pytest.mark.slow
def test_a_network_without_blocks_is_faster_on_this_machine(residual, tmp_path):
    module, anatomy = residual
    target = load("local")
    bench = StructureBench(module, SIGNATURE, anatomy, DATA, target, Precision(int8=True), tmp_path)
    shape = Shape(frozenset(block.name for block in anatomy.blocks))
    assert bench.check(shape, Costs({"latency_p50_ms": 10.0}, {}, {}, {}))["latency_p50_ms"] < 9


@pytest.mark.slow
def test_the_table_predicts_a_structure_that_was_not_measured(tmp_path):
    module, data = resnet(20).eval(), tiny_splits(32, 3, 10)
    names = [f"stages.{stage}.{i}" for stage in range(3) for i in (1, 2)]
    blocks = tuple(Block(name, Surgery(name, "identity"), name[:8]) for name in names)
    bench = StructureBench(
        *(module, Signature((3, 32, 32), 10), Anatomy(blocks, ()), data, load("local"), Precision(int8=True), tmp_path)
    )
    costs = bench.costs()
    shape = Shape(frozenset(names[::2]))
    predicted = costs.predict(bench.anatomy, shape)["latency_p50_ms"]
    assert predicted == pytest.approx(bench.check(shape, costs)["latency_p50_ms"], rel=0.1)
