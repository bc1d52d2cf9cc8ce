"""Messages over a pair of pipes, the same on both sides: a line of JSON, then as many raw bytes as its "bytes" says.

Every wait has an end. The pipes are made non-blocking, so that neither a silent nor a deaf other side can hold a
process.
"""

from __future__ import annotations

import json
import os
import selectors
import time
from collections.abc import Iterator
from typing import Any, BinaryIO

__all__ = ["GoneError", "Pipe"]

_CHUNK = 1 << 16
_LONGEST = 1 << 20  # of a header, and of what a login shell may say before the first message


class GoneError(Exception):
    """The other side closed the stream, kept silent or did not listen for too long, or sends something else."""


class Pipe:
    """One end of a stream.

    Attributes:
        stopped: a reason to raise `GoneError` at the next wait; a signal handler may set it.

    Args:
        silence_s: how long the other side may say nothing at all; None: as long as it likes.
        patience_s: how long it may take nothing of what is sent.
        wake: a descriptor that a signal makes readable; a wait ends then.
    """

    def __init__(
        self,
        reading: int,
        writing: int,
        *,
        silence_s: float | None = None,
        patience_s: float = 60.0,
        wake: int = -1,
    ) -> None:
        self._reading, self._writing, self._wake = reading, writing, wake
        self._silence_s, self._patience_s = silence_s, patience_s
        for descriptor in (reading, writing):
            os.set_blocking(descriptor, False)
        self._inward, self._outward = selectors.DefaultSelector(), selectors.DefaultSelector()
        self._inward.register(reading, selectors.EVENT_READ)
        self._outward.register(writing, selectors.EVENT_WRITE)
        if wake >= 0:
            self._inward.register(wake, selectors.EVENT_READ)
        self._buffer = bytearray()
        self._left = 0  # data of the message in hand, still to be read
        self._heard = time.monotonic()
        self.stopped = ""

    def close(self) -> None:
        """Frees the selectors; the descriptors are their owner's."""
        self._inward.close()
        self._outward.close()

    def wait(self, seconds: float | None = None) -> bool:
        """Sleeps until there is something to read (true), or a signal came or the time is over (false)."""
        return bool(self._buffer) or self._listen(seconds)

    def _listen(self, seconds: float | None) -> bool:
        """As `wait`, for what has not been read yet."""
        if self.stopped:
            raise GoneError(self.stopped)
        if self._silence_s is not None:
            left = self._heard + self._silence_s - time.monotonic()
            if left <= 0:
                raise GoneError(f"nothing was heard for {self._silence_s:g} s")
            seconds = left if seconds is None else min(left, seconds)
        ready = {key.fd for key, _ in self._inward.select(seconds)}
        if self._wake in ready:
            os.read(self._wake, 4096)
        if self.stopped:
            raise GoneError(self.stopped)
        return self._reading in ready

    def write(self, data: bytes) -> None:
        """Sends bytes as they are."""
        view = memoryview(data)
        while view:
            try:
                view = view[os.write(self._writing, view[: 16 * _CHUNK]) :]
            except BlockingIOError:
                if not self._outward.select(self._patience_s):
                    raise GoneError(f"nothing was taken for {self._patience_s:g} s") from None
            except OSError as error:
                raise GoneError("the stream was closed") from error

    def send(self, header: dict[str, Any], data: bytes = b"") -> None:
        """Sends a message."""
        self.write(json.dumps({**header, "bytes": len(data)}).encode() + b"\n" + data)

    def send_file(self, header: dict[str, Any], file: BinaryIO) -> None:
        """Sends a message whose data is an open file, from its start on."""
        size = os.fstat(file.fileno()).st_size
        self.write(json.dumps({**header, "bytes": size}).encode() + b"\n")
        while size:
            try:
                chunk = file.read(min(size, 16 * _CHUNK))
            except OSError as error:
                raise GoneError(f"a file could not be read any further: {error.strerror}") from error
            if not chunk:
                raise GoneError("a file became shorter while it was sent")
            self.write(chunk)
            size -= len(chunk)

    def find(self, mark: bytes, timeout_s: float) -> None:
        """Drops all that comes before `mark`, and the mark."""
        deadline, dropped = time.monotonic() + timeout_s, 0
        while mark not in self._buffer:
            excess = max(0, len(self._buffer) - len(mark))
            dropped += excess
            del self._buffer[:excess]
            if dropped > _LONGEST:
                raise GoneError("something else answers there")
            self._fill(deadline)
        del self._buffer[: self._buffer.index(mark) + len(mark)]

    def receive(self, timeout_s: float | None = None) -> dict[str, Any]:
        """The next message's header; what is left of the last message's data is dropped."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        for _ in self.chunks():
            pass
        while b"\n" not in self._buffer:
            if len(self._buffer) > _LONGEST:
                raise GoneError("something else answers there")
            self._fill(deadline)
        line, _, rest = bytes(self._buffer).partition(b"\n")
        self._buffer[:] = rest
        try:
            header = json.loads(line)
            self._left = int(header["bytes"])
        except (ValueError, KeyError, TypeError) as error:
            raise GoneError("something else answers there") from error
        return dict(header)

    def chunks(self) -> Iterator[bytes]:
        """The data of the message in hand, piece by piece."""
        while self._left:
            if not self._buffer:
                self._fill(time.monotonic() + self._patience_s)
            chunk = bytes(self._buffer[: self._left])
            del self._buffer[: len(chunk)]
            self._left -= len(chunk)
            yield chunk

    def data(self) -> bytes:
        """The data of the message in hand."""
        return b"".join(self.chunks())

    def _fill(self, deadline: float | None) -> None:
        """Reads more, at least one byte."""
        before = len(self._buffer)
        while len(self._buffer) == before:
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                raise GoneError("no answer came in time")
            if not self._listen(left):
                continue
            try:
                got = os.read(self._reading, _CHUNK)
            except BlockingIOError:
                continue
            except OSError as error:
                raise GoneError("the stream was closed") from error
            if not got:
                raise GoneError("the stream was closed")
            self._heard = time.monotonic()
            self._buffer += got
