"""Signatures of artifacts by OpenSSF model-signing, offline, with a key pair of one's own.

The signature is a Sigstore bundle beside the files (`model.sig`): an in-toto statement with the SHA-256 of every file,
signed with ECDSA. Any model-signing of 1.1 or later verifies it, and attar verifies what that one signed:

    model_signing verify key DIR --signature DIR/model.sig --public_key key.pub.pem

https://github.com/sigstore/model-transparency; https://github.com/sigstore/protobuf-specs (bundle v0.3)
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import hashlib
import io
import json
import os
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import evidence
from targets.errors import Fault, InputError
from targets.files import write_atomically

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey

__all__ = ["MAKE_KEY", "PUBLIC_KEY", "fingerprint", "named", "sign", "unsigned"]

MAKE_KEY = "openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out key.pem"
PUBLIC_KEY = "openssl pkey -in key.pem -pubout -out key.pub.pem"

_CURVES = ("secp256r1", "secp384r1", "secp521r1")
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
    _private(key)
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
            raise InputError(Fault(f"cannot be signed: {error}", file=str(folder), help=help)) from None
        try:
            write_atomically(signature, made.read_bytes())
        except OSError as error:
            raise InputError(Fault(f"cannot be written: {error.strerror}", file=str(signature))) from None
    return signature


def unsigned(folder: Path, key: Path) -> tuple[Fault, ...]:
    """Why the folder is not signed by a key: empty if it is, every file of the artifact.

    A signature that was given before the artifact was shipped holds for the artifact; what a server's layout added is
    in another list, which `named` does not hold then. Files that are in no list are `evidence.verified`'s matter.

    Args:
        key: public, in a PEM file.

    Raises:
        InputError: the key cannot be used, or model-signing is not installed.
    """
    public = _public(key)
    path = folder / evidence.SIGNATURE
    if not os.path.lexists(path):
        help = "ask who made it to sign it: `attar sign DIR --key KEY`; what was converted for a server needs its own"
        return (_fault(path, "is missing: nobody signed this folder", help),)
    try:
        text = evidence.contents(path)
    except InputError as error:
        return error.faults
    bundle = _bundle(text)
    if bundle is None:
        return (_fault(path, "is damaged: not as model-signing wrote it"),)
    hint = bundle["verificationMaterial"]["publicKey"]["hint"]
    if hint != fingerprint(public):
        what = f"was made with another key: {hint[:16]}, and {key} is {fingerprint(public)[:16]}"
        return (_fault(path, what, "verify with the public key of who signed it"),)
    if not _holds(folder, path, key):
        return (_fault(path, "does not hold: it, or what it was made of, was changed"),)
    return _uncovered(folder, bundle)


def named(folder: Path) -> frozenset[str]:
    """Files that the signature says it covers, as it lies there, unchecked; none without one, or with a damaged one."""
    path = folder / evidence.SIGNATURE
    bundle = _bundle(evidence.contents(path)) if os.path.lexists(path) else None
    return frozenset() if bundle is None else _covered(bundle)


def fingerprint(key: EllipticCurvePublicKey) -> str:
    """SHA-256 of a public key as a PEM file has it: what a signature says of the key that made it."""
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    return hashlib.sha256(key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)).hexdigest()


def _holds(folder: Path, signature: Path, key: Path) -> bool:
    """Whether the library verifies the signature, and the files that it names."""
    with _quiet():
        from cryptography.exceptions import InvalidSignature
        from model_signing import verifying

        verifies: Any = verifying.Config
        config = verifies().use_elliptic_key_verifier(public_key=key).set_ignore_unsigned_files(True)
        try:
            config.verify(folder, signature)
        except (InvalidSignature, ValueError, OSError):
            return False
    return True


def _uncovered(folder: Path, bundle: Any) -> tuple[Fault, ...]:
    """Listed files that the signed statement does not name; of the layout's only where it names their list."""
    covered = _covered(bundle)
    want = {*evidence.files(folder)} - {evidence.SIGNATURE}
    if evidence.LAYOUT not in covered:
        want -= {evidence.LAYOUT, *evidence.laid(folder)}
    return tuple(_fault(folder / name, "is not covered by the signature") for name in sorted(want - covered))


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
    except (ValueError, LookupError, TypeError, binascii.Error):
        return None
    written = json.dumps(found, separators=(",", ":"), ensure_ascii=False).encode()
    return found if canonical and found == wanted and written == text else None


def _private(path: Path) -> None:
    from_file = _key(path, f"--key takes the private key to sign with; a new one: {MAKE_KEY}")
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        key: Any = load_pem_private_key(from_file, None)
    except UnsupportedAlgorithm as error:
        raise _other_kind(path, f"of no kind that is known here ({error})") from None
    except TypeError:
        help = f"attar asks for no passphrase; take it off in a safe place: openssl pkey -in {path} -out key.pem"
        raise InputError(Fault("is encrypted", file=str(path), help=help)) from None
    except ValueError:
        public = b"PUBLIC KEY" in from_file
        what = "is a public key; signing takes the private one" if public else "holds no private key in PEM form"
        raise InputError(Fault(what, file=str(path), help=f"a key to sign with: {MAKE_KEY}")) from None
    _check_curve(path, key.public_key())


def _public(path: Path) -> EllipticCurvePublicKey:
    from_file = _key(path, f"--key takes the public key of who signed it, which they get by: {PUBLIC_KEY}")
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    try:
        key: Any = load_pem_public_key(from_file)
    except UnsupportedAlgorithm as error:
        raise _other_kind(path, f"of no kind that is known here ({error})") from None
    except ValueError:
        private = b"PRIVATE KEY" in from_file
        what = "is a private key; verifying takes the public one" if private else "holds no public key in PEM form"
        help = f"from whoever signed; they get it by: {PUBLIC_KEY}"
        raise InputError(Fault(what, file=str(path), help=help)) from None
    return _check_curve(path, key)


def _key(path: Path, wanted: str) -> bytes:
    """The bytes of a key's file, once it is known that something can be done with them. `wanted`: what to give."""
    try:
        import cryptography  # noqa: F401
        import model_signing  # noqa: F401
    except ImportError:
        help = "pip install 'attar[sign]'; digests are verified without it: attar verify DIR"
        raise InputError("signatures need the packages model-signing and pyopenssl", help=help) from None
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(Fault(f"cannot be read: {error.strerror}", file=str(path), help=wanted)) from None


def _check_curve(path: Path, key: Any) -> EllipticCurvePublicKey:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey

    if not isinstance(key, EllipticCurvePublicKey):
        raise _other_kind(path, f"a key of kind {type(key).__name__.strip('_').removesuffix('PublicKey')}")
    if key.curve.name not in _CURVES:
        raise _other_kind(path, f"on the curve {key.curve.name}")
    return key


def _other_kind(path: Path, kind: str) -> InputError:
    what = f"is {kind}; model-signing takes ECDSA keys (P-256, P-384, P-521)"
    return InputError(
        Fault(what, file=str(path), help=f"a key that will do: {MAKE_KEY}; its public half: {PUBLIC_KEY}")
    )


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


def _fault(path: Path, what: str, help: str = "do not use it; take the folder again from where it was signed") -> Fault:
    return Fault(what, file=str(path), help=help)
