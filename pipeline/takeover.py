"""A new version of a model takes over on a running Triton, and is never answered from before it was proven there.

    publish it as a hidden model of its own, load that, ask it for the golden sample, unload it and take it away
    publish it as the next version, load the model; the server retires the old version once the new one is ready
    ask the new version again; where anything is unequal, take it away and have the old one loaded

"Equal" is bit for bit, or within one unit in the last place of float32.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path

import numpy as np

from pipeline import reference
from targets.errors import AttarError, DeviceError, Fault, InputError
from targets.servers.agreement import Agreement, compare, grain_of
from targets.servers.control import Control
from targets.servers.disk import alone
from targets.servers.protocol import connect
from targets.servers.publish import changes, place, remove, retract
from targets.servers.shipment import Layout, Shipment

__all__ = ["proven"]


def proven(
    ours: Shipment,
    layout: Layout,
    trial: Layout,
    hidden: str,
    dest: Path,
    control: Control,
    say: Callable[[str], None],
) -> tuple[Path, str, int | None]:
    """Proves a layout on a server and has it served: its folder, how its answers agree, the version before."""
    if not len(ours.sample):
        help = "run its recipe with data.reference above 0, or leave --load out"
        raise InputError(Fault("holds no examples, so that nothing could be proven", file=reference.NAME, help=help))
    control.index()  # a server that is down is told before anything is written
    with alone(dest):
        before = max(control.serving(ours.name), default=None)
        stands = f"version {before} serves as before" if before else "nothing of it is served"
        say(f"asking {control.url} for the {len(ours.sample)} answers that lie with the artifact, before it serves it")
        place(trial, dest, hidden)
        try:
            control.load(hidden)
            _prove(ours, layout, control, hidden, "1")
        except DeviceError as error:
            unseen = f"\n   does that server read {dest}?" if "failed to poll" in str(error) else ""
            raise DeviceError(f"{error}{unseen}\n   it was not published: {stands}") from None
        finally:
            with suppress(AttarError):
                control.unload(hidden)
            remove(dest / hidden)
        undo = changes(layout, dest, ours.name)
        into = place(layout, dest, ours.name)
        try:
            control.load(ours.name)
            found = _prove(ours, layout, control, ours.name, into.name)
        except BaseException as error:  # Ctrl-C, too
            retract(into, undo)
            state = _back(ours.name, control, before)
            if isinstance(error, DeviceError):
                raise DeviceError(f"{error}\n   version {into.name} was taken away again: {state}") from None
            raise
    return into, str(found), before


def _prove(ours: Shipment, layout: Layout, control: Control, name: str, version: str) -> Agreement:
    """How one version of a model on the server answers the golden sample.

    Raises:
        DeviceError: it does not answer, or not as the artifact did where it was judged.
    """
    step = min(layout.batch or len(ours.sample), len(ours.sample))
    whole = len(ours.sample) // step * step  # a fixed batch takes no part of one
    url = f"{control.url}/v2/models/{name}/versions/{version}"
    help = "the server's processor or runtime is another, or it is at fault: judge it there with `attar validate`"
    try:
        with closing(connect(url)) as endpoint:
            got = np.concatenate([endpoint.infer(ours.sample[i : i + step]) for i in range(0, whole, step)])
    except InputError as error:  # the model was made to be asked so
        raise DeviceError(str(error)) from None
    wanted = ours.answers[:whole]
    if got.shape != wanted.shape:
        what = f"answered shape {got.shape}, where the artifact gave {wanted.shape}"
        raise DeviceError(str(Fault(what, file=url, help=help)))
    found = compare(wanted, got, grain_of(ours.model.path, ours.answers))
    if found.verdict != "equal":
        what = f"does not answer as the artifact did where it was judged: {found}"
        raise DeviceError(str(Fault(what, file=url, help=help)))
    return found


def _back(name: str, control: Control, before: int | None) -> str:
    """Has the version served again that was before; what came of it, in words."""
    try:
        control.load(name) if before else control.unload(name)
        now = max(control.serving(name), default=None)
    except DeviceError as error:
        return f"and then the server failed: {error}"
    return f"version {now} serves" if now else "nothing of it is served"
