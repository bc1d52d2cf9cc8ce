"""A real server serves the newest of what `attar ship` wrote, bit by bit as onnxruntime does: it is asked by
`attar probe` over HTTP and gRPC, and by the client that lies there."""

import subprocess
import sys
import time
from contextlib import closing

import numpy as np
import pytest
from running import kserve, mlserver, triton
from shipping import answers, attar_ship, kept_in

from pipeline import published
from pipeline.endpoint import probe
from targets.errors import DeviceError, InputError
from targets.servers.protocol import connect

SERVERS = {"triton": triton, "mlserver": mlserver, "kserve": kserve}
HEAVY = [pytest.param(name, marks=pytest.mark.server) for name in ("mlserver", "kserve")]


def ready(url):
    """Waits until a model serves: a server is ready before its models are."""
    endpoint, end = connect(url), time.monotonic() + 30
    while not endpoint.ready():
        assert time.monotonic() < end, f"{url} is not ready"
        time.sleep(0.05)
    endpoint.close()
    return url


@pytest.mark.parametrize("name", ["triton", *HEAVY])
def test_a_real_server_is_probed_and_a_newcomer_asks_it(name, artifacts, tmp_path):
    folder = artifacts["second"]
    for each in (artifacts["first"], folder):
        code, _, err = attar_ship(each, tmp_path / "models", "--to", name)
        assert code == 0, err
    assert published.verified(tmp_path / "models" / "tiny") == ()
    kept = kept_in(folder)
    assert np.array_equal(kept.outputs, answers(folder, kept.inputs))
    with SERVERS[name](tmp_path / "models") as server:
        for url in (f"http://{server.http}/v2/models/tiny", f"grpc://{server.grpc}/tiny"):
            found = probe(ready(url), folder, seconds=1, clients=4)
            assert (found.verdict, found.bare.ulps, found.loaded.verdict) == ("equal", 0, "equal"), found
            assert name in found.serves
            assert found.adds["latency_p50_ms"].value > 0
            assert found.how == (
                "gRPC" if "grpc" in url else "HTTP, JSON" if name == "mlserver" else "HTTP, binary tensors"
            )
            with closing(connect(url)) as endpoint:
                got = np.concatenate([endpoint.infer(kept.inputs[i : i + 1]) for i in range(len(kept.inputs))])
                assert np.array_equal(got, kept.outputs)
                with pytest.raises(DeviceError, match="refused inputs of shape"):
                    endpoint.infer(np.zeros((1, 1, 3, 3), np.float32))
        other = connect(f"http://{server.http}/v2/models/tinyy")
        with pytest.raises(InputError, match=r"has no model 'tinyy'.*\n   help: did you mean 'tiny'"):
            other.metadata()
        other.close()
        raw = np.clip((kept.inputs[0] * 0.25 + 0.5).transpose(1, 2, 0) * 255, 0, 255).round().astype(np.uint8)
        np.save(tmp_path / "raw.npy", raw)  # the tiny recipe's mean and std, backwards
        command = [sys.executable, "-I", tmp_path / "models" / "tiny" / "client.py", tmp_path / "raw.npy", server.http]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
        assert done.stdout == f"{kept.outputs[0].argmax()}\n", done.stderr
        server.kill()
        with pytest.raises(DeviceError, match="nothing listens"):
            probe(f"http://{server.http}", folder)
    assert published.verified(tmp_path / "models" / "tiny") == (), "also where the server's Python wrote something"


@pytest.mark.server
def test_a_server_that_answers_wrongly_is_found_out(artifacts, tmp_path):
    folder = artifacts["first"]
    assert attar_ship(folder, tmp_path / "models", "--to", "triton")[0] == 0
    with triton(tmp_path / "models", disturb="tiny:1") as server:
        found = probe(ready(f"http://{server.http}/v2/models/tiny"), folder, seconds=1, clients=1)
    assert (found.verdict, found.bare.verdict, found.bare.other_class) == ("differs", "differs", 0)
