"""Keys that signatures are made and verified with: PEM files, ECDSA on the curves that model-signing takes."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import Any

from targets.errors import Fault, InputError

__all__ = ["MAKE_KEY", "PUBLIC_KEY", "Public", "private", "public"]

MAKE_KEY = "openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out key.pem"
PUBLIC_KEY = "openssl pkey -in key.pem -pubout -out key.pub.pem"

_CURVES = ("secp256r1", "secp384r1", "secp521r1")


@dataclass(frozen=True)
class Public:
    """A public key that was read, once: what came from a pipe does not come again.

    Attributes:
        path: where it was read.
        pem: the key in PEM form.
    """

    path: Path
    pem: bytes

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the key in PEM form: what a signature says of the key that made it."""
        return hashlib.sha256(self.pem).hexdigest()


def private(path: Path) -> None:
    """Whether a private key can be signed with.

    Raises:
        InputError: it cannot, or model-signing is not installed.
    """
    from_file = _key(path, _by("--key takes the private key to sign with; a new one", MAKE_KEY))
    if not path.is_file():
        help = "give the file of the key itself: a private key is copied nowhere"
        raise InputError(Fault("is no regular file, and is read twice", file=str(path), help=help))
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        key: Any = load_pem_private_key(from_file, None)
    except UnsupportedAlgorithm as error:
        raise _other_kind(path, f"of no kind that is known here ({error})") from None
    except TypeError:
        bare = f"openssl pkey -in {quote(str(path))} -out key.pem"
        help = _by("attar asks for no passphrase; take it off in a safe place", bare)
        raise InputError(Fault("is encrypted", file=str(path), help=help)) from None
    except ValueError:
        public = b"PUBLIC KEY" in from_file
        what = "is a public key; signing takes the private one" if public else "holds no private key in PEM form"
        raise InputError(Fault(what, file=str(path), help=_by("a key to sign with", MAKE_KEY))) from None
    _check_curve(path, key.public_key())


def public(path: Path) -> Public:
    """A public key to verify with.

    Raises:
        InputError: it is none that will do, or model-signing is not installed.
    """
    from_file = _key(path, _by("--key takes the public key of who signed it, which they get by", PUBLIC_KEY))
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key

    try:
        key: Any = load_pem_public_key(from_file)
    except UnsupportedAlgorithm as error:
        raise _other_kind(path, f"of no kind that is known here ({error})") from None
    except ValueError:
        private = b"PRIVATE KEY" in from_file
        what = "is a private key; verifying takes the public one" if private else "holds no public key in PEM form"
        help = _by("from whoever signed; they get it by", PUBLIC_KEY)
        raise InputError(Fault(what, file=str(path), help=help)) from None
    _check_curve(path, key)
    return Public(path, key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))


def _key(path: Path, wanted: str) -> bytes:
    """The bytes of a key's file, once it is known that something can be done with them. `wanted`: what to give."""
    try:
        import cryptography  # noqa: F401
        import model_signing  # noqa: F401
    except ImportError:
        help = _by("`attar verify DIR` checks digests without them; to get them", "pip install 'attar[sign]'")
        raise InputError("signatures need the packages model-signing and pyopenssl", help=help) from None
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(Fault(f"cannot be read: {error.strerror}", file=str(path), help=wanted)) from None


def _check_curve(path: Path, key: Any) -> None:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey

    if not isinstance(key, EllipticCurvePublicKey):
        raise _other_kind(path, f"a key of kind {type(key).__name__.strip('_').removesuffix('PublicKey')}")
    if key.curve.name not in _CURVES:
        raise _other_kind(path, f"on the curve {key.curve.name}")


def _other_kind(path: Path, kind: str) -> InputError:
    what = f"is {kind}; model-signing takes ECDSA keys (P-256, P-384, P-521)"
    return InputError(Fault(what, file=str(path), help=_by("a pair that will do", MAKE_KEY, PUBLIC_KEY)))


def _by(what: str, *commands: str) -> str:
    """A help that ends in commands, each on a line of its own: it can be copied whole."""
    return "\n      ".join((f"{what}:", *commands))
