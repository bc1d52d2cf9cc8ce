"""Installs a real inference server into an environment of its own, by pip.

    python tests/servers/install.py NAME [FOLDER]

NAME is triton, mlserver or kserve; FOLDER is `.servers/NAME` in the repository, or NAME in the folder that the variable
ATTAR_SERVERS names. What is there already stays. Their requirements contradict each other and attar's own, so that none
of them can live in attar's environment.
"""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from pathlib import Path

__all__ = ["REQUIREMENTS", "folder_of", "installed", "is_installed", "python_of"]

REQUIREMENTS = {
    # With numpy 2 beside its Python backend, Triton's answers come back empty, without an error.
    "triton": (("--no-deps", "nvidia-pytriton>=0.7,<0.8"), ("onnxruntime>=1.22", "numpy>=1.26,<2")),
    "mlserver": (("mlserver>=1.7.1", "onnxruntime>=1.22"),),
    "kserve": (("kserve>=0.21", "onnxruntime>=1.22"),),
}
"""What pip installs for a server, call by call. Of pytriton only the wheel is wanted: it brings Triton's server binary
and its Python backend; what its Python half needs weighs 130 MB more."""


def folder_of(name: str) -> Path:
    """Where the environment of a server is looked for."""
    root = os.environ.get("ATTAR_SERVERS") or Path(__file__).parents[2] / ".servers"
    return Path(root) / name


def python_of(folder: Path) -> Path:
    """The interpreter of an environment."""
    return folder / "bin" / "python"


def is_installed(name: str) -> bool:
    """Whether the environment of a server was finished, with these requirements."""
    mark = folder_of(name) / ".installed"
    return mark.is_file() and mark.read_text(encoding="utf-8") == _wanted(name)


def installed(name: str, folder: Path | None = None) -> Path:
    """The environment of a server, made if it is not there yet. Others who want it at the same time wait.

    Raises:
        RuntimeError: pip failed; with what it said.
    """
    folder = folder or folder_of(name)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (folder.parent / f".{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # given back by the kernel when this process ends, however it ends
        mark = folder / ".installed"
        if mark.is_file() and mark.read_text(encoding="utf-8") == _wanted(name):
            return folder
        if not python_of(folder).exists():
            _run(sys.executable, "-m", "venv", "--without-pip", str(folder))
        # What an installation that was cut off left is taken up again by pip.
        pip = (sys.executable, "-m", "pip", "--python", str(python_of(folder)), "--disable-pip-version-check")
        for words in REQUIREMENTS[name]:
            _run(*pip, "install", "--quiet", "--no-input", *words)
        mark.write_text(_wanted(name), encoding="utf-8")
    return folder


def _wanted(name: str) -> str:
    return "".join(" ".join(words) + "\n" for words in REQUIREMENTS[name])


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout}{done.stderr}")


def main(words: list[str]) -> int:
    """The command."""
    if not 1 <= len(words) <= 2 or words[0] not in REQUIREMENTS:
        print(f"usage: python {Path(__file__).name} {'|'.join(REQUIREMENTS)} [FOLDER]", file=sys.stderr)
        return 2
    print(installed(words[0], Path(words[1]).absolute() if words[1:] else None))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
