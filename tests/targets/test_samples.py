import numpy as np
import pytest

from targets.budget import Measurement
from targets.samples import Measured, Samples, measurements, notes


def _measured(**blocks):
    return Measured(
        {"onnxruntime": "1.0"},
        {
            name: Samples(
                tuple(map(tuple, latency)), (10.0, 11.0, 12.0), (4.0, 2.0, 3.0), (50.0, 52.0, 51.0), 1_500_000
            )
            for name, latency in blocks.items()
        },
    )


def test_measurements_of_given_samples():
    blocks = (1 + np.arange(600).reshape(12, 50) % 100 / 100).tolist()
    found = measurements(_measured(a=blocks), "a", confidence=0.95)
    assert list(found) == [
        "latency_p50_ms",
        "latency_p90_ms",
        "latency_p95_ms",
        "latency_p99_ms",
        "latency_mean_ms",
        "throughput_per_s",
        "session_ms",
        "size_mb",
        "peak_memory_mb",
    ]
    assert found["latency_p50_ms"].value == pytest.approx(1.49)
    assert found["latency_p50_ms"].samples == 600
    assert found["size_mb"] == Measurement("size_mb", 1.5, 1.5, 1.5, 1, "file size")
    assert (found["session_ms"].low, found["session_ms"].value, found["session_ms"].high) == (2, 3, 4)
    assert (found["peak_memory_mb"].low, found["peak_memory_mb"].value) == (50, 51)
    middle, spread = 1320 ** (1 / 3), np.std(np.log([10, 11, 12]), ddof=1)  # geometric
    assert found["throughput_per_s"].value == pytest.approx(middle)
    assert found["throughput_per_s"].high == pytest.approx(middle * np.exp(4.302653 * spread / 3**0.5), rel=1e-5)


def test_speedup_is_how_many_times_faster_than_the_baseline():
    found = measurements(_measured(a=[[4.0] * 10] * 6, b=[[2.0] * 10] * 6), "b", "a")
    assert found["speedup_p50"].value == pytest.approx(2)
    assert found["speedup_p50"].samples == 6
    assert found["speedup_mean"].value == pytest.approx(2)


def test_the_mean_knows_which_inputs_it_was_taken_on():
    """Every fourth input takes ten times as long: the median does not see it, and so few inputs leave much doubt."""
    slow = Samples(((10.0, 1.0, 1.0, 1.0, 10.0),) * 6, (), (), (), 1)
    known = Samples.of(
        {
            "latency_ms": [[10.0, 1.0, 1.0, 1.0, 10.0], [1.0, 1.0, 1.0, 10.0, 1.0]],
            "inputs": {"count": 4, "first": [0, 1]},
        },
        1,
    )
    assert [list(block) for block in known.input_of] == [[0, 1, 2, 3, 0], [1, 2, 3, 0, 1]]
    more = known.more({"latency_ms": [[1.0, 10.0]], "inputs": {"count": 4, "first": [3]}})
    assert [list(block) for block in more.input_of][2] == [3, 0]
    assert Measured.from_json(Measured({}, {"a": more}).to_json()).models["a"] == more
    blind = measurements(Measured({}, {"a": slow}), "a")["latency_mean_ms"]
    assert (blind.low, blind.high) == (pytest.approx(4.6), pytest.approx(4.6)), "all blocks are equal"
    assert slow.input_of is None
    found = measurements(Measured({}, {"a": more}), "a")["latency_mean_ms"]
    assert found.low < 2 < found.high


# ---- what a reader should know first


@pytest.mark.parametrize(("load", "busy"), [(2.0, []), (3.1, ["the machine was busy (load 3.1 on 2 cores)"])])
def test_a_busy_machine_is_told(load, busy):
    environment = {"cpu": {"cores": 2}, "after": {"load_average_1min": load}}
    assert [note.partition(":")[0] for note in notes(Measured(environment, {}))] == busy
    assert notes(Measured({}, {})) == []


def test_a_steady_measurement_needs_no_note():
    noise = np.random.default_rng(0)
    assert notes(_measured(a=(1 + 0.02 * noise.random((12, 50))).tolist())) == []


def test_drift_is_told_with_its_size():
    blocks = [[1 + 0.01 * i] * 50 for i in range(12)]
    assert notes(_measured(a=blocks)) == ["a: latency rose by 11% while it was measured"]
    assert notes(_measured(a=blocks[::-1])) == ["a: latency fell by 10% while it was measured"]


def test_outliers_are_told_and_kept():
    blocks = [[1.0] * 48 + [30.0, 5.0]] * 12
    (note,) = notes(_measured(a=blocks))
    assert note.startswith("a: 4.0% of the latencies are over 2 times the median, the largest 30 times")
    assert measurements(_measured(a=blocks), "a")["latency_p99_ms"].value == 30


def test_a_model_that_never_settled_is_told():
    settled = Samples(((1.0,) * 50,) * 12, (), (), (), 1, warmup={"seconds": 0.3, "stable": True})
    unsettled = Samples(((1.0,) * 50,) * 12, (), (), (), 1, warmup={"seconds": 3.0, "stable": False})
    assert notes(Measured({}, {"a": settled, "b": unsettled})) == ["b: times had not settled after 3.0 s of warming up"]
