"""A recipe's int8 artifact beside its float teacher, both through one real inference server, in turns.

    python benchmarks/serving.py [recipes/digits.yaml] [--server triton|kserve|mlserver] [--servers FOLDER] [--quick]

Both models are shipped as `attar ship` does, and served by one server on this machine. 1, 4 and 16 clients ask for one
example at a time: p50, p99 and throughput, the models in turns. Beside it onnxruntime without a server, in turns too:
what is left is the server's own share. Its environment is made by tests/servers/install.py where it is not there yet
(FOLDER, else ATTAR_SERVERS, else .servers).

All clients of a turn are sockets of one process with requests made beforehand, so that they cost little; what they did
cost is in the table, as server and clients share the cores. Let nothing else run.

Prints Markdown tables and whether each goal is held. Exit code 1 if one is missed, 4 if one is undecided: both models
answer bit for bit as onnxruntime does; int8 is no slower than float with any number of clients, in p50 and throughput;
the clients take less than half a core.
"""

import argparse
import multiprocessing
import os
import platform
import selectors
import socket
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import onnxruntime

from pipeline.code import importable
from pipeline.events import Event, Events
from pipeline.plan import plan
from pipeline.recipe import load
from pipeline.runner import Runner
from pipeline.store import Store
from targets.artifact import load as load_model
from targets.errors import AttarError
from targets.measure import outputs
from targets.probe.session import create
from targets.servers import SERVERS
from targets.servers.agreement import compare, grain_of
from targets.servers.lowering import fitted
from targets.servers.protocol import connect
from targets.servers.protocol_http import request
from targets.servers.publish import publish
from targets.servers.shipment import Options, Shipment
from targets.statistics import Interval, geometric_mean, paired_ratio, quantile_interval

ROOT = Path(__file__).resolve().parents[1]
CLIENTS = (1, 4, 16)
EXAMPLES = 64
CONFIDENCE = 0.95
CORES = 0.5  # that the clients may take
NAMES = ("float", "int8")


@dataclass
class Taken:
    """Latencies (ms) by turn, rates (1/s) and cores that the clients took."""

    blocks: list[list[float]] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)
    cores: list[float] = field(default_factory=list)

    def add(self, latencies: list[float], seconds: float, cpu_s: float) -> None:
        self.blocks.append(latencies)
        self.rates.append(len(latencies) / seconds)
        self.cores.append(cpu_s / seconds)


# ---- what runs in a process of its own


def ask(place: str, requests: list[bytes], clients: int, seconds: float) -> tuple[list[float], float, float]:
    """So many clients at once, each with one request under way: latencies (ms), seconds, processor seconds."""
    host, _, port = place.rpartition(":")
    picker, found, clock = selectors.DefaultSelector(), [], time.perf_counter
    state = {}
    for number in range(clients):
        wire = socket.create_connection((host, int(port)), timeout=60)
        wire.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        picker.register(wire, selectors.EVENT_READ)
        state[wire] = [b"", 0.0, number * 7]
    before, began = time.process_time(), clock()
    end = began + seconds
    for wire, own in state.items():
        own[1] = clock()
        wire.sendall(requests[own[2] % len(requests)])
    left = clients
    while left:
        ready = picker.select(60)
        if not ready:
            raise RuntimeError("the server did not answer within 60 s")
        for key, _ in ready:
            wire, own = key.fileobj, state[key.fileobj]
            data = wire.recv(1 << 16)
            own[0] += data
            if not data:
                raise RuntimeError(f"the server ended a connection: {own[0][:200]!r}")
            if not complete(own[0]):
                continue
            now = clock()
            found.append((now - own[1]) * 1e3)
            own[0], own[2] = b"", own[2] + 1
            if now < end:
                own[1] = clock()
                wire.sendall(requests[own[2] % len(requests)])
            else:
                picker.unregister(wire)
                wire.close()
                left -= 1
    return found, clock() - began, time.process_time() - before


def complete(data: bytes) -> bool:
    """Whether an HTTP answer of status 200 is there, whole."""
    head, gap, body = data.partition(b"\r\n\r\n")
    if not gap:
        return False
    if not head.startswith(b"HTTP/1.1 200"):
        raise RuntimeError(f"the server answered {data[:300]!r}")
    fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:] if b": " in line)
    if fields.get(b"transfer-encoding") == b"chunked":
        return whole(body)
    if b"content-length" not in fields:
        raise RuntimeError(f"the server tells no length: {head!r}")
    return len(body) >= int(fields[b"content-length"])


def whole(body: bytes) -> bool:
    """Whether the chunks of an answer are there, up to the empty one that ends it."""
    while True:
        size, gap, rest = body.partition(b"\r\n")
        if not gap or len(rest) < int(size, 16) + 2:
            return False
        if not int(size, 16):
            return True
        body = rest[int(size, 16) + 2 :]


SESSIONS = {}


