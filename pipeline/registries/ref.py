"""What a registry's files are called by: HOST[:PORT]/NAME[:TAG][@sha256:DIGEST].

https://github.com/opencontainers/distribution-spec/blob/v1.1.1/spec.md#pulling-manifests
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from targets.errors import InputError

__all__ = ["Ref", "parse"]

_LABEL = "[a-zA-Z0-9](?:[a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?"  # of a host's name, by RFC 1123
_REF = re.compile(
    rf"(?P<host>(?:{_LABEL}(?:\.{_LABEL})*|\[[0-9a-fA-F:]+\])(?::[0-9]{{1,5}})?)/"
    r"(?P<name>[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*)"
    r"(?::(?P<tag>[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}))?(?:@(?P<digest>sha256:[0-9a-f]{64}))?"
)


@dataclass(frozen=True)
class Ref:
    """A place in a registry: host[:port]/name[:tag][@sha256:...]."""

    host: str
    name: str
    tag: str = ""
    digest: str = ""

    def __str__(self) -> str:
        tag, digest = self.tag and f":{self.tag}", self.digest and f"@{self.digest}"
        return f"{self.host}/{self.name}{tag}{digest}"


def parse(text: str) -> Ref:
    """Reads a reference.

    Raises:
        InputError: it is none, or has neither tag nor digest.
    """
    found = _REF.fullmatch(text.removeprefix("oci://"))
    if found is None or not (found["tag"] or found["digest"]):
        what = f"{text!r} must look like HOST[:PORT]/NAME:TAG or HOST[:PORT]/NAME@sha256:DIGEST, the name in lower case"
        raise InputError(what, help="for example registry.example.org/models/digits:1")
    return Ref(found["host"], found["name"], found["tag"] or "", found["digest"] or "")
