"""Logins, which come from the environment: what to say where a server refuses one."""

from __future__ import annotations

import os

from targets.errors import DeviceError

__all__ = ["refused"]


def refused(place: str, status: int, user: str, password: str) -> DeviceError:
    """The error of a server that lets nobody in, or not this one.

    Args:
        status: of HTTP: 401 or 403.
        user, password: the variables that a login is taken from.
    """
    name = os.environ.get(user, "")
    if not name:
        what, help = "it wants a login", f"set {user} and {password}, for this command alone"
    elif not os.environ.get(password):
        what, help = f"{name!r} gave no password", f"set {password}, too"
    elif status == 401:
        what = f"it does not take the login of {name!r}"
        help = f"is the password in {password} right, and may {name!r} do this there?"
    else:
        what, help = f"{name!r} may not do this there", "ask who runs it for the right to, or log in as another"
    return DeviceError(f"{place}: the server refuses it: {what} (HTTP {status})\n   help: {help}")