def bare(file: str, runtime: dict, sample: np.ndarray, seconds: float) -> tuple[list[float], float, float]:
    """onnxruntime without a server, one example at a time; as `ask`."""
    if file not in SESSIONS:
        SESSIONS[file] = create(Path(file), runtime, {}, {})[0]
        for _ in range(50):
            SESSIONS[file].run(None, {SESSIONS[file].get_inputs()[0].name: sample[:1]})
    session, clock, found = SESSIONS[file], time.perf_counter, []
    name, before, began = session.get_inputs()[0].name, time.process_time(), clock()
    now = began
    while now < began + seconds:
        feed = {name: sample[(at := len(found) % len(sample)) : at + 1]}
        start = clock()
        session.run(None, feed)
        now = clock()
        found.append((now - start) * 1e3)
    return found, clock() - began, time.process_time() - before


# ---- models, and the server with both


def tell(event: Event) -> None:
    """Progress, on standard error."""
    if event.kind == "step_started":
        print(event.step, file=sys.stderr)


def models_of(path: Path, sets: dict[str, str], store: Store):
    """(float teacher, int8 artifact as shipments)."""
    recipe, _ = load(path, sets)
    base = path.absolute().parent
    runner = Runner(recipe, base, plan(recipe, base), store, Events(tell))
    with importable(base):
        outcome = runner.run()[0]
    target, sample = outcome.goal.target, runner.data.test.inputs(slice(0, EXAMPLES))
    keys = outcome.goal.baseline, outcome.goal.candidates[outcome.choice.chosen]
    files = {name: runner.candidate(key).onnx for name, key in zip(NAMES, keys, strict=True)}
    answers = outputs(target, files, sample)
    told = runner.data.test.preprocessing.model_dump(mode="json")
    return [
        Shipment(name, load_model(file), target, runner.data.classes, told, sample, answers[name])
        for name, file in files.items()
    ]


def requests_of(place: str, shipment: Shipment, binary: bool) -> list[bytes]:
    """Whole HTTP requests for the examples of a shipment."""
    made = []
    names = shipment.model.inputs[0].name, shipment.model.outputs[0].name
    for i in range(len(shipment.sample)):
        body, headers = request(*names, shipment.sample[i : i + 1], binary=binary)
        headers |= {"Host": place, "Content-Length": str(len(body))}
        head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        made.append(f"POST /v2/models/{shipment.name}/infer HTTP/1.1\r\n{head}\r\n".encode() + body)
    return made


def checked(place: str, shipment: Shipment) -> tuple[bool, str, bool]:
    """Waits for a model; whether it answers bit for bit, in words, and whether it takes binary tensors."""
    endpoint, end = connect(f"http://{place}/v2/models/{shipment.name}"), time.monotonic() + 30
    while not endpoint.ready() and time.monotonic() < end:
        time.sleep(0.05)
    n = len(shipment.sample)
    got = np.concatenate([endpoint.infer(shipment.sample[i : i + 1]) for i in range(n)])
    runtime = shipment.target.runtime.model_dump()
    session = create(shipment.model.path, runtime, {}, {})[0]
    name = session.get_inputs()[0].name
    own = np.concatenate([session.run(None, {name: shipment.sample[i : i + 1]})[0] for i in range(n)])
    found = compare(own, got, grain_of(shipment.model.path, own))
    binary = "binary" in endpoint.how
    endpoint.close()
    return found.ulps == 0, str(found), binary


# ---- measuring and telling


def measured(place, shipments, binary, pool, rounds, seconds):
    """Taken by (clients, model); clients 0: without a server."""
    found = {(clients, name): Taken() for clients in (0, *CLIENTS) for name in NAMES}
    requests = {shipment.name: requests_of(place, shipment, binary) for shipment in shipments}
    for clients in CLIENTS:
        for turn in range(rounds + 1):
            for shipment in shipments[:: 1 if turn % 2 else -1]:
                jobs = [(clients, ask, (place, requests[shipment.name], clients, seconds))]
                if clients == 1:
                    runtime = shipment.target.runtime.model_dump()
                    jobs.append((0, bare, (str(shipment.model.path), runtime, shipment.sample, seconds)))
                for key, job, words in jobs:
                    got = pool.submit(job, *words).result()
                    if turn:  # the first is for warming up
                        found[key, shipment.name].add(*got)
    return found


def cell(found: Interval | None, digits: int) -> str:
    return f"{found.value:,.{digits}f} ({found.low:,.{digits}f} to {found.high:,.{digits}f})" if found else "too few"


