import os

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from stages.base import Candidate, Origin, Signature, Surgery
from stages.network import (
    build,
    construct,
    load_weights,
    macs,
    matching,
    parameters,
    read_weights,
    resolve,
    save_weights,
    seeded,
)
from stages.structure.surgery import operate
from targets.errors import InputError, StageError


def tiny():
    return construct(Origin("stages.testing:tiny_cnn"), seed=5)


def candidate(weights, surgery=()):
    return Candidate("c", Origin("stages.testing:tiny_cnn"), Signature((1, 8, 8), 4), tuple(surgery), weights=weights)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("stages.zoo", "must be 'module:function'"),
        ("stages.zo:resnet", r"no module 'stages.zo'[^$]*did you mean 'stages.zoo'"),
        ("stages.zoo:resnt", r"stages.zoo has no function 'resnt'[^$]*did you mean 'resnet'"),
        ("stages.zoo:__doc__", "holds a str, no function"),
        ("nowhere_at_all.x:y", "no module 'nowhere_at_all'"),
    ],
)
def test_resolve_names_near_misses(source, said):
    with pytest.raises(InputError, match=said):
        resolve(source)


def test_a_users_module_that_fails_on_import_is_named(tmp_path, monkeypatch):
    (tmp_path / "broken_net_a.py").write_text("1 / 0\n")
    (tmp_path / "broken_net_b.py").write_text("import a_library_that_is_missing\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(InputError, match="importing broken_net_a failed: ZeroDivisionError"):
        resolve("broken_net_a:net")
    with pytest.raises(InputError, match="broken_net_b needs 'a_library_that_is_missing'"):
        resolve("broken_net_b:net")


def test_construct_depends_on_the_seed_alone():
    torch.manual_seed(1)
    first = construct(Origin("stages.testing:tiny_cnn"), 3).state_dict()
    torch.manual_seed(2)
    before = torch.get_rng_state()
    second = construct(Origin("stages.testing:tiny_cnn"), 3).state_dict()
    other = construct(Origin("stages.testing:tiny_cnn"), 4).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(first[n], second[n]) for n in first)
    assert not torch.equal(first["0.weight"], other["0.weight"])


@pytest.mark.parametrize(
    ("origin", "error", "said"),
    [
        (Origin("stages.zoo:resnet", {"layers": 3}), InputError, r"refuses its args: .*'layers'[^$]*it takes \(depth"),
        (Origin("stages.zoo:resnet", {"width": "a"}), InputError, r"failed with \{'width': 'a'\}: TypeError"),
        (Origin("stages.zoo:resnet", {"depth": 9}), InputError, "^depth 9 must be"),
        (Origin("stages.testing:tiny_splits"), InputError, r"returned a Splits, which is no torch.nn.Module"),
        (Origin("model.onnx"), StageError, "is an ONNX file"),
    ],
)
def test_construct_says_what_is_wrong(origin, error, said):
    with pytest.raises(error, match=said):
        construct(origin)


def test_build_replays_surgery_and_loads_weights(tmp_path):
    surgery = (
        *(Surgery("0", "out", (1, 3)), Surgery("1", "norm", (1, 3)), Surgery("4", "in", (1, 3))),
        *(Surgery("4", "out", (0,)), Surgery("5", "norm", (0,)), Surgery("9", "in", (0,))),
        Surgery("4", "out", (0,)),  # a second round, numbered after the first
        *(Surgery("5", "norm", (0,)), Surgery("9", "in", (0,)), Surgery("3", "identity")),
    )
    cut = operate(tiny(), surgery)
    assert cut.get_submodule("4").weight.shape == (14, 6, 3, 3)
    assert isinstance(cut.get_submodule("3"), nn.Identity)
    save_weights(cut, tmp_path / "w.safetensors")
    built = build(candidate(tmp_path / "w.safetensors", surgery))
    assert not built.training
    x = torch.randn(3, 1, 8, 8)
    assert torch.equal(built(x), cut.eval()(x))


def test_a_transposed_and_a_depthwise_convolution_can_be_cut():
    net = nn.Sequential(nn.ConvTranspose2d(2, 6, 3), nn.Conv2d(6, 6, 3, groups=6), nn.ConvTranspose2d(6, 2, 1)).eval()
    x = torch.randn(2, 2, 5, 5)
    with torch.no_grad():
        net[2].weight[[1, 4]] = 0
        expected = net(x)
        operate(net, [Surgery("0", "out", (1, 4)), Surgery("1", "out", (1, 4)), Surgery("2", "in", (1, 4))])
        assert net[1].groups == net[1].in_channels == 4
        torch.testing.assert_close(net(x), expected)


@pytest.mark.parametrize(
    ("surgery", "said"),
    [
        (Surgery("nowhere", "out", (0,)), "nowhere is to be cut, and the network has no such module"),
        (Surgery("0", "out", (8,)), "0: cannot remove 1 channels out of 8"),
        (Surgery("0", "out", tuple(range(8))), "cannot remove 8 channels out of 8"),
        (Surgery("0", "out", ()), "cannot remove 0 channels"),
        (Surgery("2", "out", (0,)), "2 is a ReLU and has no 'out' channels"),
        (Surgery("0", "norm", (0,)), "0 is a Conv2d and has no 'norm' channels"),
    ],
)
def test_a_cut_that_does_not_fit_is_an_error(surgery, said):
    with pytest.raises(StageError, match=said):
        operate(tiny(), [surgery])


