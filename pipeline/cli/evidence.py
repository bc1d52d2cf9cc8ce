"""`attar verify`, `attar sign`, `attar bom`, `attar pull`: an artifact's papers."""

from __future__ import annotations

import json
import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.cli.shared import AsJson, put_json, say

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pipeline import keys
    from targets.errors import Fault

__all__ = ["bom", "pull", "sign", "verify"]

_UNSIGNED = "not signed: digests show that nothing changed by accident, not where it comes from"

_Folder = Annotated[
    Path,
    typer.Argument(
        metavar="DIR",
        help="Folder of an artifact: RUN/TARGET, or one that was shipped: DEST/NAME/VERSION.",
        show_default=False,
    ),
]


def verify(
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="DIR",
            help="Folder of an artifact: RUN/TARGET, or one that was shipped: DEST/NAME/VERSION; or DEST/NAME, for all "
            "its versions and what they share.",
            show_default=False,
        ),
    ],
    key: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The public key (PEM) of who is to have signed it.", show_default=False),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Say whether an artifact is as it was when its run wrote it, and with --key whether that key signed it.

    Exit code 0: it holds; 1: a file was changed, added or taken away, or the signature does not hold or does not cover
    a file; 2: there is no artifact, or no such key.
    """
    from pipeline import keys, published

    public = keys.public(key) if key is not None else None
    model = published.is_model(folder)
    faults = published.verified(folder)
    each = tuple(one for one in published.versions(folder) if not one.is_symlink()) if model else (folder,)
    signature, missing, said = _signed(each, public)
    faults = tuple(dict.fromkeys(faults + missing))  # a list that is damaged is told once
    notes, uncovered = list[str](), list[str]()
    if not faults:
        named = [(f"version {one.name}: " if model else "", one) for one in each]
        notes = [f"{name}{note}" for name, one in named for note in _notes(one)] + said
    if model and not faults and signature == "valid":
        uncovered = published.shared(folder)
        notes.append(f"what its versions share is covered by digests alone, by no signature: {', '.join(uncovered)}")
    _show(folder, faults, notes, as_json, signature=signature, uncovered=uncovered)


def sign(
    folder: _Folder,
    key: Annotated[
        Path, typer.Option(metavar="FILE", help="The private key (PEM, ECDSA) to sign with.", show_default=False)
    ],
    as_json: AsJson = False,
) -> None:
    """Sign the folder of an artifact, or of a published version, once its digests are found to hold.

    The signature covers every file in that folder and none outside it, and lies there as model.sig; an earlier one is
    replaced.

    Exit code 0: signed; 1: a file was changed, added or taken away, and nothing was signed; 2: there is no artifact, or
    no such key.
    """
    from pipeline import evidence
    from pipeline.keys import PUBLIC_KEY
    from pipeline.signing import sign as add_signature

    faults = evidence.verified(folder)
    notes: list[str] = []
    if not faults:
        notes = [
            *_notes(folder),
            f"signed: {add_signature(folder, key)}",
            f"whoever receives it needs the public key: {PUBLIC_KEY.replace('key.pem', shlex.quote(str(key)))}",
            f"and checks it with: attar verify {shlex.quote(str(folder))} --key key.pub.pem",
        ]
    _show(folder, faults, notes, as_json, signature="none" if faults else "made")


def bom(
    folder: _Folder,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="Where to write it.", show_default="standard output"),
    ] = None,
) -> None:
    """Write an artifact's bill of materials: CycloneDX 1.6, JSON, with a model card.

    Exit code 0: written; 1: a file was changed, added or taken away, and nothing was written; 2: unusable input.
    """
    from pipeline import evidence, published
    from pipeline.bom import of_artifact
    from targets.errors import Fault, InputError
    from targets.files import write_atomically

    found, faults = evidence.examined(folder)
    if faults:
        _show(folder, faults, [], False)
    text = of_artifact(found)
    if output is None:
        sys.stdout.write(text)
        return
    for above, kind in published.accounted(Path(os.path.realpath(output.parent))):
        if kind != published.A_RUN:
            what = f"lies in {kind} ({str(above)!r}), where a file that is in no list would count as tampering"
            raise InputError(Fault(what, file=str(output), help="write it beside that folder"))
    help = "give a file in a folder that you may write to, with room in it; without -o it goes to standard output"
    try:
        if output.is_symlink() or (output.exists() and not output.is_file()):  # /dev/stdout would be replaced
            raise InputError(Fault("is no regular file, and not written over", file=str(output), help=help))
        write_atomically(output, text.encode())
    except OSError as error:
        raise InputError(Fault(f"cannot be written: {error.strerror}", file=str(output), help=help)) from None
    say("written:", str(output))


def pull(
    ref: Annotated[
        str,
        typer.Argument(
            metavar="REF", help="HOST[:PORT]/NAME:TAG, or HOST[:PORT]/NAME@sha256:DIGEST.", show_default=False
        ),
    ],
    into: Annotated[
        Path,
        typer.Argument(
            metavar="NEWDIR",
            help="A folder to be made; the artifact will lie in NEWDIR/TARGET, and its run's report in NEWDIR.",
            show_default=False,
        ),
    ],
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Plain HTTP, for a registry in your own network.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Fetch an artifact that `attar ship DIR --to oci` pushed, every digest checked.

    Exit code 0: it is there whole; 2: unusable input, or nothing of that kind in the registry, or it was changed there;
    3: the registry does not answer, or refuses it. Nothing is left in NEWDIR then.
    """
    from pipeline import evidence, published
    from pipeline.registries import oci

    found, digest = oci.pull(ref, into, insecure=insecure, say=say)
    say("its digests hold; it lies in", str(found))
    if os.path.lexists(found / evidence.SIGNATURE):
        say("who made it? next:", f"attar verify {shlex.quote(str(found))} --key PUBLIC_KEY")
    else:
        say(_UNSIGNED)
    if as_json:
        files = published.files(found)
        put_json(
            json.dumps({"version": 1, "ref": ref, "digest": digest, "folder": str(found), "files": files}, indent=1)
        )


