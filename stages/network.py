"""A torch network between disk and memory: how it is found, built, weighed, and written.

A network on disk is its origin (a function that builds it), its surgery (what was cut) and its weights. No code is ever
read from a weights file: safetensors, or a state dict that loads with `weights_only`.
"""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from importlib import import_module
from importlib.util import find_spec
from inspect import signature
from pathlib import Path
from pkgutil import iter_modules
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from stages.base import Candidate, Origin
from stages.structure.surgery import CONVOLUTIONS, operate
from targets.errors import Fault, InputError, StageError, nearest

__all__ = [
    "build",
    "channels",
    "construct",
    "load_weights",
    "macs",
    "matching",
    "parameters",
    "prove_rebuilt",
    "read_weights",
    "resolve",
    "save_weights",
    "seeded",
]


def resolve(source: str) -> Callable[..., Any]:
    """The function that "module:function" names.

    Raises:
        InputError: the text has another form, or the module or the function is not there (with near misses).
    """
    module_name, colon, name = source.partition(":")
    if not (colon and module_name and name):
        raise InputError(f"{source!r} must be 'module:function'", help="for example stages.zoo:seed_cnn")
    try:
        module = import_module(module_name)
    except ModuleNotFoundError as missing:
        if missing.name and (module_name == missing.name or module_name.startswith(missing.name + ".")):
            what, near = f"there is no module {missing.name!r} (from {source!r})", _siblings(missing.name)
            raise InputError(what, help=nearest(missing.name, near)) from None
        raise InputError(f"{module_name} needs {missing.name!r}, which is not installed") from missing
    except (Exception, SystemExit) as error:
        raise InputError(f"importing {module_name} failed: {type(error).__name__}: {error}") from error
    found = getattr(module, name, None)
    if not callable(found):
        what = "has no function" if found is None else f"holds a {type(found).__name__}, no function, as"
        public = [n for n, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__]
        raise InputError(f"{module_name} {what} {name!r}", help=nearest(name, public))
    return found  # type: ignore[no-any-return]


def _siblings(module: str) -> list[str]:
    """Modules that stand where `module` should."""
    parent = module.rpartition(".")[0]
    if not parent:
        return [m.name for m in iter_modules()]
    spec = find_spec(parent)
    return [f"{parent}.{m.name}" for m in iter_modules(spec.submodule_search_locations if spec else None)]


def construct(origin: Origin, seed: int = 0) -> nn.Module:
    """The untouched network with fresh weights that depend on `seed` only, in eval mode.

    Raises:
        InputError: the function is missing, refuses its arguments, fails, or returns no module.
    """
    if origin.source.endswith(".onnx"):
        raise StageError(f"{origin.source} is an ONNX file: it has no torch network to train or cut")
    function = resolve(origin.source)
    try:
        signature(function).bind(**origin.args)
    except TypeError as error:
        raise InputError(f"{origin.source} refuses its args: {error}", help=_takes(function)) from None
    except ValueError:  # built in C: no signature to look at
        pass
    try:
        with seeded(seed):
            module = function(**origin.args)
    except InputError:
        raise
    except (Exception, SystemExit) as error:
        what = f"{origin.source} failed with {dict(origin.args)}: {type(error).__name__}: {error}"
        raise InputError(what, help=_takes(function)) from error
    if not isinstance(module, nn.Module):
        raise InputError(f"{origin.source} returned a {type(module).__name__}, which is no torch.nn.Module")
    return module.eval()


def _takes(function: Callable[..., Any]) -> str:
    try:
        return f"it takes {signature(function)}"
    except ValueError:
        return ""


def build(candidate: Candidate) -> nn.Module:
    """The candidate's network: built from its origin, cut as recorded, weights loaded, eval mode.

    Raises:
        InputError: it cannot be built, or the weights do not fit.
        StageError: the candidate has no torch network.
    """
    if candidate.weights is None:
        raise StageError(f"{candidate.name} has no torch weights (it comes from {candidate.origin.source})")
    module = construct(candidate.origin)
    operate(module, candidate.surgery)
    load_weights(module, candidate.weights)
    return module.eval()


def prove_rebuilt(module: nn.Module, candidate: Candidate, inputs: Tensor) -> None:
    """Is what is on disk the network in memory? Catches state that lies outside the state dict.

    Raises:
        StageError: built anew from its files, the candidate answers otherwise.
    """
    with torch.no_grad():
        meant, got = module.eval()(inputs), build(candidate)(inputs)
    slack = 1e-4 * float(meant.abs().max())  # memory layouts differ in rounding
    if not torch.allclose(got, meant, rtol=0, atol=slack):
        raise StageError(
            f"{candidate.name}, built anew from {candidate.origin.source} and its weights, answers otherwise than the "
            "network in memory: it keeps state outside its state dict (a buffer with persistent=False, a random "
            "tensor in an attribute); register it as a buffer"
        )


