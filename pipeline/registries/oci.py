"""An artifact in a container registry: `attar ship DIR --to oci REF`, `attar pull REF DIR`.

One OCI artifact, in the form of CNCF ModelPack (https://github.com/modelpack/model-spec): a file is a layer, stored as
it is. The layers' names are where the files lie in a run's folder:

    <target>/model.onnx                     application/vnd.cncf.model.weight.v1.raw
    <target>/reference.npz                  application/vnd.cncf.model.dataset.v1.raw
    <target>/model.sig                      application/vnd.dev.sigstore.bundle.v0.3+json
    <target>/manifest.json, SHA256SUMS ...  application/vnd.cncf.model.doc.v1.raw
    report.html, report.md                  application/vnd.cncf.model.doc.v1.raw

Of a published version goes all that lies in its folder, such as the class that MLServer runs, so that lists and
signature hold where it is pulled; `attar ship` takes the artifact out of it again. What lies beside the versions of a
model, such as Triton's config.pbtxt, stays: `attar ship` makes that anew.
The same files make the same manifest, hence the same digest. `oras pull` fetches it too, and checks less.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline import evidence, reference
from pipeline.manifest import Manifest, of
from pipeline.registries.distribution import MANIFEST, Registry, digest_of
from pipeline.registries.ref import Ref, parse
from targets.artifact import MAX_BYTES
from targets.errors import Fault, InputError
from targets.files import write_atomically
from targets.target import Target

__all__ = ["ARTIFACT_TYPE", "pull", "push"]

ARTIFACT_TYPE = "application/vnd.cncf.model.manifest.v1+json"
_CONFIG = "application/vnd.cncf.model.config.v1+json"
_DOC = "application/vnd.cncf.model.doc.v1.raw"
_TYPES = {
    evidence.MODEL: "application/vnd.cncf.model.weight.v1.raw",
    reference.NAME: "application/vnd.cncf.model.dataset.v1.raw",
    evidence.SIGNATURE: "application/vnd.dev.sigstore.bundle.v0.3+json",
}
_REPORTS = ("report.html", "report.md")
_TITLE, _PATH = "org.opencontainers.image.title", "org.cncf.model.filepath"
_NAME = re.compile(r"[^/\\\0\n]{1,200}(/[^/\\\0\n]{1,200})?")


def push(folder: Path, ref: str, *, insecure: bool = False, say: Callable[[str], None] = lambda text: None) -> str:
    """Sends an artifact, its papers and the run's report. A tag that stands for something else is not
    knowingly moved: registries have no way to take one only where it is free, so another push may come in between.

    Args:
        folder: RUN/TARGET.
        ref: HOST[:PORT]/NAME:TAG.
        insecure: the registry speaks plain HTTP.
        say: told what is done.

    Returns:
        The digest by which it can be fetched: sha256:...

    Raises:
        InputError: the folder does not hold, the reference is none, or the tag is taken.
        DeviceError: the registry does not answer, or refuses it, as without a login where one is needed.
    """
    to = _for_push(ref)
    taken = evidence.taken(folder)
    about = of(taken)
    files = _files(taken, about)
    config, manifest = _described(about, files)
    digest = digest_of(manifest)
    registry = Registry(to.host, to.name, insecure)
    there = registry.manifest(to.tag)
    if there is not None and there[0] != digest:
        what = f"{to} stands for something else there: {there[0]}"
        raise InputError(what, help="give another tag; one that is taken is not moved")
    if there is None:
        for data in (*files.values(), config):
            registry.put_blob(data)
        registry.put_manifest(to.tag, manifest)
        there = registry.manifest(to.tag)
        if there is None or there[0] != digest:
            raise InputError(f"{to}: another push took this tag meanwhile", help="give another tag")
        say(f"pushed {len(files)} files, {sum(map(len, files.values())) / 1e6:.3g} MB: {to}@{digest}")
    else:
        say(f"it is there already, to the byte: {to}@{digest}")
    return digest


def pull(
    ref: str, into: Path, *, insecure: bool = False, say: Callable[[str], None] = lambda text: None
) -> tuple[Path, str]:
    """Fetches what `push` sent into a new folder, written beside and put in place whole. All digests are checked.

    Args:
        ref: HOST[:PORT]/NAME:TAG or HOST[:PORT]/NAME@sha256:DIGEST.
        into: a folder that does not exist, or is empty; no link.

    Returns:
        The artifact's folder in it: INTO/TARGET; and the digest of what was fetched: sha256:...

    Raises:
        InputError: nothing is there, it is no artifact of attar's, it was tampered with, or `into` is taken.
        DeviceError: the registry does not answer, or refuses it.
    """
    at = parse(ref)
    _free(into)
    registry = Registry(at.host, at.name, insecure)
    found = registry.manifest(at.digest or at.tag)
    if found is None:
        raise InputError(f"{at.host} has nothing at {at}", help="is the tag right, or the digest?")
    target, layers = _layers(at, found[1])
    place, partial = into.resolve(), None
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(dir=place.parent, prefix=f".{place.name}."))
        for name, (digest, size) in layers.items():
            write_atomically(partial / name, registry.blob(digest, size))
        about = of(evidence.taken(partial / target))
        if about.target.name != target:
            what = f"{at}: the artifact lies in a folder {target!r}, and was judged for {about.target.name!r}"
            raise InputError(what, help="do not use it; `attar ship DIR --to oci REF` names the folder by the target")
        partial.chmod(0o755)
        partial.replace(place)
    except OSError as error:
        help = "give a new folder in one that you may write to, with room in it"
        raise InputError(Fault(f"cannot be written: {error.strerror}", file=str(into), help=help)) from None
    finally:
        if partial is not None:
            shutil.rmtree(partial, ignore_errors=True)
    say(f"pulled {len(layers)} files of {at.host}/{at.name}@{found[0]}")
    return into / target, found[0]


def _for_push(ref: str) -> Ref:
    to = parse(ref)
    if not to.tag or to.digest:
        help = "HOST[:PORT]/NAME:TAG; the digest comes of it"
        raise InputError(f"{ref!r} must have a tag, and no digest, to be pushed to", help=help)
    return to


def _free(into: Path) -> None:
    """Whether a new folder can be put in this place."""
    try:
        if into.is_symlink():
            raise InputError(Fault("is a symbolic link", file=str(into), help="give a new folder"))
        if into.exists() and (not into.is_dir() or any(into.iterdir())):
            raise InputError(Fault("exists already", file=str(into), help="give a new folder"))
    except OSError as error:
        raise InputError(Fault(f"cannot be looked into: {error.strerror}", file=str(into))) from None


def _files(taken: evidence.Taken, about: Manifest) -> dict[str, bytes]:
    """What is sent, by its name in the run's folder.

    The report is in no digest of the artifact's: it is taken only from a folder that `attar run` or `pull` wrote.
    """
    target, folder = about.target.name, taken.folder.resolve()
    held = sorted({**taken.papers, evidence.MODEL: taken.model()}.items())
    files = {f"{target}/{name}": data for name, data in held}
    run = folder.parent.parent if folder.name == "not-shipped" else folder.parent
    beside = {path.name for path in run.iterdir()}
    if "recipe.lock" not in beside and not beside <= {target, *_REPORTS}:
        return files
    return files | {name: evidence.contents(run / name) for name in _REPORTS if name in beside}


def _described(about: Manifest, files: dict[str, bytes]) -> tuple[bytes, bytes]:
    """The configuration and the manifest of an OCI artifact that consists of these files."""
    layers = [_descriptor(_TYPES.get(Path(name).name, _DOC), data, name) for name, data in files.items()]
    config = _json(
        {
            "descriptor": {"name": about.recipe.name, "version": about.model.sha256[:12]},
            "config": {"format": "onnx"},
            "modelfs": {"type": "layers", "diffIds": [layer["digest"] for layer in layers]},
        }
    )
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "artifactType": ARTIFACT_TYPE,
        "config": _descriptor(_CONFIG, config),
        "layers": layers,
        "annotations": {
            _TITLE: about.recipe.name,
            "attar.model.sha256": about.model.sha256,
            "attar.target": about.target.name,
            "attar.verdict": about.verdict,
            "attar.version": about.attar,
        },
    }
    return config, _json(manifest)


def _descriptor(media_type: str, data: bytes, name: str = "") -> dict[str, Any]:
    named = {"annotations": {_TITLE: name, _PATH: name}} if name else {}
    return {"mediaType": media_type, "digest": digest_of(data), "size": len(data), **named}


def _layers(at: Ref, text: bytes) -> tuple[str, dict[str, tuple[str, int]]]:
    """The target's name, and digest and size of each file that a manifest names.

    Raises:
        InputError: it is no artifact of attar's; a name is there twice, cannot be printed, or is neither the report's
            nor that of a file in the target's folder; no target is called so, or a file beside it is.
    """
    found: dict[str, tuple[str, int]] = {}
    try:
        manifest = json.loads(text)
        ours = manifest["artifactType"] == ARTIFACT_TYPE and manifest["mediaType"] == MANIFEST
        for layer in manifest["layers"]:
            name, digest, size = layer["annotations"][_TITLE], layer["digest"], layer["size"]
            plain = _NAME.fullmatch(name) and name.isprintable() and not {".", ".."} & set(name.split("/"))
            safe = plain and name not in found
            fine = re.fullmatch("sha256:[0-9a-f]{64}", digest) and isinstance(size, int) and 0 <= size <= MAX_BYTES
            ours = ours and bool(safe and fine)
            found[name] = (digest, size)
        (target,) = {name.partition("/")[0] for name in found if name not in _REPORTS}
        ours = ours and f"{target}/{evidence.MODEL}" in found and target not in (*_REPORTS, "recipe.lock")
        Target(name=target)  # letters, digits, - _ and .
    except (ValueError, LookupError, TypeError, RecursionError):
        ours = False
    if not ours:
        raise InputError(f"{at} is no artifact that attar pushed", help="`attar ship DIR --to oci REF` makes one")
    return target, found


def _json(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
