"""Optuna, behind the few words that a search needs: propose settings, remember what came of them.

The journal is a text file, one JSON object a line (Optuna's JournalStorage). Each proposal follows from the seed and
from what was told so far, not from how often the program was started: a killed search goes on as if it had not been.

Multi-objective TPE: Ozaki et al., GECCO 2020; TPE: Bergstra et al., NeurIPS 2011.
"""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from pydantic import JsonValue

from pipeline import space
from pipeline.space import Range, SearchSpec
from stages.quiet import quiet
from targets.errors import InputError

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.samplers import BaseSampler
    from optuna.study import Study as OptunaStudy
    from optuna.trial import Trial

__all__ = ["Asked", "Study", "require"]

_ATTEMPTS = 30  # at settings that were not tried yet


def require() -> None:
    """Optuna must be installed.

    Raises:
        InputError: it is not.
    """
    try:
        with _quiet():
            import optuna  # noqa: F401
    except ImportError:
        raise InputError("attar search needs optuna, not installed here", help="pip install 'attar[search]'") from None


def _quiet() -> AbstractContextManager[None]:
    """No word of Optuna's own: it announces each study and trial, and which of its parts are new."""
    return quiet(("optuna",), (r".*experimental",))


@dataclass(frozen=True)
class Asked:
    """Settings that were proposed. `number` counts trials from 1."""

    number: int
    settings: Mapping[str, JsonValue]
    trial: Trial


class Study:
    """One search, kept in a journal. Only one process at a time may hold it.

    Args:
        path: the journal; made when there is none.
        objectives: how many numbers each trial gives; all are minimized.
    """

    def __init__(self, path: Path, objectives: int, spec: SearchSpec, seed: int) -> None:
        require()
        import optuna
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend

        path.parent.mkdir(parents=True, exist_ok=True)
        _mend(path)
        self.spec, self.seed = spec, seed
        with _quiet():
            self._study: OptunaStudy = optuna.create_study(
                storage=JournalStorage(JournalFileBackend(str(path))),
                study_name="attar",
                directions=["minimize"] * objectives,
                load_if_exists=True,
            )
            self._resume()
        self.sampler = self._kind()

    def told(self) -> list[dict[str, Any]]:
        """What came of each finished trial, in the order of trials."""
        found = [trial.user_attrs["outcome"] for trial in self._study.trials if "outcome" in trial.user_attrs]
        return [cast("dict[str, Any]", json.loads(text)) for text in found]

    def ask(self) -> Asked | None:
        """Settings that were not tried yet; None where there are none, or none could be found."""
        tried = {
            trial.user_attrs["settings"]: trial
            for trial in self._study.trials
            if "outcome" in trial.user_attrs and "settings" in trial.user_attrs
        }
        number = len(self.told()) + 1
        for attempt in range(_ATTEMPTS):
            if len(tried) >= space.size(self.spec):
                return None
            if self.sampler == "grid" or (attempt == _ATTEMPTS - 1 and space.grid(self.spec) is not None):
                self._enqueue_untried(set(tried))
            with _quiet():
                self._study.sampler = self._sampler(number, attempt)
                trial = self._study.ask(dict(self._distributions()))
            settings = self._settings(trial.params)
            shown = _written(settings)
            trial.set_user_attr("settings", shown)
            if shown not in tried:
                return Asked(number, settings, trial)
            self._fail(trial)
        return None

    def tell(self, asked: Asked, objectives: Sequence[float] | None, outcome: Mapping[str, Any]) -> None:
        """Keeps what came of a trial; `objectives` is None where it gave no numbers."""
        asked.trial.set_user_attr("outcome", json.dumps(outcome, ensure_ascii=False))
        if objectives is None:
            self._fail(asked.trial)
        else:
            with _quiet():
                self._study.tell(asked.trial, list(objectives))

    def _fail(self, trial: Trial) -> None:
        from optuna.trial import TrialState

        with _quiet():
            self._study.tell(trial, state=TrialState.FAIL)

    def _resume(self) -> None:
        """A trial that a kill cut short is proposed again; one whose outcome is known already is closed."""
        from optuna.trial import TrialState

        for trial in self._study.get_trials(states=(TrialState.RUNNING,)):
            self._study.tell(trial.number, state=TrialState.FAIL)
            if "outcome" not in trial.user_attrs and len(trial.params) == len(self.spec.space):
                self._study.enqueue_trial(trial.params)

    def _kind(self) -> str:
        if self.spec.sampler != "auto":
            return self.spec.sampler
        return "grid" if space.size(self.spec) <= self.spec.trials else "tpe"

    def _sampler(self, number: int, attempt: int) -> BaseSampler:
        """A fresh one for each proposal: its random numbers depend on the trial's number alone."""
        from optuna.samplers import RandomSampler, TPESampler

        seed = random.Random(f"{self.seed} {number} {attempt}").getrandbits(32)  # noqa: S311  no secret
        if self.sampler != "tpe" or attempt > 0:
            return RandomSampler(seed=seed)
        return TPESampler(seed=seed, n_startup_trials=max(4, min(10, self.spec.trials // 3)))

    def _distributions(self) -> Iterator[tuple[str, BaseDistribution]]:
        from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

        for key, of in self.spec.space.items():
            if not isinstance(of, Range):
                yield key, CategoricalDistribution([_written(value) for value in of])
            elif of.whole:
                yield key, IntDistribution(int(of.low), int(of.high), log=of.log, step=int(of.step or 1))
            else:
                step = None if of.step is None else float(of.step)
                high = of.high if step is None else cast("float", (space.values(of) or (of.high,))[-1])
                yield key, FloatDistribution(float(of.low), float(high), log=of.log, step=step)

    def _settings(self, params: Mapping[str, Any]) -> dict[str, JsonValue]:
        """Proposed parameters as settings of the recipe."""
        found: dict[str, JsonValue] = {}
        for key, of in self.spec.space.items():
            found[key] = space.plain(of, params[key]) if isinstance(of, Range) else json.loads(params[key])
        return found

    def _enqueue_untried(self, tried: set[str]) -> None:
        """The next point of the grid; the order is the seed's, so that the first few cover the space."""
        points = list(itertools.islice(space.grid(self.spec) or (), 100_000))
        random.Random(self.seed).shuffle(points)  # noqa: S311  no secret
        settings = next((point for point in points if _written(point) not in tried), None)
        if settings is None:
            return
        params = {
            k: settings[k] if isinstance(of, Range) else _written(settings[k]) for k, of in self.spec.space.items()
        }
        with _quiet():
            self._study.enqueue_trial(params)


def _written(value: Any) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False)


def _mend(path: Path) -> None:
    """What a kill may leave: half a line at the journal's end, and Optuna's own lock. Nobody else holds the journal."""
    with suppress(FileNotFoundError):
        data = path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        if len(whole) < len(data):
            path.write_bytes(whole)
    for left in path.parent.glob(f"{path.name}.lock*"):
        left.unlink(missing_ok=True)
