"""`attar verify`, `attar sign`, `attar bom`, `attar pull`: an artifact's papers."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.cli.shared import AsJson, say

if TYPE_CHECKING:
    from collections.abc import Iterable

    from targets.errors import Fault

__all__ = ["bom", "pull", "sign", "verify"]

_Folder = Annotated[
    Path,
    typer.Argument(help="Folder of an artifact: RUN/TARGET, or a published version.", show_default=False),
]


def verify(
    folder: _Folder,
    key: Annotated[
        Path | None, typer.Option(help="Public key (PEM) that is to have signed it.", show_default=False)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Say whether an artifact is as it was when its run wrote it, and with --key who signed it.

    Exit code 1: a file was changed, added or taken away, or the signature does not hold.
    """
    from pipeline import evidence

    shipped = evidence.published(folder)
    faults = evidence.verified(folder, beside=shipped)
    notes = _notes(folder, shipped, bool(faults))
    if key is not None:
        from pipeline.signing import unsigned

        missing = unsigned(folder, key)
        faults += missing
        signature, said = "invalid" if missing else "valid", f"signed by {key}"
    elif (folder / evidence.SIGNATURE).exists():
        said = f"a signature lies there ({evidence.SIGNATURE}), unchecked: give the signer's public key with --key"
        signature = "unchecked"
    else:
        said = "not signed: digests show that nothing changed by accident, not where it comes from"
        signature = "none"
    notes += [] if faults else [said]
    _show(folder, faults, notes, as_json, signature=signature)


def sign(
    folder: _Folder,
    key: Annotated[Path, typer.Option(help="Private key (PEM, ECDSA) to sign with.", show_default=False)],
    as_json: AsJson = False,
) -> None:
    """Sign an artifact's folder, once its digests are found to hold.

    The signature covers every file, and lies beside them as model.sig; an earlier one is replaced.
    """
    from pipeline import evidence
    from pipeline.signing import PUBLIC_KEY
    from pipeline.signing import sign as add_signature

    shipped = evidence.published(folder)
    faults = evidence.verified(folder, beside=shipped)
    notes: list[str] = []
    if not faults:
        notes = [
            *_notes(folder, shipped, False),
            f"signed: {add_signature(folder, key)}",
            f"whoever receives it needs the public key: {PUBLIC_KEY.replace('key.pem', str(key))}",
            "and verifies with: attar verify DIR --key key.pub.pem",
        ]
    _show(folder, faults, notes, as_json, signature="none" if faults else "made")


def bom(
    folder: _Folder,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="File to write.", show_default="standard output")
    ] = None,
) -> None:
    """Write an artifact's bill of materials: CycloneDX 1.6, JSON, with a model card."""
    from pipeline import evidence
    from pipeline.bom import of_folder
    from pipeline.store import write_atomically
    from targets.errors import Fault, InputError

    if faults := evidence.verified(folder, beside=evidence.published(folder)):
        _show(folder, faults, [], False)
    text = of_folder(folder)
    if output is None:
        sys.stdout.write(text)
        return
    if output.resolve().parent == folder.resolve():
        what = "lies in the artifact's folder, where a file that is in no list would count as tampering"
        raise InputError(Fault(what, file=str(output), help="write it beside the folder"))
    write_atomically(output, text.encode())
    say(f"written: {output}")


def pull(
    ref: Annotated[str, typer.Argument(help="HOST[:PORT]/NAME:TAG, or ...@sha256:DIGEST.", show_default=False)],
    into: Annotated[Path, typer.Argument(help="A new folder.", show_default=False)],
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Plain HTTP, for a registry in your own network.")
    ] = False,
) -> None:
    """Fetch an artifact that `attar ship DIR --to oci` pushed, every digest checked."""
    from pipeline.registries import oci

    found = oci.pull(ref, into, insecure=insecure, say=say)
    say(f"pulled: {found}; its digests hold. Where it comes from: attar verify {found} --key PUBLIC_KEY")


def _notes(folder: Path, shipped: bool, broken: bool) -> list[str]:
    """What a person must know of digests that hold."""
    from pipeline import evidence

    if broken:
        return []
    about = evidence.manifest(folder)
    target = about.get("target")
    name = target.get("name") if isinstance(target, dict) else target
    notes = [f"verdict {about.get('verdict')}, on the target {name}"]
    if "shipped_as" in about:
        notes.append(f"it left otherwise than it was judged: see shipped_as in {evidence.MANIFEST}")
    if not (folder / evidence.SUMS).exists():
        notes.append(f"no {evidence.SUMS}: made by an older attar, so nothing vouches for {evidence.MANIFEST} itself")
    if shipped and (beside := evidence.others(folder)):
        notes.append(f"beside the artifact, from the server's layout, and in no list: {', '.join(beside)}")
    return notes


def _show(folder: Path, faults: Iterable[Fault], notes: list[str], as_json: bool, signature: str = "") -> None:
    """Says what was found; does not return where something does not hold."""
    from pipeline import evidence

    faults = tuple(faults)
    for fault in faults:
        say(str(fault))
    if not faults:
        count = len({*evidence.listed(folder), evidence.MANIFEST})
        say(f"{folder}: holds: {count} files have the digests that are written down for them")
    for note in notes:
        say(f"  {note}")
    if as_json:
        said: dict[str, Any] = {
            "version": 1,
            "folder": str(folder),
            "holds": not faults,
            "signature": signature,
            "files": {} if faults else evidence.listed(folder),
            "faults": [{"file": fault.file, "what": fault.what, "help": fault.help} for fault in faults],
            "notes": notes,
        }
        sys.stdout.write(json.dumps(said, indent=1) + "\n")
    if faults:
        say(f"{folder}: does not hold")
        raise typer.Exit(1)
