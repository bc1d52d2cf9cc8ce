"""The part of a container registry's HTTP API that takes to push and pull files, by the standard library.

https://github.com/opencontainers/distribution-spec/blob/v1.1.1/spec.md; tokens as in
https://distribution.github.io/distribution/spec/auth/token/. Not by the package `oras`: it does not hold what it
fetches against the digests, which is the point here, and what remains is four requests.

Every digest is checked here: of what is fetched, by its bytes; of what is sent, by the registry and its answer.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import urllib.error
import urllib.request
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from http.client import HTTPException, HTTPMessage
from typing import IO, Any
from urllib.parse import urlencode, urljoin, urlsplit

from pipeline.registries.login import refused
from targets.errors import DeviceError, InputError

__all__ = ["MANIFEST", "PASSWORD", "USER", "Registry", "digest_of"]

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
USER, PASSWORD = "ATTAR_REGISTRY_USER", "ATTAR_REGISTRY_PASSWORD"
MAX_MANIFEST_BYTES = 4 * 2**20
"""What a registry must take at least, by the distribution spec; more is not read."""

_UNREACHABLE = (OSError, HTTPException, ValueError, OverflowError)
"""What asking raises; the last two where an address is none: a host that IDNA refuses, a port that is too high."""


def digest_of(data: bytes) -> str:
    """A digest as registries write it: sha256:..."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


