"""What units are worth against what is measured by taking them out."""

from copy import deepcopy

import pytest
import torch
from nets import build as net_of
from nets import holder
from torch import nn
from torch.nn import functional as F

from stages.network import build
from stages.structure.anatomy import Anatomy, Shape, dissect
from stages.structure.surgery import operate
from stages.structure.trial import examples, fault
from stages.structure.worth import worth
from stages.testing import tiny_splits, tiny_teacher

DATA = tiny_splits(other=8)
ARGS = {"depth": 14, "classes": 4, "in_channels": 1, "width": 8}


@pytest.fixture(scope="module")
def taught(tmp_path_factory):
    """(a network that has learned its examples, what may go from it)."""
    folder = tmp_path_factory.mktemp("teacher")
    module = build(tiny_teacher(folder, DATA, "stages.zoo:resnet", epochs=4, **ARGS))
    return module, dissect(module, examples(DATA))


def batches(labels=True):
    for x, y in DATA.train.batches(40):
        yield torch.from_numpy(x), torch.from_numpy(y) if labels else None


def loss(module, anatomy, shape, worst=None, soft=None):
    net = operate(deepcopy(module), anatomy.surgery(shape, worst))
    with torch.no_grad():
        x, y = torch.cat([x for x, _ in batches()]), torch.cat([y for _, y in batches()])
        return F.cross_entropy(net(x), y if soft is None else soft(x).softmax(1)).item()


def test_blocks_are_worth_what_the_loss_grows_without_them(taught):
    module, anatomy = taught
    found = worth(module, anatomy, batches)
    before = loss(module, anatomy, Shape())
    assert anatomy.blocks
    for block in anatomy.blocks:
        grown = loss(module, anatomy, Shape(frozenset({block.name}))) - before
        assert found.blocks[block.name] == pytest.approx(max(0, grown), abs=1e-5)
    assert max(found.blocks.values()) > 0.05


def test_without_labels_the_networks_own_answers_are_to_be_matched(taught):
    module, anatomy = taught
    found = worth(module, anatomy, lambda: batches(labels=False))
    before = loss(module, anatomy, Shape(), soft=module)
    for block in anatomy.blocks:
        grown = loss(module, anatomy, Shape(frozenset({block.name})), soft=module) - before
        assert found.blocks[block.name] == pytest.approx(grown, abs=1e-5)


def test_half_of_a_strand_is_worth_what_was_measured_and_a_quarter_about_that(taught):
    module, anatomy = taught
    found, before = worth(module, anatomy, batches), loss(module, anatomy, Shape())
    worst = {strand.name: found.worst(strand) for strand in anatomy.strands}
    told = measured = 0.0
    for strand in anatomy.strands:
        for share in (2, 4):
            leave = strand.channels // share
            predicted = sum(found.channels[strand.name][i] for i in worst[strand.name][:leave])
            grown = loss(module, anatomy, Shape(widths={strand.name: strand.channels - leave}), worst) - before
            if share == 2:
                assert predicted == pytest.approx(max(0, grown), abs=1e-5)
            else:
                told, measured = told + predicted, measured + grown
    assert 0.3 * measured < told < 3 * measured


def test_channels_leave_in_an_order_that_costs_less_than_their_sizes_tell(taught):
    """The mean loss with half of every strand gone: by worth, by squared weights, and the other way round."""
    module, anatomy = taught
    found = worth(module, anatomy, batches)
    orders = {
        "worth": {s.name: found.worst(s) for s in anatomy.strands},
        "weights": {s.name: tuple(torch.tensor(s.group.scores).argsort().tolist()) for s in anatomy.strands},
        "best first": {s.name: found.worst(s)[::-1] for s in anatomy.strands},
    }
    grown = {
        name: sum(loss(module, anatomy, Shape(widths={s.name: s.channels // 2}), order) for s in anatomy.strands)
        for name, order in orders.items()
    }
    assert grown["worth"] < grown["weights"] < grown["best first"]


def test_what_is_gone_is_worth_what_it_would_give_back(taught):
    module, anatomy = taught
    first = worth(module, anatomy, batches)
    worst = {strand.name: first.worst(strand) for strand in anatomy.strands}
    block = min(anatomy.blocks, key=lambda block: first.blocks[block.name])
    strand = next(strand for strand in anatomy.strands if holder(anatomy, strand) not in (None, block))
    shape = Shape(frozenset({block.name}), {strand.name: strand.channels // 4})
    found, now = worth(module, anatomy, batches, shape, worst), loss(module, anatomy, shape, worst)
    back = loss(module, anatomy, Shape(frozenset(), shape.widths), worst)
    assert found.blocks[block.name] == pytest.approx(max(0, now - back), abs=1e-5)
    gone = strand.leaving(shape, worst)
    regained = sum(found.channels[strand.name][i] for i in gone)
    assert regained == pytest.approx(now - loss(module, anatomy, Shape(shape.gone), worst), abs=1e-5)
    inside = [s for s in anatomy.strands if holder(anatomy, s) == block]
    assert inside
    assert all(not any(found.channels[s.name]) for s in inside)


@pytest.mark.parametrize("name", ["padded", "dense", "vit", "bert"])
def test_any_network_is_appraised_the_same_twice(name):
    module, inputs = net_of(name)
    anatomy = dissect(module, inputs)
    state = {key: value.clone() for key, value in module.state_dict().items()}
    found = worth(module, anatomy, lambda: [(inputs, None)])
    assert found == worth(module, anatomy, lambda: [(inputs, None)])
    assert all(torch.equal(value, state[key]) for key, value in module.state_dict().items())
    with torch.no_grad():
        soft = module(inputs).softmax(1)
        before = F.cross_entropy(module(inputs), soft).item()
        for block in anatomy.blocks:
            left = operate(deepcopy(module), [block.surgery])
            grown = F.cross_entropy(left(inputs), soft).item() - before
            assert found.blocks[block.name] == pytest.approx(max(0, grown), abs=1e-5)
    for strand in anatomy.strands:
        assert min(found.channels[strand.name]) >= 0
        assert sorted(found.worst(strand)) == list(range(strand.channels))
    assert sum(map(sum, found.channels.values())) > 0


def test_a_network_without_anything_that_may_go():
    found = worth(nn.Linear(3, 2).eval(), Anatomy((), ()), lambda: [(torch.ones(2, 3), torch.tensor([0, 1]))])
    assert not found.blocks
    assert not found.channels


@pytest.mark.parametrize("name", ["resnet", "dense", "plain"])
def test_any_block_may_leave_beside_any_narrow_strand(name):
    """A layer that hands its input on joins channels before it to those behind: strands that end there stay whole."""
    module, inputs = net_of(name)
    anatomy = dissect(module, inputs)
    joined = 0
    for block in anatomy.blocks:
        for strand in anatomy.strands:
            shape = Shape(frozenset({block.name}), {strand.name: strand.channels // 2})
            assert fault(module, anatomy.surgery(shape), inputs) == ""
            joined += anatomy.held(strand, shape.gone) and holder(anatomy, strand) is None
    assert joined
    everything = Shape(frozenset(b.name for b in anatomy.blocks), {s.name: s.channels // 2 for s in anatomy.strands})
    assert fault(module, anatomy.surgery(everything), inputs) == ""
