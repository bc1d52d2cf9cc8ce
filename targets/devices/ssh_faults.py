"""What OpenSSH's client says when it cannot do it, as one clear fault: what happened, why, what to do next.

The texts are those of OpenSSH 7.6 to 10 in the C locale (ssh.c, sshconnect.c, sshconnect2.c, misc.c, clientloop.c).
"""

from __future__ import annotations

import re
import shlex

from targets.devices.stream import NO_ROOM, LostError, last_words
from targets.errors import DeviceError
from targets.target import Connection

__all__ = ["explain"]

# Pattern -> what it means, for faults that another try may heal.
_FLEETING = (
    (r"Connection refused", "was refused: nothing listens there (is the device up, sshd running, and the port right?)"),
    (
        r"(Connection|Operation) timed out|Connection to .* timed out",
        "timed out: is the device up, and no firewall between? connection.connect_timeout_s is {timeout:g} s",
    ),
    (r"No route to host|Network is (unreachable|down)|Host is (down|unreachable)", "has no route: check the network"),
    (r"Temporary failure in name resolution", "failed, as no name server answers; check this machine's network"),
    (
        r"kex_exchange_identification|Connection (closed|reset) by|Connection to .* closed by remote host|Broken pipe|"
        r"Timeout, server .* not responding",
        "was closed by the other side",
    ),
)


def explain(address: str, connection: Connection, code: int | None, words: str, why: str) -> DeviceError:
    """The fault of a keeper that did not start.

    Args:
        code: exit code of ssh, which is the remote command's unless it is 255; None: ssh hung and was killed.
        words: standard error. why: what the stream saw.
    """
    name = address.removeprefix("ssh://")
    python = connection.python or "python3"
    if code == 255:
        return _of_ssh(address, connection, words)
    if "attar needs Python" in words:
        text = next(line for line in words.splitlines() if "attar needs Python" in line)
        return DeviceError(f"{name}: {text} ({python}); let connection.python in the target's profile name a newer one")
    if "No space left on device" in words:
        return DeviceError(f"{name} {NO_ROOM}")
    if code in (126, 127):
        return DeviceError(
            f"{name} has no Python called {python}; install Python 3.9 or later there, with numpy and onnxruntime, "
            f"or let connection.python in the target's profile name one{last_words(words)}"
        )
    if code is None:
        return LostError(f"the connection to {name} was made, but the probe did not start: {why}{last_words(words)}")
    how = f"killed by signal {-code}" if code < 0 else f"exit code {code}"
    return DeviceError(f"{name} did not start the probe with {python} ({how}; {why}){last_words(words)}")


def _of_ssh(address: str, connection: Connection, words: str) -> DeviceError:
    name = address.removeprefix("ssh://")
    by_hand = _by_hand(name, connection)
    known = connection.known_hosts or "~/.ssh/known_hosts"
    if "HOST IDENTIFICATION HAS CHANGED" in words or "REVOKED HOST KEY" in words:
        print_ = re.search(r"SHA256:\S+", words)
        shows = f" It shows {print_.group().rstrip('.')}." if print_ else ""
        return DeviceError(
            f"THE HOST KEY OF {name} HAS CHANGED: somebody may be listening in, or the device was set up anew."
            f"{shows}\nNothing was sent. Ask who runs the device; only if the new key is right, remove the old one: "
            f"ssh-keygen -f {known} -R {_known_as(name)}"
        )
    if "Host key verification failed" in words or "host key is known for" in words:
        return DeviceError(
            f"the host key of {name} is not in {known}: connect once by hand with `{by_hand}`, and compare the "
            "fingerprint that it shows with the device's own (there: ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub)"
        )
    if re.search(r"Could not resolve hostname .*(not known|No address|nodename|Non-recoverable)", words):
        return DeviceError(
            f"{name} is not known by that name: neither the network nor ~/.ssh/config knows it; "
            "check `device:` in the target's profile"
        )
    if re.search(r"Permission denied|Too many authentication failures|UNPROTECTED PRIVATE KEY", words):
        key = f" with {connection.identity_file}" if connection.identity_file else ""
        why = re.search(r"(bad permissions|No such file or directory|invalid format|error in libcrypto)", words)
        said = f" ({why.group()})" if why else ""
        return DeviceError(
            f"{name} did not let us in{key}{said}: no key or agent here is accepted there, and no password "
            f"is asked for; add a key (ssh-copy-id, or ssh-add for one with a passphrase), and try `{by_hand}`"
        )
    for pattern, meaning in _FLEETING:
        if re.search(pattern, words):
            meaning = meaning.format(timeout=connection.connect_timeout_s)
            return LostError(f"the connection to {name} {meaning}{last_words(words, lines=2)}")
    return LostError(f"ssh could not connect to {name}; try `{by_hand}`{last_words(words)}")


def _by_hand(name: str, connection: Connection) -> str:
    """The command that a person would type."""
    words = ["ssh"]
    if connection.identity_file:
        words += ["-i", connection.identity_file]
    if connection.known_hosts:
        words += ["-o", f'UserKnownHostsFile="{connection.known_hosts}"']  # ssh splits at spaces
    return shlex.join([*words, name if ":" not in name else "ssh://" + name])


def _known_as(name: str) -> str:
    """How known_hosts calls the host."""
    match = re.fullmatch(r"(?:[^@]+@)?(?:\[(.+)\]|([^:]+))(?::(\d+))?", name)
    assert match
    literal, host, port = match.groups()
    return f"'[{literal or host}]:{port}'" if port and port != "22" else literal or host