def tables(found) -> list[tuple[str, Interval | None, float]]:
    """Prints them; gives the goals: what, its interval, the least that it must be."""
    goals = []
    print("| clients | model | p50 ms | p99 ms | requests a second | clients' cores |")
    print("|---:|---|---:|---:|---:|---:|")
    for clients in (*CLIENTS, 0):
        for name in NAMES:
            taken = found[clients, name]
            flat = [ms for block in taken.blocks for ms in block]
            p50, p99 = (cell(quantile_interval(flat, q, CONFIDENCE), 3) for q in (0.5, 0.99))
            rate, who = cell(geometric_mean(taken.rates, CONFIDENCE), 0), str(clients) if clients else "no server"
            cores = f"{np.mean(taken.cores):.2f}" if clients else "-"
            print(f"| {who} | {name} | {p50} | {p99} | {rate} | {cores} |")
    print("\n| clients | int8 against float: p50, times shorter | throughput, times higher |")
    print("|---:|---:|---:|")
    for clients in (*CLIENTS, 0):
        ours, theirs = found[clients, "int8"], found[clients, "float"]
        latency = paired_ratio(theirs.blocks, ours.blocks, CONFIDENCE)
        rate = paired_ratio([[r] for r in ours.rates], [[r] for r in theirs.rates], CONFIDENCE)
        print(f"| {clients or 'no server'} | {cell(latency, 2)} | {cell(rate, 2)} |")
        if clients:
            goals.append((f"{clients} at once: int8's p50, times shorter than float's", latency, 1.0))
            goals.append((f"{clients} at once: int8's throughput, times float's", rate, 1.0))
    print("\n| model | p50 through the server, ms | bare, ms | the server adds, ms | its share of the time |")
    print("|---|---:|---:|---:|---:|")
    for name in NAMES:
        pairs = zip(found[1, name].blocks, found[0, name].blocks, strict=True)
        served, alone = np.asarray([(np.median(a), np.median(b)) for a, b in pairs]).T
        cells = (served, alone, served - alone)
        told = (cell(quantile_interval(x, 0.5, CONFIDENCE), 3) for x in cells)
        share = cell(quantile_interval(100 * (1 - alone / served), 0.5, CONFIDENCE), 0)
        print(f"| {name} | {' | '.join(told)} | {share} % |")
    return goals


def verdicts(equal: dict[str, str], goals, found) -> int:
    """Prints each goal; the exit code."""
    rows = [(f"{name} through the server: {told}", 0 if ok else 1) for name, (ok, told) in equal.items()]
    for what, interval, least in goals:
        code = 4 if interval is None else 0 if interval.low >= least else 1 if interval.high < least else 4
        rows.append((f"{what}: {cell(interval, 2)}, at least {least:g}", code))
    most = max(np.mean(found[clients, name].cores) for clients in CLIENTS for name in NAMES)
    rows.append((f"the clients took {most:.2f} cores at most, below {CORES:g}", 0 if most < CORES else 1))
    print("\n| goal | holds |\n|---|---|")
    for what, code in rows:
        print(f"| {what} | { {0: 'yes', 1: 'no', 4: 'undecided'}[code] } |")
    codes = [code for _, code in rows]
    return 1 if 1 in codes else max(codes)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipe", type=Path, nargs="?", default=ROOT / "recipes" / "digits.yaml")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--server", choices=("triton", "kserve", "mlserver"), default="triton")
    parser.add_argument("--servers", type=Path, metavar="FOLDER", help="with the servers' environments")
    parser.add_argument("--quick", action="store_true", help="6 short rounds: shows that it works, and no more")
    options = parser.parse_args()
    if options.servers:
        os.environ["ATTAR_SERVERS"] = str(options.servers.absolute())
    sys.path.insert(0, str(ROOT / "tests" / "servers"))
    import running

    rounds, seconds = (6, 0.15) if options.quick else (12, 1.0)
    store = Store(Path(os.environ.get("ATTAR_STORE") or ".attar/store"))
    try:
        shipments = models_of(options.recipe, dict(item.split("=", 1) for item in options.set), store)
        with tempfile.TemporaryDirectory(prefix="attar-serving-") as name:
            for shipment in shipments:
                ours = fitted(shipment, options.server, "")
                layout = SERVERS[options.server](ours, Options())
                if options.server == "kserve":  # its server here takes both models, and reads no InferenceService
                    layout = replace(layout, alone="", root={})
                publish(layout, Path(name), ours.name)
            with (
                getattr(running, options.server)(Path(name)) as server,
                ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool,
            ):
                looked = {shipment.name: checked(server.http, shipment) for shipment in shipments}
                binary = all(binary for *_, binary in looked.values())
                endpoint = connect(f"http://{server.http}/v2/models/int8")
                serves = endpoint.metadata().server
                endpoint.close()
                found = measured(server.http, shipments, binary, pool, rounds, seconds)
        threads = shipments[0].target.runtime.threads
    except AttarError as error:
        sys.exit(str(error))
    finally:
        store.close()
    how = "binary tensors" if binary else "JSON"
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, onnxruntime {onnxruntime.__version__}, {threads} thread(s) ",
        end="",
    )
    print(f"a model; {serves} over HTTP with {how}; {options.recipe.stem}, batch 1, {rounds} rounds of {seconds:g} s")
    print(f"load average: {os.getloadavg()[0]:.2f}\n")
    goals = tables(found)
    return verdicts({name: row[:2] for name, row in looked.items()}, goals, found)


if __name__ == "__main__":
    sys.exit(main())
