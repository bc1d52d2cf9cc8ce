"""Requests timed in turns, and many clients at once."""

import gc
import threading
import time

import pytest

from targets.servers.turns import at_once, in_turns


def test_blocks_are_taken_in_turns():
    order = []
    found = in_turns({"a": lambda i: order.append("a"), "b": lambda i: order.append("b")}, 0.01, rounds=4)
    assert {name: len(blocks) for name, blocks in found.items()} == {"a": 4, "b": 4}
    assert all(3 <= len(block) <= 500 and min(block) > 0 for blocks in found.values() for block in blocks)
    turns = "".join(now for before, now in zip(["", *order], order, strict=False) if now != before)
    assert turns == "bababa", "b a, a b, b a, ...: which of the two goes first alternates"


def test_a_slow_call_still_gives_blocks():
    found = in_turns({"a": lambda i: time.sleep(0.002)}, 0.001, rounds=2)
    assert all(len(block) == 3 for block in found["a"])
    assert min(found["a"][0]) >= 2


def test_clients_ask_at_once():
    both, at = threading.Barrier(2, timeout=5), []

    def call(i):
        if i == 0:
            both.wait()  # passes only where the other client is asking too
        at.append(i)
        time.sleep(0.001)

    found = at_once([call, call], 0.1)
    assert found.requests == len(at) > 4
    assert found.per_s == pytest.approx(found.requests / 0.1, rel=0.5)
    assert 0 <= found.client_cores < 1
    assert gc.isenabled()


def test_the_time_of_clients_is_counted():
    def busy(i):
        end = time.thread_time() + 0.002
        while time.thread_time() < end:
            pass

    assert at_once([busy], 0.1).client_cores > at_once([lambda i: time.sleep(0.002)], 0.1).client_cores


def test_an_error_ends_all_clients():
    def broken(i):
        raise ValueError("no answer")

    start = time.monotonic()
    with pytest.raises(ValueError, match="no answer"):
        at_once([lambda i: time.sleep(0.001), broken], 30)
    assert time.monotonic() - start < 5
