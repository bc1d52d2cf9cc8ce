import json
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from stages.base import Origin
from stages.network import construct, save_weights
from stages.settings import TrainConfig
from stages.testing import context, digest_of, tiny_splits
from stages.training import accuracy, augmented, predict, train
from targets.errors import StageError

DATA = tiny_splits()
CONFIG = TrainConfig(epochs=4, batch_size=16, augment="shift-flip")


def net(seed=0):
    module = construct(Origin("stages.testing:tiny_cnn"), seed)
    module.insert(8, nn.Dropout(0.2))  # draws random numbers, so that the seeding shows
    return module


def labels(module, batch):
    return F.cross_entropy(module(batch.inputs), batch.labels)


def run(folder, config=CONFIG, loss=labels, data=DATA, seed=0, **more):
    module = net()
    ctx = replace(context(folder, data), seed=seed, **more)
    result = train(module, config, data, loss, ctx, "student")
    save_weights(module, ctx.out / "w.safetensors")
    return result, (ctx.out / "w.safetensors").read_bytes(), ctx


def replace_config(config, **changes):
    return config.model_copy(update=changes)


def test_it_learns_and_tells_what_happened(tmp_path):
    config = replace_config(CONFIG, augment="none", epochs=6)
    result, _, _ = run(tmp_path / "a", config)
    assert len(result.history) == 6
    assert result.history[-1].train_loss < result.history[0].train_loss / 2
    assert result.validation_accuracy == result.history[-1].validation_accuracy > 0.9


def test_same_seed_same_bits_other_seed_other_bits(tmp_path):
    torch.manual_seed(1)
    _, first, _ = run(tmp_path / "a")
    torch.manual_seed(2)
    before = torch.get_rng_state()
    _, second, _ = run(tmp_path / "b")
    assert torch.equal(torch.get_rng_state(), before)
    _, other, _ = run(tmp_path / "c", seed=1)
    assert first == second != other


def test_two_threads_give_the_same_bits_each_time(tmp_path):
    """All other tests work with one."""
    torch.set_num_threads(2)
    try:
        (_, first, _), (_, second, _) = (run(tmp_path / name, replace_config(CONFIG, epochs=2)) for name in "ab")
    finally:
        torch.set_num_threads(1)
    assert first == second


def test_switches_of_the_process_are_put_back(tmp_path):
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        run(tmp_path / "a", replace_config(CONFIG, epochs=1))
        assert torch.is_deterministic_algorithms_warn_only_enabled()
    finally:
        torch.use_deterministic_algorithms(False)
    run(tmp_path / "b", replace_config(CONFIG, epochs=1))
    assert not torch.are_deterministic_algorithms_enabled()


class Killed(BaseException):
    pass


def killer(at):
    """A loss that stops the world at its `at`-th call."""
    calls = 0

    def loss(module, batch):
        nonlocal calls
        calls += 1
        if calls == at:
            raise Killed
        return labels(module, batch)

    return loss


@pytest.mark.parametrize("at", [5, 11, 25, 40])
def test_an_interrupted_run_ends_bit_equal(tmp_path, at):
    """Ten batches an epoch: in the first epoch, at a border, and later."""
    _, undisturbed, _ = run(tmp_path / "a")
    ctx = context(tmp_path / "b", DATA)
    with pytest.raises(Killed):
        train(net(), CONFIG, DATA, killer(at), ctx, "student")
    heard = []
    module = net()
    result = train(module, CONFIG, DATA, labels, replace(ctx, say=heard.append), "student")
    save_weights(module, ctx.out / "w.safetensors")
    assert (ctx.out / "w.safetensors").read_bytes() == undisturbed
    assert len(result.history) == 4
    done = (at - 1) // 10
    assert heard == ([f"student: goes on after epoch {done} of 4"] if done else [])


