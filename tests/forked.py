"""The command in real processes that have everything imported when they start: each is forked from one that did nothing
but that. For tests that start it many times over and kill it."""

import json
import os
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

SERVER = """
import json, os, sys
import networkx, onnxruntime.quantization, onnxscript, torch._dynamo, torch._export, torch.export, torch_pruning
import torch.onnx._internal.exporter._compat
import pipeline.run, stages.distill, stages.export, stages.prune, stages.quantize, stages.teacher
from pipeline.cli.app import main
for line in sys.stdin:
    order = json.loads(line)
    if pid := order.get("wait"):
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
    elif pid := os.fork():
        print(pid, flush=True)
    else:
        os.chdir(order["folder"])
        os.dup2(os.open(os.devnull, os.O_RDWR), 0)
        os.dup2(0, 1)
        os.dup2(os.open(order["told"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
        sys.argv = ["attar", *order["words"]]
        main()
"""


class Forked:
    """One run of the command.

    Attributes:
        told: the file that its standard error goes to.
    """

    def __init__(self, ask, folder, words):
        self.told, self._ask = Path(folder) / "told", ask
        self.pid = ask({"folder": str(folder), "told": str(self.told), "words": list(map(str, words))})

    def is_alive(self):
        stat = Path(f"/proc/{self.pid}/stat").read_text()
        return stat.rpartition(")")[2].split()[0] != "Z"  # until it is waited for

    def send_signal(self, number):
        os.kill(self.pid, number)

    def wait(self):
        """Its exit code; minus the number of a signal."""
        return self._ask({"wait": self.pid})


@contextmanager
def forking():
    """Gives a function of a folder and the command's words: a `Forked` that runs there."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "NO_COLOR": "1", "COLUMNS": "100"}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-P", "-c", SERVER], env=environment, **pipes) as server:

        def ask(order):
            server.stdin.write(json.dumps(order) + "\n")
            server.stdin.flush()
            return int(server.stdout.readline())

        yield lambda folder, *words: Forked(ask, folder, words)
        server.stdin.close()
    assert server.returncode in (0, -signal.SIGINT)
