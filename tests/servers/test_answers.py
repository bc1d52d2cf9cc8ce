"""Each server that can be installed answers from the folder that `attar ship` wrote for it as onnxruntime does."""

from contextlib import closing

import numpy as np
import pytest
from running import kserve, mlserver, triton
from shipping import answers, attar_ship

from pipeline import evidence, reference
from targets.servers.protocol import connect

SERVERS = {"triton": triton, "mlserver": mlserver, "kserve": kserve}


@pytest.mark.server
@pytest.mark.parametrize("name", SERVERS)
def test_a_real_server_answers_the_golden_sample_as_onnxruntime_does(name, artifacts, tmp_path):
    folder = artifacts["second"]
    code, _, err = attar_ship(artifacts["first"], tmp_path / "models", "--to", name)
    assert code == 0, err
    code, _, err = attar_ship(folder, tmp_path / "models", "--to", name)
    assert code == 0, err
    assert evidence.verified(tmp_path / "models" / "tiny" / "2", beside=True) == ()
    inputs = reference.load(folder / reference.NAME).inputs
    with SERVERS[name](tmp_path / "models") as server, closing(connect(f"http://{server.http}/v2/models/tiny")) as at:
        got = np.concatenate([at.infer(inputs[i : i + 1]) for i in range(len(inputs))])
    assert np.array_equal(got, answers(folder, inputs))
    assert np.array_equal(got, reference.load(folder / reference.NAME).outputs)