CHILD = """
import sys, time, torch
from pathlib import Path
torch.set_num_threads(1)
sys.path.insert(0, {here!r})
from test_training import *
from stages.base import Context

def slow(module, batch):
    time.sleep(0.02)
    return labels(module, batch)

folder = Path({folder!r})
train(net(), CONFIG, DATA, slow, Context(DATA, folder / "out", folder / "scratch"), "student")
"""


def test_a_run_killed_by_the_system_ends_bit_equal(tmp_path):
    _, undisturbed, _ = run(tmp_path / "a")
    ctx = context(tmp_path / "b", DATA)
    script = CHILD.format(here=os.path.dirname(__file__), folder=str(tmp_path / "b"))  # noqa: PTH120
    child = subprocess.Popen([sys.executable, "-c", script])
    state = ctx.scratch / "checkpoint.json"
    until = time.monotonic() + 60
    while not (state.exists() and len(json.loads(state.read_text())["history"]) >= 2):
        assert child.poll() is None
        assert time.monotonic() < until
        time.sleep(0.01)
    time.sleep(0.05)  # into the next epoch
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    heard = []
    module = net()
    train(module, CONFIG, DATA, labels, replace(ctx, say=heard.append), "student")
    save_weights(module, ctx.out / "w.safetensors")
    assert len(heard) == 1
    assert (ctx.out / "w.safetensors").read_bytes() == undisturbed


def test_a_finished_run_is_not_trained_again(tmp_path):
    result, weights, ctx = run(tmp_path / "a")
    module = net()
    again = train(module, CONFIG, DATA, killer(1), ctx, "student")
    save_weights(module, tmp_path / "w")
    assert again == result
    assert (tmp_path / "w").read_bytes() == weights


def test_a_checkpoint_of_another_run_is_not_taken(tmp_path):
    _, expected, _ = run(tmp_path / "a", seed=3)
    _, _, ctx = run(tmp_path / "b")
    other_start = construct(Origin("stages.testing:tiny_cnn"), 9)
    other_start.insert(8, nn.Dropout(0.2))
    for changed in (
        lambda: train(net(), CONFIG, DATA, killer(1), replace(ctx, seed=3), "student"),
        lambda: train(net(), replace_config(CONFIG, learning_rate=0.01), DATA, killer(1), ctx, "student"),
        lambda: train(net(), CONFIG, tiny_splits(seed=8), killer(1), ctx, "student"),
        lambda: train(net(), CONFIG, DATA, killer(1), ctx, "student", basis="another teacher"),
        lambda: train(other_start, CONFIG, DATA, killer(1), ctx, "student"),
    ):
        with pytest.raises(Killed):
            changed()
    module = net()
    train(module, CONFIG, DATA, labels, replace(ctx, seed=3), "student")
    save_weights(module, tmp_path / "w")
    assert (tmp_path / "w").read_bytes() == expected


@pytest.mark.parametrize("spoil", ["json", "weights", "gone"])
def test_a_spoiled_checkpoint_costs_time_and_nothing_else(tmp_path, spoil):
    _, expected, ctx = run(tmp_path / "a")
    (weights,) = ctx.scratch.glob("*.safetensors")
    if spoil == "json":
        (ctx.scratch / "checkpoint.json").write_text("{")
    elif spoil == "weights":
        weights.write_bytes(weights.read_bytes()[:1000])
    else:
        weights.unlink()
    module = net()
    train(module, CONFIG, DATA, labels, ctx, "student")
    save_weights(module, tmp_path / "w")
    assert (tmp_path / "w").read_bytes() == expected


def test_checkpoints_do_not_pile_up(tmp_path):
    _, _, ctx = run(tmp_path / "a")
    assert set(digest_of(ctx.scratch)) == {"checkpoint.json", "epoch-4.safetensors"}


