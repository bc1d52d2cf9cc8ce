"""An artifact that is to leave: read once, found to hold, and allowed to go by its verdict."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from pipeline import evidence, reference, signing
from pipeline.manifest import formed, of
from stages.data import Preprocessing
from targets import artifact
from targets.budget import Verdict, worst
from targets.errors import Fault, InputError
from targets.servers.shipment import Shipment
from targets.target import Target

__all__ = ["CHANGED", "Leaving", "leaving", "shipment"]

CHANGED = "was changed while it was being shipped"


@dataclass(frozen=True)
class Leaving:
    """An artifact, what was found of it, and whether somebody signed it."""

    shipment: Shipment
    verdict: Verdict
    signed: bool


def shipment(folder: Path, name: str | None = None, *, even_if: str = "", again: str = "") -> Shipment:
    """See `leaving`."""
    return leaving(folder, name, even_if=even_if, again=again).shipment


def leaving(folder: Path, name: str | None = None, *, even_if: str = "", again: str = "") -> Leaving:
    """Reads an artifact that is to leave.

    Args:
        folder: RUN/TARGET, as `attar run` left it, or a published version.
        name: of the model on the server; None: the recipe's.
        even_if: the worst verdict that may leave: "inconclusive" or "missed"; empty: only what is met.
        again: the command that asks for it, without --even-if: a fault says how to go on.

    Raises:
        InputError: no artifact, or one that was changed; its verdict is worse than allowed; the name is none.
    """
    taken = evidence.taken(folder)
    manifest = of(taken)
    with formed(folder / evidence.MANIFEST, "data.preprocessing"):
        steps = Preprocessing.model_validate(manifest.data.preprocessing or {})
    _allowed(folder, manifest.verdict, even_if, again)
    kept = reference.parse(taken.paper(reference.NAME), folder / reference.NAME)
    chosen = manifest.recipe.name if name is None else name
    try:
        Target(name=chosen)  # the same rule: letters, digits, - _ and .
    except ValidationError:
        told = repr(chosen) if len(chosen) <= 100 else f"{chosen[:40]!r}... ({len(chosen)} characters)"
        what = f"{told} must be letters, digits, - _ and ., a letter or digit first, 100 at most: it names a folder"
        raise InputError(Fault(what, "--name", help="leave it out for the recipe's own")) from None
    model = artifact.load(folder / evidence.MODEL)
    if model.sha256 != taken.digests[evidence.MODEL]:
        raise InputError(Fault(CHANGED, file=str(model.path)))
    kept.fits(model, folder / reference.NAME)
    ours = Shipment(
        name=chosen,
        model=model,
        target=manifest.target,
        labels=manifest.data.classes,
        preprocessing=steps.model_dump(mode="json", exclude_unset=True),
        sample=kept.inputs,
        answers=kept.outputs,
        papers=_papers(taken),
        source=manifest.data.source,
    )
    return Leaving(ours, manifest.verdict, evidence.SIGNATURE in taken.papers)


def _papers(taken: evidence.Taken) -> dict[str, bytes]:
    """The artifact's own files but the model: what a server's layout added to a published version stays behind, and so
    does a signature that covers it."""
    stay = set(taken.added)
    if evidence.LAYOUT in signing.named(taken.papers.get(evidence.SIGNATURE, b"")):
        stay.add(evidence.SIGNATURE)
    return {file: data for file, data in taken.papers.items() if file not in stay}


def _allowed(folder: Path, verdict: Verdict, even_if: str, again: str) -> None:
    known = ("inconclusive", "missed")
    if even_if and even_if not in known:
        raise InputError(Fault(f"{even_if!r} must be {' or '.join(known)}", "--even-if"))
    bound: Verdict = even_if or "met"  # type: ignore[assignment]  # one of `known`
    if worst((verdict, bound)) != bound:
        what = f"its verdict is {verdict}, not {bound}"
        help = "see why in manifest.json; its manifest will say so where it is shipped nevertheless: "
        help += f"\n      {again} --even-if {verdict}" if again else f"--even-if {verdict}"
        raise InputError(Fault(what, file=str(folder), help=help))