def save_weights(module: nn.Module, path: Path) -> None:
    """Writes the state dict as safetensors. Equal weights give equal bytes, whatever their memory layout; tensors that
    two modules share are written under both names."""
    path.write_bytes(safetensors.torch.save(plain(module.state_dict())))


def plain(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous copies on the CPU that share no memory, as safetensors wants them."""
    return {n: t.detach().cpu().clone(memory_format=torch.contiguous_format) for n, t in sorted(tensors.items())}


def read_weights(path: Path) -> dict[str, Tensor]:
    """Named tensors from a .safetensors file, or from a plain state dict saved by `torch.save`.

    Raises:
        InputError: the file is missing, spoiled, holds something else, or is a pickle with code in it.
    """
    file = str(path)
    if not path.is_file():
        raise InputError(
            Fault("no such weights file", file=file, help="give a .safetensors file or a saved state dict")
        )
    if path.suffix == ".safetensors":
        try:
            return safetensors.torch.load_file(path)
        except (SafetensorError, OSError) as error:
            raise InputError(Fault(f"is no readable safetensors file: {error}", file=file)) from None
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        how = "if you trust it, load it and write safetensors.torch.save_file(model.state_dict(), 'model.safetensors')"
        raise InputError(Fault("refused: it is a pickle that holds more than tensors", file=file, help=how)) from None
    except Exception as error:  # a spoiled file makes the unpickler raise almost anything
        gist = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(Fault(f"is no weights file: {gist}", file=file)) from None
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        held = (
            f"the keys {', '.join(map(str, list(state)[:5]))}" if isinstance(state, Mapping) else type(state).__name__
        )
        how = "save the tensors alone: torch.save(model.state_dict(), path)"
        raise InputError(Fault(f"holds {held}, no plain state dict", file=file, help=how))
    return {str(name): tensor for name, tensor in state.items()}


def load_weights(module: nn.Module, path: Path) -> None:
    """Puts the weights of a file into the module; every name and shape must fit.

    Raises:
        InputError: see `read_weights`; or misfits, of which the first five are named.
    """
    found, wanted = read_weights(path), module.state_dict()
    faults = []
    for name in [*wanted, *(n for n in found if n not in wanted)]:
        want = tuple(wanted[name].shape) if name in wanted else "nothing by this name"
        got = tuple(found[name].shape) if name in found else "nothing"
        if want != got:
            faults.append(Fault(f"expected {want}, found {got}", key=name, file=str(path)))
    if faults:
        more = [Fault(f"and {len(faults) - 5} more that do not fit", file=str(path))] if len(faults) > 5 else []
        raise InputError([*faults[:5], *more])
    module.load_state_dict(found)


def matching(module: nn.Module, patterns: Iterable[str]) -> list[str]:
    """Names of submodules that match any of the shell patterns ("stages.1.*"), in the module's own order.

    Raises:
        InputError: patterns that match nothing, each with near misses.
    """
    names = [name for name, _ in module.named_modules() if name]
    patterns = list(patterns)
    faults = [
        Fault(f"pattern {pattern!r} matches no module", help=nearest(pattern, names))
        for pattern in patterns
        if not any(fnmatchcase(name, pattern) for name in names)
    ]
    if faults:
        raise InputError(faults)
    return [name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)]


def parameters(module: nn.Module) -> int:
    """Number of trainable numbers; what is shared counts once."""
    return sum(p.numel() for p in module.parameters())


def channels(module: nn.Module) -> int:
    """Output channels (or features) of all convolutions and linear layers together."""
    layers = (m for m in module.modules() if isinstance(m, (nn.Linear, *CONVOLUTIONS)))
    return sum(m.out_features if isinstance(m, nn.Linear) else m.out_channels for m in layers)


def macs(module: nn.Module, input_shape: Sequence[int]) -> int:
    """Multiply-accumulates of convolutions and linear layers for one input; products outside of such modules
    (attention scores, say) are not seen.

    Args:
        input_shape: shape of one input without the batch axis.
    """
    total = 0

    def count(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal total
        weight = layer.weight
        assert isinstance(weight, Tensor)
        if getattr(layer, "transposed", False):  # every input number meets all weights of its channel
            total += inputs[0].numel() * weight[0].numel()
        else:
            total += output.numel() * weight[0].numel()

    layers = [m for m in module.modules() if isinstance(m, (nn.Linear, *CONVOLUTIONS))]
    hooks = [layer.register_forward_hook(count) for layer in layers]
    training = module.training
    try:
        with torch.no_grad():
            module.eval()(torch.zeros(1, *input_shape))
    finally:
        module.train(training)
        for hook in hooks:
            hook.remove()
    return total


@contextmanager
def seeded(seed: int, epoch: int = 0) -> Iterator[torch.Generator]:
    """Torch's random numbers inside depend on (seed, epoch) only; those outside go on as if nothing had happened.

    Yields:
        a generator of its own, for draws that must not depend on what the network draws (dropout).
    """
    mixed = int.from_bytes(hashlib.sha256(f"{seed}/{epoch}".encode()).digest()[:7], "big")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(mixed)
        yield torch.Generator().manual_seed(mixed)