def test_a_loss_with_weights_is_trained_and_resumed_along(tmp_path):
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, module, batch):
            return labels(lambda x: module(x) * self.scale, batch)

    whole, parts = Scaled(), Scaled()
    _, expected, _ = run(tmp_path / "a", loss=whole)
    assert whole.scale != 1
    ctx = context(tmp_path / "b", DATA)

    class Stopping(Scaled):
        calls = 0

        def forward(self, module, batch):
            self.calls += 1
            if self.calls == 25:
                raise Killed
            return super().forward(module, batch)

    with pytest.raises(Killed):
        train(net(), CONFIG, DATA, Stopping(), ctx, "student")
    module = net()
    train(module, CONFIG, DATA, parts, ctx, "student")
    save_weights(module, tmp_path / "w")
    assert torch.equal(parts.scale, whole.scale)
    assert (tmp_path / "w").read_bytes() == expected


def test_an_infinite_loss_ends_the_run_at_once(tmp_path):
    calls = 0

    def loss(module, batch):
        nonlocal calls
        calls += 1
        return labels(module, batch) * (math.inf if calls == 13 else 1)

    said = r"student: epoch 2 of 4, batch 3 of 10: the loss is inf at learning rate .*lower learning_rate \(now 0.05\)"
    with pytest.raises(StageError, match=said):
        run(tmp_path / "a", loss=loss)
    assert calls == 13


def test_a_learning_rate_that_blows_up_is_a_stage_error(tmp_path):
    with pytest.raises(StageError, match="lower learning_rate"):
        run(tmp_path / "a", replace_config(CONFIG, learning_rate=100.0, momentum=0.99, weight_decay=1.0))


def test_weights_that_break_after_the_last_batch_are_noticed(tmp_path):
    data = tiny_splits(train=16)  # one batch

    def loss(module, batch):
        steep = (module[0].weight - module[0].weight.detach()).sum().pow(2).sqrt()  # zero, with no finite slope
        return labels(module, batch) + steep

    with pytest.raises(StageError, match=r"epoch 1 of 1: 0\.weight is no longer finite; lower learning_rate"):
        run(tmp_path / "a", replace_config(CONFIG, epochs=1), loss=loss, data=data)


def test_the_rate_warms_up_and_falls_to_zero(tmp_path):
    """With weights at zero gradient, weight decay alone shows the rate: w -> w * (1 - rate * decay)."""
    config = TrainConfig(epochs=20, batch_size=16, momentum=0.0, weight_decay=0.5, learning_rate=0.1)
    seen = []

    class One(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.ones((), dtype=torch.float64))

        def forward(self, x):
            return torch.zeros(len(x), 4)

    def loss(module, batch):
        seen.append(module.w.item())
        return module.w * 0.0

    train(One(), config, DATA, loss, context(tmp_path / "a", DATA), "x")
    rates = (1 - np.array(seen[1:]) / np.array(seen[:-1])) / 0.5
    assert rates[0] == pytest.approx(0.005)
    assert rates.max() == pytest.approx(0.1)
    assert np.argmax(rates) == 10  # 5 % of 200 steps
    assert (np.diff(rates[10:]) < 0).all()
    assert rates[-1] < 1e-4


def test_each_epoch_has_its_own_order_and_augmentation(tmp_path):
    seen = []

    def loss(module, batch):
        seen.append(batch)
        return labels(module, batch)

    data = tiny_splits(train=16)
    train(net(), replace_config(CONFIG, epochs=2), data, loss, context(tmp_path / "a", data), "x")
    first, second = seen
    assert sorted(first.index.tolist()) == sorted(second.index.tolist())
    assert first.index.tolist() != second.index.tolist()
    assert not torch.equal(first.inputs[first.index.argsort()], second.inputs[second.index.argsort()])


@pytest.mark.parametrize("examples", [160, 170, 5])
def test_whole_batches_only_unless_there_is_just_one(tmp_path, examples):
    seen = []

    def loss(module, batch):
        seen.append(batch)
        return labels(module, batch)

    data = tiny_splits(train=examples)
    train(net(), replace_config(CONFIG, epochs=1, augment="none"), data, loss, context(tmp_path / "a", data), "x")
    assert [len(b.labels) for b in seen] == ([16] * 10 if examples > 16 else [5])
    index = torch.cat([b.index for b in seen])
    assert len(set(index.tolist())) == len(index)
    assert index.tolist() != sorted(index.tolist())
    b = seen[-1]
    assert torch.equal(b.inputs, torch.from_numpy(data.train.inputs(b.index.numpy())))
    assert b.labels.tolist() == data.train.labels[b.index.numpy()].tolist()
    assert b.inputs.is_contiguous(memory_format=torch.channels_last)


