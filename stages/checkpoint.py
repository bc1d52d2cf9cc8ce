"""A training run's state after its last whole epoch, safe against a kill at any instant.

Tensors go to `epoch-N.safetensors`, then `checkpoint.json` is moved into place, which is the moment that counts: a kill
before it leaves the epoch before.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from stages.network import plain
from targets.files import write_atomically

__all__ = ["Checkpoint"]


class Checkpoint:
    """Saves and restores a module, a loss with weights of its own, and the optimizer's momentum.

    Args:
        folder: outlives a kill.
        identity: a checkpoint made under another text, or from other first weights, is ignored.
    """

    def __init__(
        self, folder: Path, module: nn.Module, loss: object, optimizer: torch.optim.Optimizer, identity: str
    ) -> None:
        self._folder = folder
        self._parts = {"module": module} | ({"loss": loss} if isinstance(loss, nn.Module) else {})
        self._optimizer = optimizer
        start = hashlib.sha256(safetensors.torch.save(plain(self._tensors()))).hexdigest()
        self._identity = f"{identity}; from {start}"

    def keep(self, history: list[dict[str, float]]) -> None:
        """Writes the state after the last epoch of `history`."""
        name = f"epoch-{len(history)}.safetensors"
        write_atomically(self._folder / name, safetensors.torch.save(plain(self._tensors())))
        state = {"identity": self._identity, "weights": name, "history": history}
        write_atomically(self._folder / "checkpoint.json", json.dumps(state, indent=1).encode())
        for old in self._folder.glob("epoch-*.safetensors"):
            if old.name != name:
                old.unlink()

    def restore(self) -> list[dict[str, float]]:
        """Puts back what `keep` wrote and returns its history; an empty one where there is nothing to go on from."""
        try:
            state = json.loads((self._folder / "checkpoint.json").read_text())
            if state["identity"] != self._identity:
                return []
            saved = safetensors.torch.load_file(self._folder / state["weights"])
            history: list[dict[str, float]] = state["history"]
        except (OSError, ValueError, KeyError, TypeError, SafetensorError):
            return []  # nothing there, or spoiled: the run starts over
        if not self._fits(saved):
            return []
        for name, part in self._parts.items():
            part.load_state_dict(_under(saved, name))
        for i, weight in enumerate(self._weights()):
            if (buffer := saved.get(f"momentum.{i}")) is not None:
                self._optimizer.state[weight]["momentum_buffer"] = torch.empty_like(weight).copy_(buffer).detach()
        return history

    def _weights(self) -> list[Tensor]:
        return [weight for group in self._optimizer.param_groups for weight in group["params"]]

    def _tensors(self) -> dict[str, Tensor]:
        tensors = {f"{p}.{n}": t for p, part in self._parts.items() for n, t in part.state_dict().items()}
        for i, weight in enumerate(self._weights()):
            if (buffer := self._optimizer.state[weight].get("momentum_buffer")) is not None:
                tensors[f"momentum.{i}"] = buffer
        return tensors

    def _fits(self, saved: Mapping[str, Tensor]) -> bool:
        wanted = {f"{p}.{n}": t.shape for p, part in self._parts.items() for n, t in part.state_dict().items()}
        shapes = {f"momentum.{i}": weight.shape for i, weight in enumerate(self._weights())} | wanted
        return wanted.keys() <= saved.keys() and all(tensor.shape == shapes.get(n) for n, tensor in saved.items())


def _under(tensors: Mapping[str, Tensor], part: str) -> dict[str, Tensor]:
    return {n.removeprefix(f"{part}."): t for n, t in tensors.items() if n.startswith(f"{part}.")}
