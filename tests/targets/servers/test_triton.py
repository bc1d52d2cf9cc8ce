"""Triton's model repository: read by Triton's own protobuf, and served by the real server."""

import numpy as np
import pytest
from google.protobuf import text_format
from shipments import LABELS, ask, body, put, shipment, values
from tritonclient.grpc import model_config_pb2

from targets.errors import InputError
from targets.servers.shipment import Options
from targets.servers.triton import layout


def parsed(made):
    return text_format.Parse(made.shared["config.pbtxt"].decode(), model_config_pb2.ModelConfig())


def test_the_config_says_what_the_graph_and_the_target_say(tmp_path):
    made = layout(shipment(tmp_path, runtime={"threads": 3}), Options(max_batch=16, delay_us=250, instances=2))
    config = parsed(made)
    assert (config.name, config.platform, config.max_batch_size) == ("tiny", "onnxruntime_onnx", 16)
    x, y = config.input[0], config.output[0]
    assert (x.name, x.data_type, list(x.dims)) == ("x", model_config_pb2.TYPE_FP32, [16, 14, 14])
    assert (y.name, list(y.dims), y.label_filename) == ("y", [10], "labels.txt")
    assert config.dynamic_batching.max_queue_delay_microseconds == 250
    assert config.version_policy.latest.num_versions == 1
    group = config.instance_group[0]
    assert (group.count, group.kind) == (2, model_config_pb2.ModelInstanceGroup.KIND_CPU)
    assert config.parameters["intra_op_thread_count"].string_value == "3"
    assert made.batch == 16
    assert made.shared["labels.txt"].decode().splitlines() == list(LABELS)
    assert set(made.version) == {"model.onnx", "manifest.json"}


def test_the_golden_sample_warms_the_model_up(tmp_path):
    ours = shipment(tmp_path)
    made = layout(ours, Options())
    warm = parsed(made).model_warmup[0]
    tensor = warm.inputs["x"]
    assert (warm.batch_size, list(tensor.dims)) == (1, [16, 14, 14])
    raw = made.shared[f"warmup/{tensor.input_data_file}"]
    np.testing.assert_array_equal(np.frombuffer(raw, "<f4").reshape(16, 14, 14), ours.sample[0])


def test_without_a_sample_there_is_no_warm_up(tmp_path):
    made = layout(shipment(tmp_path, sample=np.zeros((0, 16, 14, 14), np.float32)), Options())
    assert not parsed(made).model_warmup
    assert any(note.startswith("no warm-up") for note in made.notes)


def test_one_at_a_time_is_not_batched(tmp_path):
    config = parsed(layout(shipment(tmp_path), Options(max_batch=1)))
    assert config.max_batch_size == 1
    assert not config.HasField("dynamic_batching")


def test_a_config_that_stays_is_proven_by_one_example_at_a_time(tmp_path):
    made = layout(shipment(tmp_path), Options(keep_config=True))
    assert (made.batch, made.kept) == (1, {"config.pbtxt"})
    assert layout(shipment(tmp_path, batch=2), Options(keep_config=True)).batch == 2
    assert not layout(shipment(tmp_path), Options()).kept


def test_a_fixed_batch_is_served_as_it_is(tmp_path):
    made = layout(shipment(tmp_path, batch=2), Options())
    config = parsed(made)
    assert config.max_batch_size == 0
    assert list(config.input[0].dims) == [2, 16, 14, 14]
    assert list(config.output[0].dims) == [2, 10]
    assert not config.HasField("dynamic_batching")
    assert list(config.model_warmup[0].inputs["x"].dims) == [2, 16, 14, 14]
    assert len(made.shared["warmup/golden_sample"]) == 4 * 2 * 16 * 14 * 14
    assert made.batch == 2
    assert "fixed at 2" in made.notes[0]


@pytest.mark.parametrize("options", [Options(max_batch=32), Options(delay_us=100)])
def test_batches_of_a_fixed_batch_are_refused(tmp_path, options):
    with pytest.raises(InputError, match=r"has a fixed batch of 2, so that Triton cannot join requests(.|\n)*export"):
        layout(shipment(tmp_path, batch=2), options)


def test_where_shapes_must_be_known_one_example_is_taken(tmp_path):
    made = layout(shipment(tmp_path, runtime={"fixed_shapes": True}), Options())
    assert parsed(made).max_batch_size == made.batch == 1


def test_tensorrt_gets_its_options_by_tritons_names(tmp_path):
    options = {"trt_fp16_enable": "1", "trt_max_workspace_size": "1024", "trt_engine_cache_enable": "1"}
    config = parsed(
        layout(shipment(tmp_path, runtime={"provider": "TensorrtExecutionProvider", "options": options}), Options())
    )
    found = config.optimization.execution_accelerators.gpu_execution_accelerator[0]
    assert found.name == "tensorrt"
    assert dict(found.parameters) == {
        "precision_mode": "FP16",
        "max_workspace_size_bytes": "1024",
        "trt_engine_cache_enable": "1",
    }
    assert config.instance_group[0].kind == model_config_pb2.ModelInstanceGroup.KIND_GPU


