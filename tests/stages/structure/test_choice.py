"""The choice on tables made up: random ones, and ones whose best structure is known."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.base import Surgery
from stages.structure.anatomy import Anatomy, Block, Shape, Strand
from stages.structure.choice import choose, excess, smallest, unreachable
from stages.structure.table import Costs
from stages.structure.worth import Worth
from stages.vendors.torch_pruning import Group, Member

WIDTH = 8
LEVELS = (2, 4, 6)
ONE = {"latency_p50_ms": 1.0, "size_mb": 1.0}


def block(name, kind):
    return Block(name, Surgery(name, "identity"), kind)


def strand(layer, reader, kind):
    one = tuple((i,) for i in range(WIDTH))
    members = (Member(layer, "out", one), Member(reader, "in", one))
    return Strand(Group(layer, (0.0,) * WIDTH, members), kind)


def saving(ms, mb):
    return {"latency_p50_ms": ms, "size_mb": mb}


def anatomy(kinds):
    """Blocks b0, b1, ... with a strand inside of each, and one strand outside of all blocks."""
    blocks = tuple(block(f"b{i}", kind) for i, kind in enumerate(kinds))
    inner = tuple(strand(f"b{i}.one", f"b{i}.two", f"in {kind}") for i, kind in enumerate(kinds))
    return Anatomy(blocks, (*inner, strand("stem", "head", "stream")))


shares = st.floats(0.0, 0.1)


@st.composite
def cases(draw):
    """(anatomy, costs, worth, limits): savings of any size, some below zero; three limits, tight or loose."""
    kinds = draw(st.lists(st.sampled_from("uvw"), min_size=1, max_size=5))
    found = anatomy(kinds)
    levels = st.fixed_dictionaries({n: st.builds(saving, st.floats(-0.01, 0.06), shares) for n in LEVELS})
    costs = Costs(
        {"latency_p50_ms": 1.0, "latency_p95_ms": 1.3, "size_mb": 1.0, "throughput_per_s": 900.0},
        {"latency_p50_ms": 0.2, "latency_p95_ms": 0.3, "size_mb": 0.1, "throughput_per_s": 4000.0},
        {kind: saving(draw(shares), draw(shares)) for kind in "uvw"},
        {s.kind: draw(levels) for s in found.strands},
    )
    value = st.floats(0, 10)
    worth = Worth(
        {b.name: draw(value) for b in found.blocks},
        {s.name: tuple(draw(st.lists(value, min_size=WIDTH, max_size=WIDTH))) for s in found.strands},
    )
    limits = {
        "latency_p95_ms": draw(st.floats(0.5, 1.4)),
        "size_mb": draw(st.floats(0.5, 1.1)),
        "throughput_per_s": draw(st.floats(800, 1500)),
    }
    return found, costs, worth, limits


def over(found, costs, shape, limits):
    return sum(excess(costs.predict(found, shape), limits).values())


def undone(found, shape):
    """Every structure with one unit more."""
    for name in shape.gone:
        yield Shape(shape.gone - {name}, shape.widths)
    for name, width in shape.widths.items():
        for level in (*LEVELS, WIDTH):
            if level > width:
                rest = {other: n for other, n in shape.widths.items() if other != name}
                yield Shape(shape.gone, rest if level == WIDTH else {**rest, name: level})


@settings(deadline=None, max_examples=80)
@given(cases(), st.integers(1, 4))
def test_what_is_chosen_fits_if_anything_known_does_and_nothing_can_be_given_back(case, rounds):
    found, costs, worth, limits = case
    shape = choose(found, costs, limits, lambda _: worth, rounds)
    assert choose(found, costs, limits, lambda _: worth, rounds) == shape
    left, least = (
        over(found, costs, shape, limits),
        min(over(found, costs, end, limits) for end in smallest(found, costs)),
    )
    assert left <= 1e-9 or left <= least
    if left <= 1e-9:
        assert all(over(found, costs, more, limits) > 1e-9 for more in undone(found, shape))
    assert not any(name.startswith(f"{gone}.") for name in shape.widths for gone in shape.gone)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(0, 1000), min_size=1, max_size=9, unique=True), st.floats(0.05, 1.1))
def test_of_equal_blocks_the_fewest_and_least_worthy_leave(values, limit):
    """Here greedy is exact."""
    blocks = tuple(block(f"b{i}", "u") for i in range(len(values)))
    costs = Costs(ONE, ONE, {"u": saving(0.1, 0.0)}, {})
    worth = Worth({b.name: float(v) for b, v in zip(blocks, values, strict=True)}, {})
    shape = choose(Anatomy(blocks, ()), costs, {"latency_p50_ms": limit}, lambda _: worth, 3)
    count = next((k for k in range(len(values)) if 1 - 0.1 * k <= limit * (1 + 1e-9)), len(values))
    assert shape.gone == {f"b{values.index(v)}" for v in sorted(values)[:count]}


def test_worth_is_taken_anew_and_decides_what_comes_back():
    """b1 looks cheap until b0 is gone. The last appraisal gives back what turned out to be dear."""
    found = anatomy("uuu")
    costs = Costs(ONE, ONE, {"u": saving(0.2, 0)}, {})
    channels = {s.name: (1.0,) * WIDTH for s in found.strands}
    asked = []

    def worth_of(shape):
        asked.append(shape)
        b1 = 9.0 if "b0" in shape.gone else 1.5
        return Worth({"b0": 1.0, "b1": b1, "b2": 2.0}, channels)

    shape = choose(found, costs, {"latency_p50_ms": 0.6}, worth_of, rounds=2)
    assert shape.gone == {"b0", "b2"}
    assert asked == [Shape(), Shape(frozenset({"b0"})), shape]
    # From there, a tighter limit takes more and a looser one gives back.
    assert choose(found, costs, {"latency_p50_ms": 0.4}, worth_of, 1, shape).gone == {"b0", "b1", "b2"}
    assert choose(found, costs, {"latency_p50_ms": 0.8}, worth_of, 1, shape).gone == {"b0"}


def test_a_unit_that_saves_nothing_of_what_is_exceeded_stays():
    found = anatomy("uv")
    costs = Costs(
        ONE,
        ONE,
        {"u": saving(0.0, 0.5), "v": saving(0.3, 0.0)},
        {"in u": {4: saving(0.0, 0.2)}, "stream": {4: saving(0.0, 0.2), 2: saving(0.05, 0.3)}},
    )
    worth = Worth({"b0": 0.0, "b1": 5.0}, {s.name: (0.1,) * WIDTH for s in found.strands})
    assert choose(found, costs, {"latency_p50_ms": 0.7}, lambda _: worth) == Shape(frozenset({"b1"}))
    # Half of the stream saves nothing, a quarter does: levels are not taken one after the other.
    assert choose(found, costs, {"latency_p50_ms": 0.95}, lambda _: worth) == Shape(widths={"stem": 2})
    assert choose(found, costs, {"latency_p50_ms": 1.0}, lambda _: worth) == Shape()


def test_heads_leave_whole_the_least_worthy_first():
    head = strand("q", "o", "heads")
    head = Strand(head.group, head.kind, unit=4)
    worth = Worth({}, {"q": (0.0, 0.0, 0.0, 9.0, 1.0, 1.0, 1.0, 1.0)})
    assert worth.worst(head) == (4, 5, 6, 7, 0, 1, 2, 3)


def test_unreachable_limits_come_with_the_closest_figure():
    whole = {"latency_p50_ms": 1.0, "size_mb": 1.0, "throughput_per_s": 500.0, "peak_memory_mb": 20.0}
    least = {"latency_p50_ms": 0.2, "size_mb": 0.4, "throughput_per_s": 900.0, "peak_memory_mb": 21.0}
    costs = Costs(whole, least, {}, {})
    limits = {"latency_p50_ms": 0.3, "size_mb": 0.3, "throughput_per_s": 1000.0, "peak_memory_mb": 19.0}
    found = unreachable(costs, limits | {"energy_mj": 1.0})
    assert found == {"size_mb": 0.4, "throughput_per_s": 900.0, "peak_memory_mb": 20.0}
    assert excess(whole, {"throughput_per_s": 1000.0, "size_mb": 2.0}) == pytest.approx(
        {"throughput_per_s": 1.0, "size_mb": 0.0}
    )
