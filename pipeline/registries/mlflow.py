"""An artifact as a version of a registered model in MLflow: `attar ship DIR --to mlflow URI` (extra `mlflow`).

The version's run carries the measurements as metrics, each with its interval, and the verdict and all digests as tags.
https://mlflow.org/docs/latest/ml/model-registry/
"""

from __future__ import annotations

import logging
import os
import re
import socket
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline import evidence
from pipeline.manifest import Manifest, of
from pipeline.registries.login import refused
from pipeline.report import words
from targets.errors import DeviceError, InputError
from targets.sha256sums import digest

if TYPE_CHECKING:
    from mlflow import MlflowClient

__all__ = ["metrics", "register", "tags"]

_QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",  # https://mlflow.org/docs/latest/community/usage-tracking/
    "DO_NOT_TRACK": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",  # else it takes minutes to say that nobody answers
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}
_EXPERIMENT = "attar"
_FILE = "attar.file."
"""Begins the names of tags with digests."""

_USER, _PASSWORD = "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"


def register(folder: Path, uri: str, name: str = "", *, say: Callable[[str], None] = lambda text: None) -> str:
    """Registers an artifact; one that is registered under this name already keeps its version.

    Args:
        folder: RUN/TARGET.
        uri: of the tracking server, with its registry: http://host:port, or sqlite:///path.db. Beside a database, the
            files go to the folder `mlartifacts`.
        name: of the registered model; empty: the recipe's.
        say: told what is done.

    Returns:
        The version, as MLflow numbers it.

    Raises:
        InputError: the folder does not hold, the address or the name is none, or MLflow is not installed.
        DeviceError: the server does not answer, or refuses.
    """
    taken = evidence.taken(folder)
    if not re.fullmatch(r"(https?://[^/]+.*|sqlite:///.+)", uri):
        raise InputError(f"{uri!r} is no place of MLflow's", help="http://host:port, or sqlite:////absolute/path.db")
    if uri.startswith("http") and "@" in re.split("[/?#]", uri, maxsplit=3)[2]:
        help = f"set {_USER} and {_PASSWORD}, for this command alone"
        raise InputError("the address holds a user or a password, which would be printed and kept", help=help)
    manifest = of(taken)
    name = name or manifest.recipe.name
    if not re.fullmatch(r"[\w.-]{1,200}", name):
        told = repr(name) if len(name) <= 200 else f"{name[:40]!r}... ({len(name)} characters)"
        help = "letters, digits, - _ and ., 200 at most"
        raise InputError(f"{told} cannot be the name of a registered model", help=help)
    about = tags(taken)
    with _client(uri) as client:
        for version in client.search_model_versions(f"name = '{name}'") if _known(client, name) else ():
            if _files(version.tags) == _files(about):
                say(f"{name} has it already: version {version.version}")
                return str(version.version)
        return _registered(client, taken, uri, name, metrics(manifest), about, say)


def metrics(manifest: Manifest) -> dict[str, float]:
    """Measurements by names that end with their unit: "latency_p50_ms", "test/accuracy_percent"; `/low` and `/high`
    are the ends of the interval."""
    found = {}
    for before, numbers in (("", manifest.measured), ("test/", manifest.test)):
        for metric, number in numbers.items():
            name = f"{metric}_percent" if words.unit(metric) == "%" and not metric.endswith("_percent") else metric
            found[f"{before}{name}"] = number.value
            found[f"{before}{name}/low"], found[f"{before}{name}/high"] = number.low, number.high
    return found


def tags(taken: evidence.Taken) -> dict[str, str]:
    """Verdict, target and digests of everything: also of the lists, and of the signature."""
    manifest, papers = of(taken), {name: digest(data) for name, data in taken.papers.items()}
    return {
        "attar.verdict": manifest.verdict,
        "attar.target": manifest.target.name,
        "attar.version": manifest.attar,
        "attar.recipe.sha256": manifest.recipe.digest,
        "attar.data.sha256": manifest.data.digest,
        **{f"{_FILE}{name.replace('.', '_')}": value for name, value in sorted({**taken.digests, **papers}.items())},
    }


def _files(tags: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in tags.items() if name.startswith(_FILE)}


