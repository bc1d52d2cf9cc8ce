"""A 64-bit Arm userland that qemu runs on this processor: right answers, and times that mean nothing.

It needs no Arm hardware, no container and no root: Debian's packages are unpacked into a folder, and a script that
starts their Python under qemu is the target's `connection.python`.
"""

import os
import shlex
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import onnxruntime
import pytest

QEMU = shutil.which("qemu-aarch64-static")
KEYS = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
SOURCE = f"deb [arch=arm64 signed-by={KEYS}] http://deb.debian.org/debian bookworm main\n"
LIBRARIES = "c6 gcc-s1 stdc++6 expat1 ffi8 ssl3 bz2-1.0 lzma5 uuid1 crypt1 python3.11-minimal python3.11-stdlib"
DEBS = ["python3.11-minimal", "zlib1g", *(f"lib{name}" for name in LIBRARIES.split())]
WHEELS = [f"--platform={kind}_aarch64" for kind in ("manylinux2014", "manylinux_2_27", "manylinux_2_28")]
PLAIN = "fp asimd evtstrm aes pmull sha1 sha2 crc32 cpuid"
DOT = f"{PLAIN} atomics fphp asimdhp asimdrdm lrcpc dcpop asimddp"
CPUS = {
    "cortex-a72": ("0xd08", PLAIN),
    "cortex-a76": ("0xd0b", DOT),
    "neoverse-n1": ("0xd0c", DOT),
}
"""qemu's name -> its number and features in /proc/cpuinfo."""


class Userland:
    """The unpacked packages."""

    def __init__(self, folder):
        self.folder, self.root = folder, folder / "root"

    def python(self, folder, cpu):
        """A script that is Python on such a processor; its /proc/cpuinfo is <folder>/<cpu>/proc/cpuinfo."""
        number, features = CPUS[cpu]
        above = folder / cpu
        (above / "proc").mkdir(parents=True)
        for entry in self.root.iterdir():
            (above / entry.name).symlink_to(entry)
        # qemu looks below -L first. With x86's text, onnxruntime would find no Arm processor, and crash when imported.
        core = f"Features\t: {features}\nCPU implementer\t: 0x41\nCPU architecture: 8\nCPU part\t: {number}\n\n"
        (above / "proc" / "cpuinfo").write_text("".join(f"processor\t: {i}\n{core}" for i in range(os.cpu_count())))
        script, words = folder / f"python-{cpu}", (QEMU, "-cpu", cpu, "-L", above, above / "usr/bin/python3.11")
        script.write_text(f'#!/bin/sh\nexec {shlex.join(map(str, words))} "$@"\n')
        script.chmod(0o755)
        return str(script)


def userland(cache):
    """The userland in a folder of `cache`, made once: 50 MB are fetched, 200 MB kept. Skips where it cannot be had."""
    missing = [name for name in ("apt-get", "dpkg-deb") if shutil.which(name) is None]
    if QEMU is None or missing:
        pytest.skip(f"{missing[0] if missing else 'qemu-aarch64-static'} is missing (apt-get install qemu-user-static)")
    done = cache / f"onnxruntime-{onnxruntime.__version__}"
    if not done.is_dir():
        if not KEYS.is_file():
            pytest.skip(f"{KEYS} is missing (apt-get install debian-archive-keyring)")
        building = cache / f"building-{os.getpid()}"
        try:
            _build(building)
            building.rename(done)
        finally:
            shutil.rmtree(building, ignore_errors=True)
    return Userland(done)


def _build(folder):
    for name in ("apt/state/lists/partial", "apt/cache/archives/partial", "debs", "wheels", "root"):
        (folder / name).mkdir(parents=True)
    (folder / "apt/status").touch()
    (folder / "apt/sources.list").write_text(SOURCE)
    settings = {
        "APT::Architecture": "arm64",
        "APT::Architectures": "arm64",
        "Dir::State": folder / "apt/state",
        "Dir::State::status": folder / "apt/status",
        "Dir::Cache": folder / "apt/cache",
        "Dir::Etc::SourceList": folder / "apt/sources.list",
        "Dir::Etc::SourceParts": "/dev/null",
        "APT::Sandbox::User": "root",
        "Acquire::Retries": "2",
    }
    apt = ["apt-get", "-q", *(f"-o{key}={value}" for key, value in settings.items())]
    _fetch("Debian's packages", [*apt, "update", "--error-on=any"], folder)
    _fetch("Debian's packages", [*apt, "download", *DEBS], folder / "debs")
    pip = [sys.executable, "-m", "pip", "download", "-q", "--only-binary=:all:", "--python-version=3.11", *WHEELS]
    _fetch("wheels", [*pip, "-d", folder / "wheels", f"onnxruntime=={onnxruntime.__version__}", "numpy"], folder)
    for package in (folder / "debs").iterdir():
        subprocess.run(["dpkg-deb", "-x", package, folder / "root"], check=True)
    for wheel in (folder / "wheels").iterdir():
        with zipfile.ZipFile(wheel) as packed:
            packed.extractall(folder / "root/usr/local/lib/python3.11/dist-packages")
    for name in ("apt", "debs", "wheels"):
        shutil.rmtree(folder / name)


def _fetch(what, command, folder):
    try:
        subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True, timeout=600)
    except (OSError, subprocess.SubprocessError) as error:
        words = (getattr(error, "stderr", "") or "").strip() or str(error)
        pytest.skip(f"{what} for aarch64 cannot be fetched: {words[-300:]}")
