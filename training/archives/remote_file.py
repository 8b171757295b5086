"""A file on a web server, read piece by piece where it lies.

The coadd of one HEALPix pixel is hundreds of megabytes, one spectrum in it a few hundred kilobytes:
astropy reads headers, tables and single rows through this, and the rest stays where it is.
"""

from __future__ import annotations

import io
import re

from training.archives.transfer import Answer, Client, TransferFailed

BLOCK_BYTES = 64 * 2**10
_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)")


class RemoteFile(io.RawIOBase):
    """Read-only and seekable, by HTTP ranges (RFC 9110, section 14).

    Any reading may raise what `Client.request` does. Who reads through astropy looks at `failure`
    afterwards: astropy takes an error while it looks for the next header for the end of the file.
    """

    def __init__(self, client: Client, url: str) -> None:
        super().__init__()
        self._client = client
        self._url = url
        self._position = 0
        self._blocks: dict[int, bytes] = {}
        self._length: int | None = None
        self._mark = ""
        self.failure: OSError | ValueError | None = None
        self._load(0, 1)

    @property
    def length(self) -> int:
        """Bytes of the whole file."""
        assert self._length is not None, "the first range tells the length"
        return self._length

    def readable(self) -> bool:
        """It is."""
        return True

    def seekable(self) -> bool:
        """It is."""
        return True

    def tell(self) -> int:
        """Where the next reading begins."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move to another place."""
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self.length}[whence]
        self._position = max(0, start + offset)
        return self._position

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        """Fill a buffer, as far as the file goes."""
        end = min(self._position + len(buffer), self.length)
        if end <= self._position:
            return 0
        first, last = self._position // BLOCK_BYTES, -(-end // BLOCK_BYTES)
        missing = [number for number in range(first, last) if number not in self._blocks]
        if missing:
            self._load(missing[0], missing[-1] + 1)
        content = b"".join(self._blocks[number] for number in range(first, last))
        start = self._position - first * BLOCK_BYTES
        piece = content[start : start + end - self._position]
        buffer[: len(piece)] = piece
        self._position += len(piece)
        return len(piece)

    def _load(self, first: int, last: int) -> None:
        try:
            self._ask(first, last)
        except (OSError, ValueError) as error:
            self.failure = error
            raise

    def _ask(self, first: int, last: int) -> None:
        start, end = first * BLOCK_BYTES, last * BLOCK_BYTES
        if self._length is not None:
            end = min(end, self._length)

        def piece(answer: Answer) -> tuple[bytes, int, str]:
            given = _RANGE.fullmatch(answer.headers.get("content-range", ""))
            if given is None:
                raise ValueError("the server does not give parts of a file")
            begin, stop, length = int(given[1]), int(given[2]) + 1, int(given[3])
            if begin != start or stop != min(end, length) or stop - begin != len(answer.content):
                raise ValueError(
                    f"asked for bytes {start} to {end}, got {len(answer.content)} of {given[0]}"
                )
            mark = answer.headers.get("etag") or answer.headers.get("last-modified", "")
            return answer.content, length, mark

        asked = {"Range": f"bytes={start}-{end - 1}"}
        content, length, mark = self._client.request("GET", self._url, piece, headers=asked)
        if self._length is None:
            self._length, self._mark = length, mark
        elif (length, mark) != (self._length, self._mark):
            raise TransferFailed(f"{self._url} changed while it was read")
        for number in range(first, last):
            block = content[(number - first) * BLOCK_BYTES : (number - first + 1) * BLOCK_BYTES]
            self._blocks[number] = block