def test_a_grouped_convolution_cannot_lose_single_channels():
    with pytest.raises(StageError, match="0 is a grouped convolution"):
        operate(nn.Sequential(nn.Conv2d(4, 4, 1, groups=2)), [Surgery("0", "out", (0,))])


def test_a_candidate_without_torch_weights_cannot_be_built():
    with pytest.raises(StageError, match="c has no torch weights"):
        build(candidate(None))


def test_equal_weights_give_equal_bytes(tmp_path):
    net = tiny()
    save_weights(net, tmp_path / "a")
    save_weights(net.to(memory_format=torch.channels_last), tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_tied_weights_survive(tmp_path):
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    net[1].weight = net[0].weight
    save_weights(net, tmp_path / "w.safetensors")
    other = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    other[1].weight = other[0].weight
    load_weights(other, tmp_path / "w.safetensors")
    x = torch.randn(2, 3)
    assert torch.equal(net(x), other(x))
    assert parameters(other) == 9 + 3 + 3


def test_a_plain_state_dict_is_read(tmp_path):
    net = tiny()
    torch.save(net.state_dict(), tmp_path / "w.pt")
    other = construct(Origin("stages.testing:tiny_cnn"), seed=6)
    load_weights(other, tmp_path / "w.pt")
    assert torch.equal(net(torch.ones(1, 1, 8, 8)), other(torch.ones(1, 1, 8, 8)))


class Bomb:
    def __reduce__(self):
        return os.mkdir, ("exploded",)


def test_a_pickle_is_refused_and_never_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"a": torch.zeros(1), "b": Bomb()}, tmp_path / "bomb.pt")
    torch.save(tiny(), tmp_path / "module.pt")
    for name in ("bomb.pt", "module.pt"):
        with pytest.raises(InputError, match=r"refused: it is a pickle[^$]*help: .*save_file"):
            read_weights(tmp_path / name)
    assert not (tmp_path / "exploded").exists()


def test_files_that_are_no_weights_are_named(tmp_path):
    (tmp_path / "w.safetensors").write_bytes(b"nonsense")
    (tmp_path / "w.pt").write_bytes(b"nonsense")
    torch.save({"epoch": 3, "state_dict": tiny().state_dict()}, tmp_path / "nested.pt")
    for name, said in (
        ("w.safetensors", "no readable safetensors file"),
        ("w.pt", r"w\.pt: (is no weights file|refused)"),
        ("nested.pt", r"holds the keys epoch, state_dict, no plain state dict[^$]*model.state_dict\(\)"),
        ("absent.pt", "no such weights file"),
    ):
        with pytest.raises(InputError, match=said):
            read_weights(tmp_path / name)


def test_misfits_are_named_with_both_shapes(tmp_path):
    state = tiny().state_dict()
    state["0.weight"] = torch.zeros(7, 1, 3, 3)
    del state["0.bias"]
    state["extra"] = torch.zeros(2)
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(InputError) as caught:
        load_weights(tiny(), tmp_path / "w.safetensors")
    said = str(caught.value)
    assert "0.weight: expected (8, 1, 3, 3), found (7, 1, 3, 3)" in said
    assert "0.bias: expected (8,), found nothing" in said
    assert "extra: expected nothing by this name, found (2,)" in said


def test_many_misfits_are_counted(tmp_path):
    save_file({"x": torch.zeros(1)}, tmp_path / "w.safetensors")
    with pytest.raises(InputError, match=r"and 12 more that do not fit"):
        load_weights(tiny(), tmp_path / "w.safetensors")


def test_matching_gives_names_in_order_or_near_misses():
    net = construct(Origin("stages.zoo:resnet", {"depth": 8}))
    assert matching(net, ["head", "stages.*.conv1"]) == [f"stages.{i}.0.conv1" for i in range(3)] + ["head"]
    with pytest.raises(InputError, match=r"'haed' matches no module[^$]*did you mean 'head'"):
        matching(net, ["stages.*", "haed"])


def test_macs_are_counted_by_hand():
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),  # 8*8 positions * 4 * 3*9
        nn.Conv2d(4, 4, 3, groups=4),  # 6*6 * 4 * 1*9
        nn.ConvTranspose2d(4, 2, 2, stride=2),  # every of 4*6*6 numbers meets 2*2*2 weights
        nn.Flatten(),
        nn.Linear(2 * 12 * 12, 5),
    )
    expected = 64 * 4 * 27 + 36 * 4 * 9 + 144 * 8 + 288 * 5
    net.train()
    assert macs(net, (3, 8, 8)) == expected
    assert net.training


def test_seeded_leaves_the_outside_alone():
    torch.manual_seed(0)
    expected = torch.rand(2)
    torch.manual_seed(0)
    with seeded(1, 2) as generator:
        inside = torch.rand(1), torch.rand(1, generator=generator)
    assert torch.equal(torch.rand(2), expected)
    with seeded(1, 2) as generator:
        assert (torch.rand(1), torch.rand(1, generator=generator)) == inside
    with seeded(2, 1):
        assert torch.rand(1) != inside[0]
