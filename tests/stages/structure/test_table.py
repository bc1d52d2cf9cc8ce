import json
from dataclasses import replace

import pytest

from stages.base import Surgery
from stages.structure.anatomy import Anatomy, Block, Shape, Strand
from stages.structure.table import Costs
from stages.vendors.torch_pruning import Group, Member


def strand(name, channels, **sides):
    """A strand through layers: `conv1="out"`; "b.conv" is written b_conv."""
    at = tuple((i,) for i in range(channels))
    members = tuple(Member(layer.replace("_", "."), side, at) for layer, side in sides.items())
    return Strand(Group(name, (0.0,) * channels, members), name)


ANATOMY = Anatomy(
    (Block("b", Surgery("b", "identity"), "block"),),
    (
        strand("stream", 16, stem="out", b_one="in", b_two="out", head="in"),
        strand("inner", 8, b_one="out", b_norm="norm", b_two="in"),
    ),
)
COSTS = Costs(
    whole={"latency_p50_ms": 8.0, "latency_p95_ms": 10.0, "size_mb": 4.0, "peak_memory_mb": 60.0, "energy_mj": 30.0}
    | {"throughput_per_s": 100.0, "speedup_p50": 2.0},
    smallest={"latency_p50_ms": 2.0, "size_mb": 1.0, "peak_memory_mb": 30.0, "energy_mj": 6.0},
    blocks={"block": {"latency_p50_ms": 4.0, "size_mb": 2.0}},
    strands={
        "stream": {4: {"latency_p50_ms": 4.0, "size_mb": 2.0}, 8: {"latency_p50_ms": 2.0, "size_mb": 1.0}},
        "inner": {2: {"latency_p50_ms": 3.0, "size_mb": 1.5}, 4: {"latency_p50_ms": -1.0, "size_mb": 1.0}},
    },
)


def _corrected(costs, shape, *latencies):
    for ms in latencies:
        costs = costs.corrected(ANATOMY, shape, {"latency_p50_ms": ms})
    return costs


def test_a_whole_network_costs_what_was_measured():
    assert COSTS.predict(ANATOMY, Shape()) == COSTS.whole


def test_what_the_smallest_structure_lacks_is_not_predicted():
    lacking = replace(COSTS, smallest={"latency_p50_ms": 2.0, "size_mb": 1.0, "peak_memory_mb": 30.0})
    assert "energy_mj" not in lacking.predict(ANATOMY, Shape(frozenset({"b"})))


def test_the_other_metrics_follow_latency_and_size():
    found = COSTS.predict(ANATOMY, Shape(frozenset({"b"})))
    assert found["latency_p50_ms"] == 4
    assert found["latency_p95_ms"] == 5
    assert found["throughput_per_s"] == 200
    assert found["speedup_p50"] == 4
    assert found["size_mb"] == 2
    assert found["peak_memory_mb"] == pytest.approx(30 + 30 / 3)  # as far from the smallest as size is
    assert found["energy_mj"] == pytest.approx(6 + 24 / 3)  # as latency is


@pytest.mark.parametrize(
    ("shape", "ms"),
    [
        (Shape(widths={"stream": 8}), 8 - 2),
        (Shape(widths={"inner": 4}), 8 + 1),  # narrower may cost more
        (Shape(frozenset({"b"}), {"inner": 2}), 8 - 4),  # it left with the block
        (Shape(frozenset({"b"}), {"stream": 8}), 8 - 4 - 2 * 2 / 4),  # two of its four layers are left
        (Shape(widths={"stream": 4, "inner": 2}), 8 - 4 - 3 / 4),  # both of its layers have a quarter of the other side
    ],
)
def test_units_that_share_layers_do_not_save_twice(shape, ms):
    assert COSTS.predict(ANATOMY, shape)["latency_p50_ms"] == pytest.approx(ms)


def test_a_measured_structure_corrects_the_latencies_and_nothing_else():
    shape = Shape(frozenset({"b"}))
    found = (
        COSTS.corrected(ANATOMY, shape, {"latency_p50_ms": 5.0})
        .corrected(ANATOMY, shape, {"latency_p50_ms": 6.0})
        .predict(ANATOMY, shape)
    )
    assert found["latency_p50_ms"] == pytest.approx(6)
    assert found["latency_p95_ms"] == pytest.approx(7.5)
    assert found["size_mb"] == 2


def test_a_table_survives_json():
    table = _corrected(COSTS, Shape(frozenset({"b"})), 5.0)
    assert Costs.from_json(json.loads(json.dumps(table.to_json()))) == table
    assert table.widths("stream") == (8, 4)
    assert table.widths("unknown") == ()