def test_progress_is_told_seldom_and_grows(tmp_path):
    told = []
    run(tmp_path / "a", replace_config(CONFIG, epochs=2), progress=lambda share, what: told.append((share, what)))
    assert told[0] == (0.0, "student: epoch 1 of 2, batch 1 of 10")
    assert len(told) < 20
    shares = [share for share, _ in told]
    assert shares == sorted(shares)
    assert shares[-1] < 1


def test_augmentation_needs_images(tmp_path):
    flat = replace(DATA, train=replace(DATA.train, raw=DATA.train.raw.reshape(160, -1)))
    with pytest.raises(StageError, match=r"augment: shift-flip needs images, and inputs have the shape \(64,\)"):
        train(net(), CONFIG, flat, labels, context(tmp_path / "a", DATA), "student")


def test_shifts_stay_within_an_eighth_and_repeat_the_edge():
    x = torch.arange(16.0).view(1, 1, 1, 16).expand(200, 1, 16, 16)
    y = augmented(x, "shift", torch.Generator().manual_seed(0))
    assert y.shape == x.shape
    first, last = y[:, 0, 0, 0], y[:, 0, 0, -1]
    assert set(first.tolist()) == {0, 1, 2}
    assert set(last.tolist()) == {13, 14, 15}
    assert (y.diff(dim=3) >= 0).all()  # never mirrored
    down = augmented(x.transpose(2, 3), "shift", torch.Generator().manual_seed(0))
    assert set(down[:, 0, 0, 0].tolist()) == {0, 1, 2}


def test_mirrors_are_mirrors_and_images_stay_apart():
    x = torch.arange(16.0).view(1, 1, 1, 16) + 100 * torch.arange(200.0).view(200, 1, 1, 1)
    x = torch.cat([x, -x], 1).expand(200, 2, 16, 16)
    y = augmented(x, "shift-flip", torch.Generator().manual_seed(0))
    mirrored = y[:, 0, 0, 8] < y[:, 0, 0, 7]
    assert 70 < int(mirrored.sum()) < 130
    assert ((y[:, 0] // 100) == torch.arange(200).view(200, 1, 1)).all()
    assert torch.equal(y[:, 0], -y[:, 1])
    assert augmented(x, "none", torch.Generator()) is x


def test_predict_gives_logits_in_order():
    module = net().train()
    logits = predict(module, DATA.validation, size=7)
    assert logits.shape == (80, 4)
    assert not logits.requires_grad
    assert not module.training
    torch.testing.assert_close(logits[70:71], module(torch.from_numpy(DATA.validation.inputs(slice(70, 71)))))
    right = (logits.argmax(1).numpy() == DATA.validation.labels).mean()
    assert accuracy(module, DATA.validation) == right
    assert predict(module, DATA.validation, limit=9).shape == (9, 4)


def test_one_wild_batch_cannot_throw_the_weights_far(tmp_path):
    config = TrainConfig(epochs=1, batch_size=160, momentum=0.0, weight_decay=0.0, learning_rate=1.0)
    module = nn.Sequential(nn.Flatten(), nn.Linear(64, 4))
    before = [p.detach().clone() for p in module.parameters()]
    train(module, config, DATA, lambda m, b: 1e6 * labels(m, b), context(tmp_path / "a", DATA), "x")
    moved = math.sqrt(
        sum(float((p - q).detach().pow(2).sum()) for p, q in zip(module.parameters(), before, strict=True))
    )
    assert moved == pytest.approx(0.05 * 2.0, rel=1e-3)  # first rate of the warm-up, times the largest norm
