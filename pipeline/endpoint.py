"""Asks a running server whether it serves an artifact as it was judged, and what serving adds.

The golden sample that lies with the artifact is sent one example at a time. The answers are set beside those stored
with it and beside those of the bare runtime: the same file in onnxruntime in this process, with the target's provider
and threads. Then single requests are timed in turns with the bare runtime, and many clients at once likewise.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pipeline import reference
from pipeline.report import words
from pipeline.report.endpoint_model import Answers, Probed, added, numbers
from targets.artifact import Artifact
from targets.errors import DeviceError, Fault, InputError
from targets.inputs import open_axes
from targets.probe import machine
from targets.probe.errors import ProbeError, short
from targets.servers.agreement import Agreement, Grain, compare, grain_of
from targets.servers.protocol import Address, Endpoint, Metadata, connect
from targets.servers.shipment import Shipment
from targets.servers.turns import Call, Rate, at_once, in_turns

__all__ = ["probe"]

_ROUNDS, _LOADS = 12, 6

Arrays = NDArray[np.float32]


@dataclass(frozen=True)
class _Bare:
    """The artifact in onnxruntime, in this process."""

    session: Any
    source: str
    target: str
    sample: Arrays

    def __call__(self, number: int) -> Arrays:
        at = number % len(self.sample)
        found: Arrays = self.session.run([self.target], {self.source: self.sample[at : at + 1]})[0]
        return found


@dataclass
class _Client:
    """One connection to the server. `worst`: by example, the answer that was furthest from the one given before."""

    endpoint: Endpoint
    sample: Arrays
    known: Arrays
    worst: dict[int, Arrays]

    def __call__(self, number: int) -> None:
        at = number % len(self.sample)
        got, known = self.endpoint.infer(self.sample[at : at + 1]), self.known[at : at + 1]
        if got.shape != known.shape:
            what = f"answered shape {got.shape} under load, and {known.shape} before"
            raise DeviceError(str(Fault(what, file=self.endpoint.url, help="see the server's own log")))
        if not np.array_equal(got, known):
            before = self.worst.get(at, known)
            if not np.abs(got - known).max() <= np.abs(before - known).max():  # true for what is no number, too
                self.worst[at] = got


def probe(
    url: str,
    folder: Path,
    *,
    model: str = "",
    seconds: float = 10,
    clients: int = 4,
    say: Callable[[str], None] = lambda text: None,
) -> Probed:
    """Asks an endpoint.

    Args:
        url: see `targets.servers.protocol`.
        folder: of the artifact that is served there.
        model: its name on the server, where the URL has none; empty: the artifact's.
        seconds: for all that is timed, about. clients: that ask at once.

    Raises:
        InputError: no such URL or artifact, or the server's model is another.
        DeviceError: the server does not answer, or answers nonsense.
    """
    if not 1 <= seconds <= 3600:
        raise InputError(Fault(f"{seconds:g} must be from 1 to 3600", "--seconds"))
    if not 1 <= clients <= 64:
        raise InputError(Fault(f"{clients} must be from 1 to 64", "--clients"))
    shipment = _shipment(folder, model)
    address = Address.of(url)
    first = connect(url, model=shipment.name)
    endpoints = [first]
    try:
        metadata = first.metadata()
        _fits(first.url, metadata, shipment.model)
        if not first.ready():
            by_hand = "" if address.scheme == "grpc" else f"; `curl -i {first.url}/ready`"
            help = f"see the server's log{by_hand}"
            raise DeviceError(str(Fault("is there, and not ready", file=first.url, help=help)))
        say(f"asking {first.url} for the {len(shipment.sample)} answers that lie with the artifact")
        given = np.concatenate([first.infer(shipment.sample[i : i + 1]) for i in range(len(shipment.sample))])
        endpoints += [connect(url, model=shipment.name) for _ in range(clients - 1)]
        return _probed(shipment, address, endpoints, metadata, given, seconds, say)
    finally:
        for endpoint in endpoints:
            endpoint.close()


def _shipment(folder: Path, model: str) -> Shipment:
    from pipeline.shipments import shipment

    found = shipment(folder, model or None, even_if="missed")
    if not len(found.sample):
        help = "run its recipe with data.reference above 0"
        raise InputError(Fault("holds no examples to ask with", file=str(folder / reference.NAME), help=help))
    batch = found.model.inputs[0].shape[0]
    if isinstance(batch, int) and batch > 1:
        what = f"has a fixed batch of {batch}, and examples are asked for one at a time"
        help = "export it again with an open batch: `export: {}` in the recipe, then `attar run`"
        raise InputError(Fault(what, file=str(found.model.path), help=help))
    return found


def _fits(url: str, metadata: Metadata, model: Artifact) -> None:
    """Raises InputError where the server's model takes or gives something else than the artifact."""
    for kind, theirs, ours in (
        ("input", metadata.inputs, model.inputs),
        ("output", metadata.outputs, model.outputs),
    ):
        told = [(each.name, each.datatype, each.shape) for each in theirs]
        fits = len(ours) == len(theirs) and all(
            name == value.name
            and datatype == "FP32"
            and len(shape) == len(value.shape)
            and all(-1 in (a, b) or a == b for a, b in zip(shape, value.sizes, strict=True))
            for (name, datatype, shape), value in zip(told, ours, strict=True)
        )
        if not fits:
            want = "; ".join(f"{value.name} FP32 ({', '.join(map(str, value.shape))})" for value in ours)
            has = "; ".join(map(str, theirs)) or "not told"
            what = f"serves another model: its {kind} is {has}, and the artifact's is {want}"
            raise InputError(Fault(what, file=url, help="give the folder of the artifact that is served, or its URL"))


