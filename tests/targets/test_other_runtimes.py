"""Providers that come in packages of their own, each from an environment of its own:

    python -m venv ov && ov/bin/pip install onnxruntime-openvino numpy            ATTAR_OPENVINO_PYTHON=ov/bin/python
    python -m venv qnn && qnn/bin/pip install onnxruntime onnxruntime-qnn numpy   ATTAR_QNN_PYTHON=qnn/bin/python

onnxruntime-qnn for x86-64 Linux brings an emulator of the NPU: right answers and placement, times that mean nothing.
"""

import os
from pathlib import Path

import int8_nets
import numpy as np
import pytest

from targets.measure import connect, measure, outputs
from targets.operators import findings, node_counts
from targets.profiling import profile
from targets.samples import measurements
from targets.target import Connection, Meter, load

pytestmark = pytest.mark.device

METER = Meter(samples=30, blocks=3, warmup_s=0, max_seconds=2, throughput_batch=4, energy_s=0.3)


@pytest.fixture(scope="module")
def nets(tmp_path_factory):
    return int8_nets.make(tmp_path_factory.mktemp("nets"))


@pytest.fixture(params=[("openvino_cpu", "ATTAR_OPENVINO_PYTHON"), ("qualcomm_htp", "ATTAR_QNN_PYTHON")])
def target(request):
    profile, variable = request.param
    if not os.environ.get(variable):
        pytest.skip(f"{variable} names no Python that has this runtime")
    # Not resolved: an environment is known by where its link to Python lies.
    connection = Connection(python=str(Path(os.environ[variable]).absolute()))
    return load(profile).model_copy(update={"connection": connection, "meter": METER})


def test_the_runtime_is_seen(target):
    found = connect(target).identity()
    assert found["providers"][0] == target.runtime.provider
    assert found["onnxruntime"]


def test_answers(target, nets):
    """The vendor's own kernels: the NPU computes float in 16 bits."""
    got = outputs(target, nets.models, nets.inputs)
    nets.check({name: got[name] for name in nets.int8()}, steps=6)
    np.testing.assert_allclose(got["float"], nets.here["float"], rtol=0, atol=0.02 * np.abs(nets.here["float"]).max())


def test_measured_in_turns_with_all_nodes_where_they_should_be(target, nets):
    """Several sessions in one process, and batches: none may land on the CPU without a word."""
    got = measure(target, nets.models, nets.inputs)
    assert got.environment["providers"][0] == target.runtime.provider
    for name, path in nets.models.items():
        samples = got.models[name]
        assert set(samples.assignment or {target.runtime.provider: 1}) == {target.runtime.provider}
        counts = node_counts(path, target.runtime.provider, samples.operators, samples.assignment)
        # What the provider fused is one operator, of no known precision: not known is not 0.
        assert counts == {"fallback_nodes": 0, "float_int8_nodes": None if name in int8_nets.SIGNS else 0}
        kinds = [f.kind for f in findings(path, target.runtime.provider, samples.operators, samples.assignment)]
        assert kinds == (["unseen"] if name in int8_nets.SIGNS else [])
        found = measurements(got, name, "float")
        assert {"latency_p50_ms", "throughput_per_s", "speedup_p50", "peak_memory_mb"} <= set(found)
        assert samples.energy["accelerated"] == (target.runtime.provider == "QNNExecutionProvider")


def test_a_profile_sweeps_over_batches(target, nets):
    got = profile(target, {"q": nets.models["u8s8"]}, batches=[1, 4], seconds=1)
    assert [sweep.batch for sweep in got.sweeps] == [1, 4]
    (node,) = got.measured.models["q"].operators["nodes"]
    assert node["outputs"] == [["float", [1, 10]]]


def test_open_axes_would_send_all_of_it_to_the_cpu(target, nets):
    """Why the profile of the NPU fixes shapes; and the gate tells."""
    if not target.runtime.fixed_shapes:
        pytest.skip("this provider takes open axes")
    runtime = target.runtime.model_copy(update={"fixed_shapes": False})
    got = profile(target.model_copy(update={"runtime": runtime}), {"q": nets.models["u8s8"]}, seconds=0.5)
    samples = got.measured.models["q"]
    counts = node_counts(nets.models["u8s8"], target.runtime.provider, samples.operators, samples.assignment)
    assert counts["fallback_nodes"] == sum(samples.assignment.values()) > 0
