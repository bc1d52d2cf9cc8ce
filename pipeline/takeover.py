"""A new version of a model takes over on a running Triton, and is never answered from before it was proven there.

    publish it as a hidden model of its own, load that, ask it for the golden sample, unload it and take it away
    publish it as the next version, load the model; the server retires the old version once the new one is ready
    ask the new version again; where anything is unequal, take it away and have the old one loaded

"Equal" is bit for bit, or within one unit in the last place of float32. Until a version is proven it holds a file that
says so, and what its publication changed beside it: what a kill left is taken back by the next takeover, first of all.
A server loads the newest version that lies there: where another one serves, nothing is begun.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path

import numpy as np

from pipeline import reference
from pipeline.evidence import UNPROVEN
from targets.errors import AttarError, DeviceError, Fault, InputError
from targets.files import sync
from targets.servers.agreement import Agreement, compare, grain_of
from targets.servers.control import Control
from targets.servers.disk import GONE, alone, newest, no_link, read, unwritable, versions
from targets.servers.protocol import Address, connect
from targets.servers.protocol_http import HttpEndpoint
from targets.servers.publish import changes, place, remove
from targets.servers.shipment import Layout, Shipment
from targets.servers.undo import Change, forget, noted, recalled, retract, settled

__all__ = ["control_of", "proven"]

_FORM = "--load takes http://HOST:PORT of a Triton with --model-control-mode=explicit"


def control_of(url: str) -> Control:
    """The model control at an address. Nothing is reached yet.

    Raises:
        InputError: it is no such address, or names a model: which one is known already.
    """
    if not url.startswith(("http://", "https://", "grpc://")):
        raise InputError(Fault("must begin with http:// or https://", file=url, help=_FORM))
    try:
        address = Address.of(url)
    except InputError as error:
        raise InputError([replace(fault, help=_FORM) for fault in error.faults]) from None
    if address.model and address.scheme != "grpc":
        raise InputError(Fault("has a path that names a model", file=url, help=f"{_FORM}; --name names the model"))
    return Control(url)


def proven(
    ours: Shipment,
    layout: Layout,
    trial: Layout,
    hidden: str,
    dest: Path,
    control: Control,
    say: Callable[[str], None],
) -> tuple[Path, str, int | None]:
    """Proves a layout on a server and has it served: its folder, how its answers agree, the version before.

    Raises:
        InputError: nothing to prove it by; or another version would be loaded, were this one taken back, than serves.
        DeviceError: the server does not answer, refuses it, or answers otherwise; what was served before still is.
    """
    if not len(ours.sample):
        help = "run its recipe with data.reference above 0, or leave --load out"
        raise InputError(Fault("holds no examples, so that nothing could be proven", file=reference.NAME, help=help))
    control.serving(ours.name)  # a server that is down is told before anything is written
    _no_mlserver(control.url)
    home = dest / ours.name
    with alone(dest):
        settled(home)
        before = _cleared(home, control, say)
        undo = changes(layout, dest, ours.name)  # what cannot be published is told first
        say(f"asking {control.url} for the {len(ours.sample)} answers that lie with the artifact, before it serves it")
        place(trial, dest, hidden)
        try:
            control.load(hidden)
            _prove(ours, layout, control, hidden, "1")
        except DeviceError as error:
            unseen = f"\n   does that server read {dest}?" if "failed to poll" in str(error) else ""
            raise DeviceError(f"{error}{unseen}\n   it was not published: {_now(control, home)}") from None
        finally:
            with suppress(AttarError):
                control.unload(hidden)
            remove(dest / hidden)
        number = (newest(home) or 0) + 1
        into = home / str(number)
        marked = replace(layout, version={**layout.version, UNPROVEN: noted(undo, dest)})
        try:
            place(marked, dest, ours.name, number)
            control.load(ours.name)
            found = _prove(ours, layout, control, ours.name, into.name)
            _mark_proven(into)
        except BaseException as error:  # Ctrl-C, too
            if not os.path.lexists(into):  # nothing was published
                raise
            state = _undone(into, undo, control, before)
            if isinstance(error, DeviceError):
                raise DeviceError(f"{error}\n   {state}") from None
            say(state)
            raise
    return into, str(found), before


def _no_mlserver(url: str) -> None:
    """Raises DeviceError for an MLServer: it lists its models as Triton does, and finds none that lie hidden."""
    name = ""
    with closing(HttpEndpoint(Address.of(url), 10.0)) as endpoint, suppress(DeviceError):  # it may not be told
        name = endpoint.server()["name"]
    if name == "mlserver":
        help = f"{_FORM}; MLServer takes a new version when it is started anew"
        raise DeviceError(str(Fault("is an MLServer, and no Triton", file=url, help=help)))


def _prove(ours: Shipment, layout: Layout, control: Control, name: str, version: str) -> Agreement:
    """How one version of a model on the server answers the golden sample.

    Raises:
        DeviceError: it does not answer, or not as the artifact did where it was judged.
    """
    k, fixed = len(ours.sample), ours.model.inputs[0].shape[0]
    step = fixed if isinstance(fixed, int) else min(layout.batch or k, k)
    parts = (np.arange(i, i + step) % k for i in range(0, k, step))  # a fixed batch is filled with examples over again
    url = f"{control.url}/v2/models/{name}/versions/{version}"
    help = "the server's processor or runtime is another, or it is at fault: judge it there with `attar validate`"
    try:
        with closing(connect(url)) as endpoint:
            got = control.watched(
                lambda: np.concatenate([endpoint.infer(ours.sample[rows]) for rows in parts])[:k],
                endpoint.close,
                f"an answer of {name} version {version}",
            )
    except InputError as error:  # the model was made to be asked so
        raise DeviceError(str(error)) from None
    wanted = ours.answers
    if got.shape != wanted.shape:
        what = f"answered shape {got.shape}, where the artifact gave {wanted.shape}"
        raise DeviceError(str(Fault(what, file=url, help=help)))
    found = compare(wanted, got, grain_of(ours.model.path, ours.answers))
    if found.verdict != "equal":
        what = f"does not answer as the artifact did where it was judged: {found}"
        raise DeviceError(str(Fault(what, file=url, help=help)))
    return found


def _cleared(home: Path, control: Control, say: Callable[[str], None]) -> int | None:
    """The version that serves and would be loaded again, once what a killed takeover left unproven is taken back.

    Raises:
        InputError: another one would be loaded than serves; or what was left cannot be taken back. Nothing was done.
    """
    no_link(home)
    left = {number: undo for number in versions(home) if (undo := _unproven(home / str(number))) is not None}
    serves = before = max(control.serving(home.name), default=None)
    others = [number for number in versions(home) if number not in left]
    lies = max(others, default=None)
    gone = serves not in left and serves == (lies or 0) + 1 and (home / GONE).is_dir()  # and the server was not told
    if gone:
        before = lies
    elif serves in left:
        before = max((number for number in others if number < serves), default=None)
    if serves and lies != before:
        what = f"holds no version, and version {serves} serves: does that server read {home.parent}?"
        call = f"curl -X POST {control.url}/v2/repository/models/{home.name}"
        help = f"give the folder that the server reads; or have it serve nothing of the model: `{call}/unload`"
        if lies:
            what = f"version {lies} lies there and is not what serves, which is {before or 'none that was proven'}"
            what += f": the server would load {lies} if the new one failed"
            help = f"load {lies} yourself: `{call}/load`; or take it away"
        raise InputError(Fault(what, file=str(home), help=help))
    for number, undo in sorted(left.items(), reverse=True):
        say(f"version {number} was never proven: its `attar ship --load` was killed")
        stays = retract(home / str(number), undo)
        say(_told(number, _back(control, home, before) if serves else _now(control, home), stays))
        forget(home)
    if gone:
        say(_told(f"{serves}, which was never proven,", _back(control, home, before), ()))
        forget(home)
    return before


def _unproven(folder: Path) -> tuple[Change, ...] | None:
    """What is to be put back with a version that a killed takeover left unproven; None: it was none of that.

    Raises:
        InputError: that cannot be told.
    """
    mark = folder / UNPROVEN
    if folder.is_symlink() or (note := read(mark)) is None:
        return None
    try:
        return recalled(note, folder.parent.parent)
    except ValueError:
        help = f"remove {folder} by hand, and load the model again"
        raise InputError(Fault("is not as attar wrote it", file=str(mark), help=help)) from None


def _mark_proven(folder: Path) -> None:
    try:
        (folder / UNPROVEN).unlink()
        sync(folder)
    except OSError as error:
        raise unwritable(folder, error) from None


def _undone(into: Path, undo: tuple[Change, ...], control: Control, before: int | None) -> str:
    """Takes a version away again and has the one before served; what came of it, in words. A version that cannot be
    taken away is at least not served: nothing of its model is, for the server would load it again."""
    home = into.parent
    try:
        stays = retract(into, undo)
    except InputError as error:
        return f"{error}\n   {_back(control, home, None)}"
    now = _back(control, home, before)
    forget(home)
    return _told(into.name, now, stays)


def _told(number: int | str, now: str, stays: Iterable[str]) -> str:
    return "\n   ".join((f"version {number} was taken away again: {now}", *stays))


def _back(control: Control, home: Path, before: int | None) -> str:
    """Has the version served again that was before; what came of it, in words."""
    try:
        control.load(home.name) if before else control.unload(home.name)
    except DeviceError as error:
        return _now(control, home, f"and then the server failed: {error}\n   ")
    return _now(control, home)


def _now(control: Control, home: Path, failed: str = "") -> str:
    """What is served of a model now, as the server says it: it may have died."""
    try:
        now = max(control.serving(home.name), default=None)
    except DeviceError:
        then = f"version {lies} is what it would load" if (lies := newest(home)) else "it has nothing of it to load"
        return f"the server does not answer any more; {then}"
    return failed + (f"version {now} serves" if now else "nothing of it is served")