def _probed(
    shipment: Shipment,
    address: Address,
    endpoints: list[Endpoint],
    metadata: Metadata,
    given: Arrays,
    seconds: float,
    say: Callable[[str], None],
) -> Probed:
    target, first = shipment.target, endpoints[0]
    grain = grain_of(shipment.model.path, shipment.answers)
    stored = _compared(first.url, shipment.answers, given, grain)
    runner, why_not = _bare(shipment)
    notes = [why_not] if why_not else []
    bare = None
    if runner is not None:
        own = np.concatenate([runner(i) for i in range(len(shipment.sample))])
        bare = compare(own, given, grain)
    before = machine.state()
    say(f"timing requests, in turns with the bare runtime, {seconds:g} s")
    clients = [_Client(endpoint, shipment.sample, given, {}) for endpoint in endpoints]
    calls: dict[str, Call] = {"server": clients[0]} | ({"bare": runner} if runner is not None else {})
    latencies = in_turns(calls, seconds / 2, _ROUNDS)
    rates: dict[str, list[Rate]] = {name: [] for name in calls}
    for turn in range(_LOADS):
        for name in list(calls)[:: 1 if turn % 2 else -1]:
            many: list[Call] = list(clients) if name == "server" else [calls[name]] * len(clients)
            rates[name].append(at_once(many, seconds / 2 / _LOADS / len(calls)))
    loaded = compare(given, _worst(clients, given), grain)
    if loaded.verdict != "equal":
        notes.append(f"while {len(clients)} clients asked at once some answers were others than alone: {loaded}")
    confidence = target.meter.confidence
    found = {name: numbers(latencies[name], rates[name], confidence) for name in calls}
    cores = float(np.mean([rate.client_cores for rate in rates["server"]]))
    cpu = machine.cpu()
    environment = {"cpu": cpu, "before": before, "onnxruntime": _onnxruntime(), "numpy": np.__version__}
    if (load := before.get("load_average_1min", 0)) > cpu["cores"] + 0.5:
        notes.append(f"the machine was busy (load {load:g} on {cpu['cores']} cores): ratios suffer less than times")
    if address.here:
        notes.append(f"server and clients shared the {words.plural(cpu['cores'], 'core')} of this machine")
    return Probed(
        verdict=_verdict(address.here, stored, bare, loaded),
        url=first.url,
        serves=metadata.server,
        versions=metadata.versions,
        how=first.how,
        artifact=str(shipment.model.path.parent),
        sha256=shipment.model.sha256,
        target=target.name,
        stored=Answers.of(stored),
        bare=Answers.of(bare) if bare else None,
        loaded=Answers.of(loaded),
        clients=len(clients),
        client_cores=round(cores, 3),
        server=found["server"],
        measured_bare=found.get("bare", {}),
        adds=added(latencies, rates, confidence),
        notes=tuple(notes),
        environment=environment,
        raw={
            "latency_ms": latencies,
            "throughput_per_s": {name: [round(rate.per_s, 2) for rate in many] for name, many in rates.items()},
        },
    )


def _compared(url: str, wanted: Arrays, got: Arrays, grain: Grain) -> Agreement:
    if wanted.shape != got.shape:
        what = f"answers of shape {got.shape}, where the artifact gives {wanted.shape}"
        raise DeviceError(str(Fault(what, file=url, help="is it the artifact of this folder?")))
    return compare(wanted, got, grain)


def _verdict(
    here: bool, stored: Agreement, bare: Agreement | None, loaded: Agreement
) -> Literal["equal", "close", "differs"]:
    """Elsewhere other kernels may run, so that close is all that can be asked; here the runtime is the same one."""
    found = [one.verdict for one in (stored, bare) if one is not None]
    if loaded.verdict == "differs":
        return "differs"
    if "equal" in found:
        return "equal"
    return "close" if "close" in found and not here else "differs"


def _worst(clients: list[_Client], given: Arrays) -> Arrays:
    """What the clients were answered under load, at its worst."""
    found = given.copy()
    for client in clients:
        for at, got in client.worst.items():
            if not np.abs(got[0] - given[at]).max() <= np.abs(found[at] - given[at]).max():
                found[at] = got[0]
    return found


def _bare(shipment: Shipment) -> tuple[_Bare | None, str]:
    """The artifact in this process; or None, and why it cannot run here."""
    from targets.probe.session import create

    model, runtime = shipment.model, shipment.target.runtime
    source = model.inputs[0].name
    shape = (1, *shipment.sample.shape[1:])
    axes = open_axes(model, {source: shape}) if runtime.fixed_shapes else {}
    try:
        session, _ = create(model.path, runtime.model_dump(), axes, {})
        found = _Bare(session, source, model.outputs[0].name, np.ascontiguousarray(shipment.sample, np.float32))
        found(0)
    except ProbeError as error:
        return None, f"the bare runtime cannot run here: {error}"
    except Exception as error:  # onnxruntime has a type of its own for each of its errors
        return None, f"the bare runtime cannot run here: {short(error)}"
    return found, ""


def _onnxruntime() -> str:
    import onnxruntime

    return str(onnxruntime.__version__)
