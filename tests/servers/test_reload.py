"""`attar ship --load` on a real Triton: a version serves once it is proven there, and the old one serves until then."""

import json
import re
import threading
import time
import urllib.request
from contextlib import closing

import numpy as np
import pytest
from running import triton
from shipping import answers, attar_ship, kept_in

from pipeline import evidence, published
from targets.servers.control import Control
from targets.servers.protocol import connect

pytestmark = pytest.mark.usefixtures("triton_here")


def _sample(folder):
    return kept_in(folder).inputs


def _says(server, name="tiny", version=""):
    """What a server answers to the golden sample of the first artifact, one example at a time."""

    def ask(inputs):
        url = f"http://{server.http}/v2/models/{name}" + (f"/versions/{version}" if version else "")
        with closing(connect(url)) as endpoint:
            return np.concatenate([endpoint.infer(inputs[i : i + 1]) for i in range(len(inputs))])

    return ask


def _visible(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_version_serves_when_it_is_proven_and_a_wrong_one_never(artifacts, tmp_path):
    repository = tmp_path / "models"
    repository.mkdir()
    first, wrong = artifacts["first"], artifacts["wrong"]
    inputs = _sample(first)
    with triton(repository, explicit=True) as server:
        url = f"http://{server.http}"
        code, out, err = attar_ship(first, repository, "--to", "triton", "--load", url, "--json")
        assert code == 0, err + server.log()
        assert "equal" in json.loads(out)["proven"]
        assert np.array_equal(_says(server)(inputs), answers(first, inputs))
        assert evidence.verified(repository / "tiny" / "1") == ()

        code, _, err = attar_ship(wrong, repository, "--to", "triton", "--load", url)
        assert code == 3
        assert "does not answer as the artifact did" in err
        assert "it was not published: version 1 serves" in err
        assert np.array_equal(_says(server)(inputs), answers(first, inputs))
        assert Control(url).serving("tiny") == (1,)
    assert _visible(repository) == ["tiny"]
    assert [name for name in _visible(repository / "tiny") if name.isdigit() or name.startswith(".")] == ["1"]


@pytest.mark.server
def test_four_clients_lose_nothing_while_a_version_replaces_another(artifacts, tmp_path):
    repository = tmp_path / "models"
    first, second = artifacts["first"], artifacts["second"]
    inputs = _sample(first)
    old, new = answers(first, inputs), answers(second, inputs)
    assert not np.array_equal(old, new)
    repository.mkdir()
    with triton(repository, explicit=True) as server:
        url = f"http://{server.http}"
        assert attar_ship(first, repository, "--to", "triton", "--load", url)[0] == 0
        over, seen, faults = threading.Event(), [[] for _ in range(4)], []

        def client(number):
            try:
                with closing(connect(f"{url}/v2/models/tiny")) as endpoint:
                    endpoint.metadata()
                    while not over.is_set():
                        at = len(seen[number]) % len(inputs)
                        got = endpoint.infer(inputs[at : at + 1])[0]
                        assert np.array_equal(got, old[at]) != np.array_equal(got, new[at])
                        seen[number].append("old" if np.array_equal(got, old[at]) else "new")
            except BaseException as error:
                faults.append(error)

        threads = [threading.Thread(target=client, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        try:
            code, out, err = attar_ship(second, repository, "--to", "triton", "--load", url, "--json")
        finally:
            over.set()
            for thread in threads:
                thread.join()
        assert not faults
        assert code == 0, err
        assert (json.loads(out)["model_version"], json.loads(out)["replaced"]) == (2, 1)
        for answered in seen:
            assert answered.count("old") > 10
            assert answered == sorted(answered, reverse=True), "the old version answered after the new one had"
        assert Control(url).serving("tiny") == (2,)
        assert np.array_equal(_says(server)(inputs), new)


@pytest.mark.server
def test_a_version_that_answers_otherwise_once_it_serves_is_taken_back(artifacts, tmp_path):
    repository = tmp_path / "models"
    repository.mkdir()
    first, second = artifacts["first"], artifacts["second"]
    inputs = _sample(first)
    with triton(repository, explicit=True, disturb="tiny:2") as server:
        url = f"http://{server.http}"
        assert attar_ship(first, repository, "--to", "triton", "--load", url)[0] == 0
        before = (repository / "tiny" / "config.pbtxt").read_bytes()
        code, _, err = attar_ship(second, repository, "--to", "triton", "--load", url, "--max-batch", 4)
        assert code == 3
        assert "versions/2: does not answer as the artifact did" in err
        assert "version 2 was taken away again: version 1 serves" in err
        assert Control(url).serving("tiny") == (1,)
        assert np.array_equal(_says(server)(inputs), answers(first, inputs))
        assert (repository / "tiny" / "config.pbtxt").read_bytes() == before
    assert not [name for name in _visible(repository / "tiny") if name == "2" or name.startswith(".")]


@pytest.mark.server
def test_a_config_that_its_owner_tuned_goes_on_serving_if_it_is_named(artifacts, tmp_path):
    repository = tmp_path / "models"
    repository.mkdir()
    config = repository / "tiny" / "config.pbtxt"
    with triton(repository, explicit=True) as server:
        load = ("--to", "triton", "--load", f"http://{server.http}")
        assert attar_ship(artifacts["first"], repository, *load)[0] == 0
        tuned = config.read_text().replace("max_batch_size: 8", "max_batch_size: 2")  # fewer than the sample holds
        config.write_text(tuned)
        code, _, err = attar_ship(artifacts["second"], repository, *load)
        assert (code, "config.pbtxt: is not as attar wrote it" in err) == (2, True), err
        code, out, err = attar_ship(artifacts["second"], repository, *load, "--keep-config", "--json")
        assert code == 0, err
        assert (json.loads(out)["replaced"], json.loads(out)["start"]) == (1, "")
        inputs = _sample(artifacts["second"])
        assert np.array_equal(_says(server)(inputs), answers(artifacts["second"], inputs))
        with urllib.request.urlopen(f"http://{server.http}/v2/models/tiny/config", timeout=60) as answer:
            assert json.load(answer)["max_batch_size"] == 2
    assert config.read_text() == tuned
    assert published.verified(repository / "tiny") == ()


@pytest.mark.server
def test_a_version_that_nobody_had_loaded_does_not_come_to_serve_by_accident(artifacts, tmp_path):
    repository = tmp_path / "models"
    repository.mkdir()
    first, second = artifacts["first"], artifacts["second"]
    inputs = _sample(first)
    with triton(repository, explicit=True, disturb="tiny:3") as server:
        url = f"http://{server.http}"
        load = ("--to", "triton", "--load", url)
        assert attar_ship(first, repository, *load)[0] == 0
        assert attar_ship(second, repository, "--to", "triton")[0] == 0
        code, _, err = attar_ship(second, repository, *load)
        assert (code, "version 2 lies there and is not what serves, which is 1" in err) == (2, True), err
        assert np.array_equal(_says(server)(inputs), answers(first, inputs))
        assert _visible(repository) == ["tiny"]
        (address,) = re.findall("`curl -X POST (.*)`", err)
        with urllib.request.urlopen(urllib.request.Request(address, method="POST"), timeout=60) as answer:
            assert answer.status == 200
        code, _, err = attar_ship(first, repository, *load)
        assert (code, "version 3 was taken away again: version 2 serves" in err) == (3, True), err
        assert np.array_equal(_says(server)(inputs), answers(second, inputs))


@pytest.mark.server
def test_a_server_that_cannot_take_it_is_told_and_nothing_is_published(artifacts, tmp_path):
    first = artifacts["first"]
    for options, said, help in (
        ({"explicit": True, "bare": True}, "unable to find backend library", "the server's own log"),
        ({"poll": True}, "not allowed if polling is enabled", "--model-control-mode=explicit"),
    ):
        repository = tmp_path / said[:5]
        repository.mkdir()
        with triton(repository, **options) as server:
            code, _, err = attar_ship(first, repository, "--to", "triton", "--load", f"http://{server.http}")
        assert (code, said in err, help in err) == (3, True, True), err
        assert _visible(repository) == []
    there, elsewhere = tmp_path / "there", tmp_path / "elsewhere"
    there.mkdir()
    with triton(there, explicit=True) as server:
        code, _, err = attar_ship(first, elsewhere, "--to", "triton", "--load", f"http://{server.http}")
        assert code == 3
        assert "does that server read" in err
        server.kill()
        code, _, err = attar_ship(first, there, "--to", "triton", "--load", f"http://{server.http}")
        assert (code, "nothing listens on 127.0.0.1" in err) == (3, True), err
    assert _visible(there) == []
    assert not elsewhere.exists()


@pytest.mark.server
def test_a_server_that_polls_takes_versions_as_they_appear(artifacts, tmp_path):
    repository = tmp_path / "models"
    repository.mkdir()
    first, second = artifacts["first"], artifacts["second"]
    inputs = _sample(first)
    with triton(repository, poll=True) as server:
        for version, folder in enumerate((first, second), 1):
            assert attar_ship(folder, repository, "--to", "triton")[0] == 0
            _until(lambda version=version: Control(f"http://{server.http}").serving("tiny") == (version,))
            assert np.array_equal(_says(server)(inputs), answers(folder, inputs))


def _until(true, seconds=60):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not come true"
        time.sleep(0.1)
