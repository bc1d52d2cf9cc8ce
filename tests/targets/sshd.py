"""A real OpenSSH server on loopback, for one user, with keys and a home for files of its own."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from targets.target import Connection, Target

SSHD = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")


class Sshd:
    """The server.

    Attributes:
        cache: what stands for ~/.cache/attar there.
        identity, known_hosts: what a client needs; `other` is a key that is not let in.
    """

    def __init__(self, folder):
        if SSHD is None or shutil.which("ssh") is None or shutil.which("ssh-keygen") is None:
            pytest.skip("OpenSSH's server and client are not both installed (apt-get install openssh-server)")
        self.folder, self.process = folder, None
        self.identity, self.other, self.known_hosts = folder / "key", folder / "other", folder / "known hosts"
        self.cache = folder / "cache" / "attar"
        for key in ("host", "key", "other"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / key], check=True)
        shutil.copy(folder / "key.pub", folder / "authorized")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.write_known(folder / "host.pub")
        (folder / "tmp").mkdir()
        (folder / "config").write_text(
            f"Port {self.port}\nListenAddress 127.0.0.1\nHostKey {folder}/host\n"
            f"AuthorizedKeysFile {folder}/authorized\n"
            "PidFile none\nUsePAM no\nPasswordAuthentication no\nKbdInteractiveAuthentication no\nStrictModes no\n"
            f"PermitRootLogin yes\nLogLevel VERBOSE\nSetEnv XDG_CACHE_HOME={folder}/cache TMPDIR={folder}/tmp\n"
        )
        if os.getuid() == 0:
            try:
                Path("/run/sshd").mkdir(exist_ok=True)  # where the server confines itself before login
            except OSError as error:
                pytest.skip(f"sshd cannot run here: /run/sshd cannot be made: {error.strerror}")
        self.start()

    def write_known(self, public):
        self.known_hosts.write_text(f"[127.0.0.1]:{self.port} {' '.join(public.read_text().split()[:2])}\n")

    def start(self):
        with (self.folder / "log").open("ab") as log:
            command = [SSHD, "-D", "-e", "-f", self.folder / "config"]
            self.process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline and self.process.poll() is None:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.02)
        words = (self.folder / "log").read_text().strip()
        self.stop()
        pytest.skip(f"sshd cannot run here: {words}")

    def sessions(self):
        """Its processes that serve one connection each."""
        found = []
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                fields = stat.read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if fields[0] != "Z" and int(fields[1]) == self.process.pid:
                found.append(int(stat.parent.name))
        return found

    def drop(self):
        """Breaks all connections, without a word to either side."""
        for pid in self.sessions():
            os.kill(pid, signal.SIGKILL)

    def stop(self):
        """Ends the server, connections included."""
        sessions = self.sessions()  # before they become somebody else's children
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        for pid in sessions:
            os.kill(pid, signal.SIGKILL)

    def target(self, address="", **connection):
        """A profile that reaches it."""
        defaults = {"python": sys.executable, "identity_file": str(self.identity), "known_hosts": str(self.known_hosts)}
        return Target(
            name="board",
            device=address or f"ssh://127.0.0.1:{self.port}",
            connection=Connection(**{**defaults, "connect_timeout_s": 5, "lease_wait_s": 20, **connection}),
        )