@dataclass
class Registry:
    """One name in one registry. User and password are taken from the environment (`USER`, `PASSWORD`), if at all.

    Args:
        insecure: plain HTTP.
        timeout_s: how long one answer may take to begin, or to go on.
    """

    host: str
    name: str
    insecure: bool = False
    timeout_s: float = 30.0
    _authorization: str = field(default="", repr=False)

    def has_blob(self, digest: str) -> bool:
        """Whether the registry holds a blob."""
        return self._ask("HEAD", f"blobs/{digest}", missing=True) is not None

    def put_blob(self, data: bytes) -> None:
        """Sends a blob, unless it is there."""
        digest = digest_of(data)
        if self.has_blob(digest):
            return
        _, headers = self._must("POST", "blobs/uploads/", b"")
        try:
            place = urljoin(self._url("blobs/uploads/"), headers.get("Location", ""))
            place += ("&" if urlsplit(place).query else "?") + urlencode({"digest": digest})
        except ValueError as error:
            raise DeviceError(f"{self.host}/{self.name}: the registry names no place to upload to: {error}") from None
        self._must("PUT", place, data, {"Content-Type": "application/octet-stream"})

    def blob(self, digest: str, size: int) -> bytes:
        """Fetches a blob.

        Raises:
            InputError: it is not there, or is not what its digest says.
        """
        found = self._ask("GET", f"blobs/{digest}", missing=True, limit=size)
        if found is None:
            raise InputError(f"{self.host}/{self.name} has no {digest}, which its manifest names", help=_TELL)
        if len(found[0]) != size or digest_of(found[0]) != digest:
            what = f"{self.host}/{self.name}: what came for {digest} is something else: damaged there, or on the way"
            raise InputError(what, help=_TELL)
        return found[0]

    def manifest(self, which: str) -> tuple[str, bytes] | None:
        """Digest and bytes of a manifest, None where there is none.

        Args:
            which: a tag or a digest.

        Raises:
            InputError: it is not what the digest says: of the request, or of the registry's own answer to a tag.
        """
        found = self._ask(
            "GET", f"manifests/{which}", headers={"Accept": MANIFEST}, missing=True, limit=MAX_MANIFEST_BYTES
        )
        if found is None:
            return None
        data, headers = found
        digest = digest_of(data)
        if digest != (which if ":" in which else headers.get("Docker-Content-Digest", digest)):
            raise InputError(
                f"{self.host}/{self.name}: the manifest of {which} has not the digest it should", help=_TELL
            )
        return digest, data

    def put_manifest(self, tag: str, data: bytes) -> None:
        """Sends a manifest, whose blobs are there already."""
        self._must("PUT", f"manifests/{tag}", data, {"Content-Type": MANIFEST})

    def _url(self, path: str) -> str:
        return f"{'http' if self.insecure else 'https'}://{self.host}/v2/{self.name}/{path}"

    def _must(
        self, method: str, path: str, data: bytes, headers: Mapping[str, str] | None = None
    ) -> tuple[bytes, HTTPMessage]:
        found = self._ask(method, path, data, headers)
        assert found is not None  # only where it may be missing
        return found

    def _ask(
        self,
        method: str,
        path: str,
        data: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        *,
        missing: bool = False,
        limit: int = 65536,
    ) -> tuple[bytes, HTTPMessage] | None:
        """One request; a second one with a token where the first was told to bring one."""
        for again in (False, True):
            try:
                return self._send(method, path, data, headers or {}, limit)
            except urllib.error.HTTPError as error:
                with error:
                    asked = error.headers.get_all("WWW-Authenticate", []) if error.code == 401 and not again else []
                    if any(self._authorize(one, writes=data is not None) for one in asked):
                        continue
                    if error.code == 404 and missing:
                        return None
                    raise self._refused(error) from None
            except _UNREACHABLE as error:
                raise self._unreachable(error) from None
        return None  # not reached: the second round returns or raises

    def _send(
        self, method: str, path: str, data: bytes | None, headers: Mapping[str, str], limit: int
    ) -> tuple[bytes, HTTPMessage]:
        url = path if "://" in path else self._url(path)
        request = urllib.request.Request(url, data, dict(headers), method=method)  # noqa: S310  http and https alone
        if urlsplit(url).scheme != ("http" if self.insecure else "https"):
            raise InputError(f"{self.host} wants the upload at {url}: another protocol than it was asked in")
        if (
            self._authorization and urlsplit(url).netloc == self.host
        ):  # not to where a redirect leads: storage of others
            request.add_unredirected_header("Authorization", self._authorization)
        with _opener().open(request, timeout=self.timeout_s) as answer:
            return answer.read(limit + 1), answer.headers

    def _authorize(self, challenge: str, *, writes: bool) -> bool:
        """Answers a registry's question for credentials; False where there is nothing to answer."""
        kind, _, rest = challenge.partition(" ")
        given = _basic()
        if kind.lower() == "basic" and given:
            self._authorization = given
            return True
        if kind.lower() != "bearer":
            return False
        asked = dict(re.findall(r'(\w+)="([^"]*)"', rest))
        realm = asked.get("realm", "")
        if not realm.lower().startswith(("https://", "http://") if self.insecure else "https://"):
            return False
        scope = asked.get("scope") or f"repository:{self.name}:{'pull,push' if writes else 'pull'}"
        question = f"{realm}?{urlencode({'service': asked.get('service', ''), 'scope': scope})}"
        try:
            request = urllib.request.Request(question)  # noqa: S310
            if given:
                request.add_unredirected_header("Authorization", given)
            with _opener().open(request, timeout=self.timeout_s) as answer:
                found = json.loads(answer.read(65536))
                token = found.get("token") or found.get("access_token")
        except (*_UNREACHABLE, AttributeError, RecursionError):
            return False
        if not isinstance(token, str) or not token:
            return False
        self._authorization = f"Bearer {token}"
        return True

    def _refused(self, error: urllib.error.HTTPError) -> InputError | DeviceError:
        if error.code in (401, 403):
            return refused(f"{self.host}/{self.name}", error.code, USER, PASSWORD)
        if error.code == 404:
            return InputError(f"{self.host} has no {self.name}", help="is it a registry, and the name right?")
        said = "; ".join(_said(error))
        what = f"{self.host}/{self.name}: the registry answered {error.code} {error.reason}{said and f': {said}'}"
        help = "its own log says why; is its disk full?" if error.code >= 500 else "its own log may say why"
        return DeviceError(f"{what}\n   help: {help}")

    def _unreachable(self, error: Exception) -> DeviceError:
        reason = getattr(error, "reason", error)
        help = "is the registry up, and the address right?"
        if "WRONG_VERSION_NUMBER" in str(reason) or "HTTP_REQUEST" in str(reason):
            help = "it speaks plain HTTP: --insecure, if it is in your own network"
        elif isinstance(error, HTTPException) and self.insecure:
            help = "does it speak HTTPS? Leave --insecure away"
        return DeviceError(f"{self.host} does not answer: {reason or type(error).__name__}\n   help: {help}")


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects, as registries send to where blobs are stored, but not from https to anything else."""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> urllib.request.Request | None:
        if urlsplit(newurl).scheme not in ("https", req.type):
            raise InputError(
                f"{req.host} sends on to {newurl.partition('?')[0]}: another protocol than it was asked in"
            )
        return super().redirect_request(req, fp, code, msg, headers, newurl)


@cache
def _opener() -> urllib.request.OpenerDirector:
    return urllib.request.build_opener(_Redirects)


_TELL = "do not use it; push it again from where it was made, or tell who runs the registry"


def _basic() -> str:
    user, password = os.environ.get(USER, ""), os.environ.get(PASSWORD, "")
    return f"Basic {base64.b64encode(f'{user}:{password}'.encode()).decode()}" if user else ""


def _said(error: urllib.error.HTTPError) -> Iterable[str]:
    """The registry's own words, where it has some."""
    try:
        found: Any = json.loads(error.read(65536))
        return [str(one.get("message") or one.get("code"))[:200] for one in found["errors"]]
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError, OSError, HTTPException):
        return []