def _registered(
    client: MlflowClient,
    taken: evidence.Taken,
    uri: str,
    name: str,
    numbers: Mapping[str, float],
    about: dict[str, str],
    say: Callable[[str], None],
) -> str:
    from mlflow.entities import Metric

    run = client.create_run(_experiment(client, uri), run_name=name, tags=about)
    try:
        now = time.time_ns() // 1_000_000
        client.log_batch(run.info.run_id, [Metric(*found, now, 0) for found in numbers.items()])
        with tempfile.TemporaryDirectory() as aside:  # MLflow takes files: these are as they were checked
            for file, data in taken.papers.items():
                (Path(aside) / file).write_bytes(data)
            (Path(aside) / evidence.MODEL).write_bytes(taken.model())
            client.log_artifacts(run.info.run_id, aside, "model")
        if not _known(client, name):
            client.create_registered_model(name)
        source = f"{run.info.artifact_uri}/model"
        made = client.create_model_version(name, source, run.info.run_id, tags=about, await_creation_for=0)
    except BaseException:
        with suppress(Exception):  # the server may be gone: what went wrong first is to be told
            client.set_terminated(run.info.run_id, "FAILED")
        raise
    client.set_terminated(run.info.run_id, "FINISHED")
    say(f"registered {name}, version {made.version}: {uri}")
    return str(made.version)


def _known(client: MlflowClient, name: str) -> bool:
    return any(model.name == name for model in client.search_registered_models(f"name = '{name}'"))


def _experiment(client: MlflowClient, uri: str) -> str:
    found = client.get_experiment_by_name(_EXPERIMENT)
    if found is not None:
        return str(found.experiment_id)
    beside = Path(uri.removeprefix("sqlite:///")).resolve().parent / "mlartifacts"
    place = beside.as_uri() if uri.startswith("sqlite:") else None  # a server has a place of its own
    return str(client.create_experiment(_EXPERIMENT, artifact_location=place))


@contextmanager
def _client(uri: str) -> Iterator[MlflowClient]:
    """MLflow awake, silent, and with its errors in attar's terms."""
    for variable, value in _QUIET.items():
        os.environ.setdefault(variable, value)
    if uri.startswith("sqlite:") and not Path(uri.removeprefix("sqlite:///")).resolve().parent.is_dir():
        raise InputError(f"{uri}: there is no folder for this database", help="make it first")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            from mlflow import MlflowClient
            from mlflow.exceptions import MlflowException

            broken: tuple[type[Exception], ...] = ()  # what a database raises
            if uri.startswith("sqlite:"):
                from alembic.util import CommandError
                from sqlalchemy.exc import SQLAlchemyError

                broken = (CommandError, SQLAlchemyError)
        except ImportError as error:
            help = "pip install 'attar[mlflow]'"
            raise InputError(f"registering needs MLflow: {error}", help=help) from None
        for chatty in ("mlflow", "alembic"):
            logging.getLogger(chatty).setLevel(logging.ERROR)
        try:
            yield MlflowClient(tracking_uri=uri, registry_uri=uri)
        except (MlflowException, OSError) as error:  # an unreachable server is one of these, by the version
            raise _failed(uri, error) from None
        except broken as error:
            help = "give a new file, or one that this version of MLflow made"
            raise InputError(f"{uri}: MLflow cannot use this database: {_first(error)}", help=help) from None


def _failed(uri: str, error: Exception) -> DeviceError:
    """What a server did not do: it did not answer, it refused the login, or it said why."""
    status = getattr(error, "get_http_status_code", lambda: 0)()
    if status in (401, 403):
        return refused(uri, status, _USER, _PASSWORD)
    cause: BaseException = error
    while (below := cause.__cause__ or cause.__context__) is not None:
        cause = below
    if isinstance(cause, ConnectionError | TimeoutError | socket.gaierror):  # below what four libraries said of it
        what = f"{uri} does not answer: {cause.strerror or cause}"
        return DeviceError(f"{what}\n   help: is the server up, and the address right?")
    said = _first(cause if "Max retries exceeded" in str(error) else error)
    help = "is the disk full?" if uri.startswith("sqlite:") else "see the server's own log"
    return DeviceError(f"{uri}: MLflow could not do it: {said}\n   help: {help}")


def _first(error: BaseException) -> str:
    """The first line of what a library says."""
    return str(error).strip().splitlines()[0][:300] if str(error).strip() else type(error).__name__
