"""One model in one session of onnxruntime."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from targets.probe import memory, plugins
from targets.probe.errors import ProbeError, short, still_wanted
from targets.probe.feeds import Feeds, wanted

__all__ = ["SETTINGS", "Model", "create", "told"]

SETTINGS = {
    "inter_op_threads": 1,
    "execution_mode": "sequential",
    "graph_optimization": "all",
    "spinning": "only while a run lasts (session.force_spinning_stop=1): idle sessions take no time from others",
    "garbage_collection": "off while timing",
}


@contextmanager
def told(name: str, free_mb: float | None, doing: str) -> Iterator[None]:
    """Turns any error within into a ProbeError that names the model.

    Args:
        free_mb: memory that was free when the probe began; None where not known.
        doing: what onnxruntime did, before the name: "refused".
    """
    try:
        yield
    except ProbeError as error:
        raise ProbeError(f"model {name!r}: {error}") from None
    except Exception as error:
        if memory.exhausted(error):
            free = "this machine has" if free_mb is None else f"the {free_mb:.0f} MB that are free"
            raise ProbeError(f"model {name!r} needs more memory than {free}: {short(error)}") from None
        import onnxruntime as ort

        raise ProbeError(f"onnxruntime {ort.__version__} {doing} model {name!r}: {short(error)}") from error


def create(
    path: Path,
    runtime: Mapping[str, Any],
    axes: Mapping[str, int],
    config: Mapping[str, str],
    trace: Path | None = None,
) -> tuple[Any, float]:
    """(session, milliseconds that it took to create).

    Args:
        runtime: of the job.
        axes: sizes at which open axes are fixed, by name.
        config: entries for the session's configuration, beside the usual ones.
        trace: start of the name of the profiler's file; None: no profiler.

    Raises:
        ProbeError: the provider is not there, or gave way to another.
    """
    import onnxruntime as ort

    provider, own = runtime["provider"], runtime.get("options") or {}
    options = ort.SessionOptions()
    options.intra_op_num_threads = runtime["threads"]
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 3
    options.add_session_config_entry("session.force_spinning_stop", "1")
    for axis, size in axes.items():
        options.add_free_dimension_override_by_name(axis, size)
    for key, value in config.items():
        options.add_session_config_entry(key, value)
    if trace is not None:
        options.enable_profiling, options.profile_file_prefix = True, str(trace)
    available = plugins.built_in()
    providers: list[Any] | None = None
    if provider in available:
        others = [p for p in runtime.get("fallback") or () if p in available and p != provider]
        providers = [(provider, own), *others]
    elif not plugins.add(provider, own, options):
        raise ProbeError(f"onnxruntime {ort.__version__} has no {provider} here; it has {', '.join(available)}")
    started = time.perf_counter()
    # enable_fallback=0: an error of the provider is raised, where onnxruntime would try again without that provider.
    session = ort.InferenceSession(str(path), options, providers=providers, enable_fallback=0)
    took_ms = (time.perf_counter() - started) * 1e3
    first = session.get_providers()[0]
    if first != provider:
        raise ProbeError(f"{provider} refused the model, and onnxruntime fell back to {first}")
    return session, round(took_ms, 3)


class Model:
    """One session, ready to be fed.

    Attributes:
        axes: sizes at which open axes are fixed.
        session_ms: how long the session took to create.
        feeds: what it is fed with.
    """

    def __init__(
        self,
        name: str,
        path: Path,
        runtime: Mapping[str, Any],
        inputs: Mapping[str, Path],
        whole: bool,
        free_mb: float | None = None,
        axes: Mapping[str, int] | None = None,
    ) -> None:
        self.name, self.path, self.free_mb, self.axes = name, path, free_mb, axes or {}
        with told(name, free_mb, "refused"):
            self.session, self.session_ms = create(path, runtime, self.axes, {})
            self.providers = list(self.session.get_providers())
            self.feeds = Feeds(wanted(self.session), inputs, whole)
            self._first = [self.session.get_outputs()[0].name]

    def run(self, feed: Mapping[str, Any]) -> Any:
        """The first output."""
        with told(self.name, self.free_mb, "could not run"):
            return self.session.run(self._first, feed)[0]

    def times(self, feeds: Iterator[Mapping[str, Any]], count: int) -> list[float]:
        """Milliseconds of `count` runs."""
        run, names, clock, found = self.session.run, self._first, time.perf_counter_ns, []
        checked = clock()
        with told(self.name, self.free_mb, "could not run"):
            for feed in itertools.islice(feeds, count):
                started = clock()
                run(names, feed)
                ended = clock()
                found.append((ended - started) / 1e6)
                if ended - checked > 500_000_000:
                    still_wanted()
                    checked = ended
        return found