def _signed(folders: tuple[Path, ...], key: keys.Public | None) -> tuple[str, tuple[Fault, ...], list[str]]:
    """How signatures stand, in a word; what is wrong with them; what a person must know of them."""
    from pipeline import evidence
    from pipeline.signing import unsigned

    if key is not None:
        faults = tuple(fault for folder in folders for fault in unsigned(folder, key))
        if faults or not folders:
            return "invalid", faults, []
        return "valid", (), [f"signed by {key.path}"]
    if any(os.path.lexists(folder / evidence.SIGNATURE) for folder in folders):
        told = f"a signature lies there ({evidence.SIGNATURE}), unchecked: give the signer's public key with --key"
        return "unchecked", (), [told]
    return "none", (), [_UNSIGNED]


def _notes(folder: Path) -> list[str]:
    """What a person must know of digests that hold."""
    from pipeline import evidence

    about = evidence.manifest(folder)
    target = about.get("target")
    name = target.get("name") if isinstance(target, dict) else target
    notes = [f"verdict {about.get('verdict')}, on the target {name}"]
    if "shipped_as" in about:
        notes.append(f"it left otherwise than it was judged: see shipped_as in {evidence.MANIFEST}")
    if not (folder / evidence.SUMS).exists():
        notes.append(f"no {evidence.SUMS}: made by an older attar, so nothing vouches for {evidence.MANIFEST} itself")
    if evidence.cached(folder):
        told = "was written by the server's Python, and is in no list: take it away where others may write there"
        notes.append(f"{evidence.CACHE} {told}")
    return notes


def _show(
    folder: Path,
    faults: Iterable[Fault],
    notes: list[str],
    as_json: bool,
    signature: str = "",
    uncovered: Iterable[str] = (),
) -> None:
    """Says what was found; does not return where something does not hold."""
    from pipeline import evidence, published

    faults, files = tuple(faults), dict[str, str]()
    for fault in faults:
        say(str(fault))
    if not faults:
        files = published.files(folder)
    if not faults and published.is_model(folder):
        of = ", ".join(version.name for version in published.versions(folder))
        shared = len(evidence.laid(folder, deep=True))
        told = f"{len(files)} files, {shared} of them what its versions share (versions: {of}),"
        say(f"{folder}: holds: {told} have the digests that are written down for them")
    elif not faults:
        count = len({*files, evidence.MANIFEST})
        say(f"{folder}: holds: {count} files have the digests that are written down for them")
    for note in notes:
        say("  " + note.replace("\n", "\ufffd"))  # a manifest may hold anything, also what looks like another note
    if as_json:
        said: dict[str, Any] = {
            "version": 1,
            "folder": str(folder),
            "holds": not faults,
            "signature": signature,
            "uncovered": list(uncovered),
            "files": files,
            "faults": [{"file": fault.file, "what": fault.what, "help": fault.help} for fault in faults],
            "notes": notes,
        }
        put_json(json.dumps(said, indent=1))
    if faults:
        say(f"{folder}: does not hold")
        raise typer.Exit(1)
