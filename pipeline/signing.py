"""Signatures of artifacts by OpenSSF model-signing, offline, with a key pair of one's own.

The signature is a Sigstore bundle beside the files (`model.sig`): an in-toto statement with the SHA-256 of every file,
signed with ECDSA. Any model-signing of 1.1 or later verifies it, and attar verifies what that one signed:

    model_signing verify key DIR --signature DIR/model.sig --public_key key.pub.pem

https://github.com/sigstore/model-transparency; https://github.com/sigstore/protobuf-specs (bundle v0.3)
"""

from __future__ import annotations

import base64
import contextlib
import io
import json
import os
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from shlex import quote
from typing import Any

from pipeline import evidence, keys
from pipeline.lists import fault
from targets.errors import Fault, InputError
from targets.files import write_atomically

__all__ = ["named", "sign", "unsigned"]

_BUNDLE = "application/vnd.dev.sigstore.bundle.v0.3+json"
_PAYLOAD = "application/vnd.in-toto+json"


def sign(folder: Path, key: Path) -> Path:
    """Signs all that lies in an artifact's folder; a signature that was there is replaced.

    In a published version that is what the server's layout added, too, but for what its Python wrote.

    Args:
        folder: of an artifact whose digests hold (`evidence.verified`).
        key: private, ECDSA on P-256, P-384 or P-521, in a PEM file without a passphrase.

    Returns:
        The file of the signature.

    Raises:
        InputError: the key cannot be used, or model-signing is not installed.
    """
    keys.private(key)
    signature = folder / evidence.SIGNATURE
    with _quiet(), tempfile.TemporaryDirectory() as aside:
        from model_signing import hashing, signing

        hashes: Any = hashing.Config  # its constructors have no types
        signs: Any = signing.Config
        every = hashes().use_file_serialization(hashing_algorithm="sha256", allow_symlinks=False)
        every.set_ignored_paths(paths=[evidence.SIGNATURE, evidence.CACHE], ignore_git_paths=False)
        made = Path(aside) / evidence.SIGNATURE
        try:
            signs().use_elliptic_key_signer(private_key=key).set_hashing_config(every).sign(folder, made)
        except (ValueError, OSError) as error:  # what a server's layout added: a link, or what cannot be read
            help = "a signature covers regular files alone: take what is none out of the folder"
            what = f"cannot be signed: {' '.join(str(error).split())}"  # of one line: names may hold anything
            raise InputError(Fault(what, file=str(folder), help=help)) from None
        try:
            write_atomically(signature, made.read_bytes())
        except OSError as error:
            raise InputError(Fault(f"cannot be written: {error.strerror}", file=str(signature))) from None
    return signature


def unsigned(folder: Path, key: keys.Public) -> tuple[Fault, ...]:
    """Why the folder is not signed by a key: empty if it is, every file in it.

    A signature that was given before the artifact was shipped does not cover what a server's layout added since, such
    as the class that MLServer runs. Files that are in no list are `evidence.verified`'s matter, but for what a server's
    Python wrote: that is run, too, and signed by nobody.

    Raises:
        InputError: model-signing does not load.
    """
    path = folder / evidence.SIGNATURE
    if not os.path.lexists(path):
        help = "ask who made it to sign it: `attar sign DIR --key KEY`; what was converted for a server needs its own"
        return (fault(path, "is missing: nobody signed this folder", help),)
    try:
        bundle = _bundle(evidence.contents(path))
    except InputError as error:
        return error.faults
    if bundle is None:
        return (fault(path, "is damaged: not as model-signing wrote it", _AGAIN),)
    hint, ours = bundle["verificationMaterial"]["publicKey"]["hint"], key.fingerprint
    if hint != ours:
        what = f"was made with another key: {hint[:16]!r}, and {str(key.path)!r} is {ours[:16]!r}"
        return (fault(path, what, "verify with the public key of who signed it"),)
    if not _holds(folder, path, key):
        return (fault(path, "does not hold: it, or what it was made of, was changed", _AGAIN),)
    return _uncovered(folder, bundle)


def named(signature: bytes) -> frozenset[str]:
    """Files that a signature says it covers, unchecked; none where it is damaged."""
    bundle = _bundle(signature)
    return frozenset() if bundle is None else _covered(bundle)


def _holds(folder: Path, signature: Path, key: keys.Public) -> bool:
    """Whether the library verifies the signature, and the files that it names."""
    with _quiet(), tempfile.TemporaryDirectory() as aside:
        from cryptography.exceptions import InvalidSignature
        from model_signing import verifying

        verifies: Any = verifying.Config
        as_read = Path(aside) / "key.pub.pem"  # the library takes files alone
        as_read.write_bytes(key.pem)
        config = verifies().use_elliptic_key_verifier(public_key=as_read).set_ignore_unsigned_files(True)
        try:
            config.verify(folder, signature)
        except (InvalidSignature, ValueError, OSError):
            return False
    return True


def _uncovered(folder: Path, bundle: Any) -> tuple[Fault, ...]:
    """Files that the signed statement does not name."""
    try:
        left = sorted(evidence.files(folder) - _covered(bundle) - {evidence.SIGNATURE})
    except InputError as error:
        return error.faults
    what, help = "is not covered by the signature", f"once you trust it: attar sign {quote(str(folder))} --key KEY"
    found = [fault(folder / name, what, help) for name in left]
    if os.path.lexists(cache := folder / evidence.CACHE):
        help = "take it away; a server that runs with PYTHONDONTWRITEBYTECODE=1 does not write it anew"
        found.append(fault(cache, f"{what}, and Python may run what lies there", help))
    return tuple(found)


def _covered(bundle: Any) -> frozenset[str]:
    """Names of the files in the signed statement."""
    try:
        statement = json.loads(base64.b64decode(bundle["dsseEnvelope"]["payload"]))
        return frozenset(str(resource["name"]) for resource in statement["predicate"]["resources"])
    except (ValueError, LookupError, TypeError, RecursionError):
        return frozenset()


def _bundle(text: bytes) -> Any:
    """A bundle with a key's signature, if it is one to the letter: None for any byte that could be another one.

    JSON and base64 can say the same in several ways; of these only the one is taken that the library writes, so that a
    changed byte is found even where it would change nothing.
    """
    try:
        found = json.loads(text)
        envelope, material = found["dsseEnvelope"], found["verificationMaterial"]
        payload, sig = envelope["payload"], envelope["signatures"][0]["sig"]
        canonical = all(base64.b64encode(base64.b64decode(x, validate=True)).decode() == x for x in (payload, sig))
        hint = material["publicKey"]["hint"]
        wanted = {
            "mediaType": _BUNDLE,
            "verificationMaterial": {"publicKey": {"hint": str(hint)}, "tlogEntries": []},
            "dsseEnvelope": {
                "payload": payload,
                "payloadType": _PAYLOAD,
                "signatures": [{"sig": sig, "keyid": ""}],
            },
        }
        written = json.dumps(found, separators=(",", ":"), ensure_ascii=False).encode()
        good = canonical and found == wanted and written == text
    except (ValueError, LookupError, TypeError, RecursionError):
        return None
    return found if good else None


@contextmanager
def _quiet() -> Iterator[None]:
    """The library prints on standard output, and leaves a file for the garbage collector to close."""
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        except ImportError as error:
            help = "pip install 'attar[sign]'"
            raise InputError(f"model-signing does not load: {error}", help=help) from None


_AGAIN = "do not use it; take the folder again from where it was signed"