def test_cuda_and_openvino(tmp_path):
    cuda = {"provider": "CUDAExecutionProvider", "options": {"cudnn_conv_algo_search": "HEURISTIC"}}
    config = parsed(layout(shipment(tmp_path, runtime=cuda), Options()))
    found = config.optimization.execution_accelerators.gpu_execution_accelerator[0]
    assert (found.name, dict(found.parameters)) == ("cuda", cuda["options"])
    openvino = {"provider": "OpenVINOExecutionProvider", "options": {"device_type": "CPU"}}
    made = layout(shipment(tmp_path, runtime=openvino), Options())
    accelerators = parsed(made).optimization.execution_accelerators
    assert accelerators.cpu_execution_accelerator[0].name == "openvino"
    assert any("device_type of here do not reach it" in note for note in made.notes)


def test_a_provider_that_triton_lacks_is_refused(tmp_path):
    with pytest.raises(InputError, match="runs on CoreMLExecutionProvider; Triton's ONNX Runtime has CPU"):
        layout(shipment(tmp_path, runtime={"provider": "CoreMLExecutionProvider"}), Options())


def test_names_are_kept_whatever_they_hold(tmp_path):
    odd = 'a "b"\\ é:0'

    def rename(model):
        for node in model.graph.node:
            node.input[:] = [odd if name == "x" else name for name in node.input]
        model.graph.input[0].name = odd

    config = parsed(layout(shipment(tmp_path, edit=rename), Options()))
    assert config.input[0].name == odd
    assert odd in config.model_warmup[0].inputs


def test_an_output_of_nothing_but_the_batch_is_reshaped(tmp_path):
    from onnx import TensorProto, helper

    def add(model):
        model.graph.node.append(helper.make_node("ReduceMax", ["y", "one"], ["top"], keepdims=0))
        model.graph.initializer.append(helper.make_tensor("one", TensorProto.INT64, [1], [1]))
        model.graph.output.append(helper.make_tensor_value_info("top", TensorProto.FLOAT, ["batch"]))

    top = parsed(layout(shipment(tmp_path, edit=add), Options())).output[1]
    assert list(top.dims) == [1]
    assert top.HasField("reshape")
    assert not top.reshape.shape


def test_a_type_that_triton_lacks_is_refused(tmp_path):
    from onnx import TensorProto, helper

    def add(model):
        model.graph.node.append(helper.make_node("Cast", ["y"], ["narrow"], to=TensorProto.FLOAT8E4M3FN))
        model.graph.output.append(helper.make_tensor_value_info("narrow", TensorProto.FLOAT8E4M3FN, ["batch", 10]))

    with pytest.raises(InputError, match="has 'narrow' of type float8_e4m3fn, which Triton does not know"):
        layout(shipment(tmp_path, edit=add), Options())


@pytest.mark.server
def test_the_real_server_serves_it_bit_by_bit(tmp_path):
    from running import triton

    ours = shipment(tmp_path)
    put(layout(ours, Options()), tmp_path / "repository", "tiny", 1)
    with triton(tmp_path / "repository") as server:
        for count in (1, 4):
            status, answer = ask(server.http, "tiny", body(ours.sample[:count]))
            assert status == 200
            np.testing.assert_array_equal(values(answer), ours.answers[:count])
        request = body(ours.sample[:1]) | {"outputs": [{"name": "y", "parameters": {"classification": 1}}]}
        _, answer = ask(server.http, "tiny", request)
        assert answer["outputs"][0]["data"][0].endswith(LABELS[ours.answers[0].argmax()])
        status, answer = ask(server.http, "tiny", body(ours.sample[:1, :, :13]))
        assert status == 400
        assert "unexpected shape" in answer["error"]


@pytest.mark.server
def test_the_real_server_reads_the_golden_sample_before_it_serves(tmp_path):
    from running import triton

    put(layout(shipment(tmp_path), Options()), tmp_path / "repository", "tiny", 1)
    (tmp_path / "repository" / "tiny" / "warmup" / "golden_sample").unlink()
    with triton(tmp_path / "repository") as server:
        assert "failed to open text file for read" in server.log()


@pytest.mark.server
def test_the_real_server_serves_a_fixed_batch(tmp_path):
    from running import triton

    ours = shipment(tmp_path, batch=2)
    put(layout(ours, Options()), tmp_path / "repository", "tiny", 1)
    with triton(tmp_path / "repository") as server:
        status, answer = ask(server.http, "tiny", body(ours.sample[:2]))
        assert (status, answer["outputs"][0]["shape"]) == (200, [2, 10])
        assert ask(server.http, "tiny", body(ours.sample[:1]))[0] == 400


def test_the_warm_up_is_as_large_as_its_file_where_only_the_output_is_fixed(tmp_path):
    def fixed_output(model):
        model.graph.output[0].type.tensor_type.shape.dim[0].dim_value = 2

    made = layout(shipment(tmp_path, edit=fixed_output), Options())
    assert len(made.shared["warmup/golden_sample"]) == 2 * 16 * 14 * 14 * 4
    assert "dims: [ 2, 16, 14, 14 ]" in made.shared["config.pbtxt"].decode().partition("model_warmup")[2]
