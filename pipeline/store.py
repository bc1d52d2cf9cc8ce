"""What finished steps left, found again by key.

    <root>/objects/ab/cdef...   blobs, named by the SHA-256 of their bytes
    <root>/steps/<key>.json     one finished step: its files (name -> digest, size) and a few values
    <root>/scratch/<key>/       checkpoints of a step that is not finished; removed when it is
    <root>/locks/<key>          held (flock) while a step is computed, so that two runs do not do the same work
    <root>/work/<run>/          private copies for one run; swept by the next run once their owner is gone

Crash-safe: every file is written aside, flushed to disk and renamed; the step's record comes last. A blob's digest is
checked whenever it is read, and so is a record's: a spoiled entry is reported and computed again. Failures are never
stored. Files are copied in and out, never linked: onnx refuses links, and a link would let a reader change the store.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pipeline import digests
from targets.errors import StageError
from targets.files import write_atomically

__all__ = ["Entry", "Store"]


@dataclass(frozen=True)
class Entry:
    """One finished step: digests of its files by name, and the values kept beside them."""

    key: str
    files: Mapping[str, str]
    values: Mapping[str, Any] = field(default_factory=dict)


class Store:
    """The store at `root`; made when first written to. One object serves one run.

    Args:
        root: its folder.
        spoiled: told the key of every entry that was dropped because its bytes do not match their digest; may be set
            later as `on_spoiled`.
    """

    def __init__(self, root: Path, spoiled: Callable[[str], None] = lambda key: None) -> None:
        self.root = root.absolute()
        self.on_spoiled = spoiled
        self._work: Path | None = None
        self._owner: int | None = None

    def has(self, key: str) -> bool:
        """Is there a record of this step? Cheap: nothing is verified."""
        return self._record(key).exists()

    def find(self, key: str) -> Entry | None:
        """The finished step with this key, its record and every byte of its files verified, or None."""
        record = self._record(key)
        if not record.exists():
            return None
        try:
            found = json.loads(record.read_bytes())
            entry = Entry(found["key"], found["files"], found["values"])
            sound = entry.key == key and found["digest"] == digests.of_json(asdict(entry))
            sound = sound and all(digests.of_file(self._blob(sha)) == sha for sha in entry.files.values())
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            sound = False
        if sound:
            return entry
        self.on_spoiled(key)  # it is written over when the step has been computed again
        return None

    def put(self, key: str, folder: Path, values: Mapping[str, Any] | None = None) -> Entry:
        """Stores the files of `folder` (flat) as the outcome of step `key`."""
        files = {}
        for path in sorted(folder.iterdir()):
            if path.is_symlink() or not path.is_file():
                raise ValueError(f"{path.name} is not a plain file: a step leaves plain files only")
            data = path.read_bytes()
            files[path.name] = sha = hashlib.sha256(data).hexdigest()
            blob = self._blob(sha)
            if not (blob.is_file() and digests.of_file(blob) == sha):
                write_atomically(blob, data)
        entry = Entry(key, files, dict(values or {}))
        record = {**asdict(entry), "digest": digests.of_json(asdict(entry))}
        write_atomically(self._record(key), json.dumps(record, sort_keys=True, indent=1).encode())
        shutil.rmtree(self.root / "scratch" / key, ignore_errors=True)
        return entry

    def read(self, entry: Entry, name: str) -> bytes:
        """The bytes of one file of a finished step.

        Raises:
            StageError: they were damaged since `find` saw them.
        """
        sha, data = entry.files[name], self._blob(entry.files[name]).read_bytes()
        if hashlib.sha256(data).hexdigest() != sha:
            raise StageError(f"{self._blob(sha)} was damaged while it was in use; give the same command again")
        return data

    def checkout(self, entry: Entry) -> Path:
        """A folder with private copies of the entry's files, for as long as this run lives."""
        folder = self.work() / entry.key
        if not folder.exists():
            aside = self.fresh()
            for name in entry.files:
                (aside / name).write_bytes(self.read(entry, name))
            aside.rename(folder)
        return folder

    def scratch(self, key: str) -> Path:
        """Where the step in hand keeps its checkpoints; survives a kill."""
        folder = self.root / "scratch" / key
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def fresh(self) -> Path:
        """A new empty folder that dies with this run."""
        return Path(tempfile.mkdtemp(dir=self.work()))

    @contextmanager
    def lock(self, key: str, waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
        """Only one run at a time computes a step; `waiting` is told when another holds it. A kill frees the lock."""
        path = self.root / "locks" / key
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                waiting()
                fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def work(self) -> Path:
        """This run's private folder."""
        if self._work is None:
            parent = self.root / "work"
            parent.mkdir(parents=True, exist_ok=True)
            with self.lock("work"):  # no other run may sweep a folder whose owner is not yet marked
                self._sweep(parent)
                self._work = Path(tempfile.mkdtemp(dir=parent))
                self._owner = os.open(self._work / ".owner", os.O_CREAT | os.O_RDWR)
                fcntl.flock(self._owner, fcntl.LOCK_EX)
        return self._work

    def close(self) -> None:
        """Removes this run's private copies."""
        if self._work is not None and self._owner is not None:
            shutil.rmtree(self._work, ignore_errors=True)
            os.close(self._owner)
        self._work = self._owner = None

    def size_bytes(self) -> int:
        """Bytes of all blobs."""
        return sum(p.stat().st_size for p in (self.root / "objects").glob("*/*"))

    def _record(self, key: str) -> Path:
        return self.root / "steps" / f"{key}.json"

    def _blob(self, sha: str) -> Path:
        return self.root / "objects" / sha[:2] / sha[2:]

    @staticmethod
    def _sweep(parent: Path) -> None:
        """Removes folders of runs that were killed: their owner no longer holds the lock."""
        for folder in parent.iterdir():
            try:
                with (folder / ".owner").open("r+") as file:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(folder, ignore_errors=True)
            except (FileNotFoundError, NotADirectoryError, BlockingIOError):
                continue
