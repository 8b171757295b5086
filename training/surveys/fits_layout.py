"""How large the data of a FITS HDU are, by its header, and what is wrong with a file that fails.

astropy meets a damaged header with whatever exception Python has for it ('float' object cannot be
interpreted as an integer); here the same headers are walked once more to say which card is amiss.

Source: FITS Standard 4.0, sections 4.4.1 and 7.
"""

from __future__ import annotations

import io
from collections.abc import Mapping

from training.surveys.bintable import CARD_LENGTH, column_names, table_header

BLOCK = 2880
MAX_HEADER_BYTES = 1 << 22  # 50,000 cards: beyond it END is lost
MAX_AXES = 999
_BITS = (8, 16, 32, 64, -32, -64)


def num_data_bytes(header: Mapping[str, str]) -> int:
    """Bytes of data behind a header, without the padding.

    Raises:
        ValueError: a card that says so is missing, or is no such number.
    """
    num_axes = _whole(header, "NAXIS", high=MAX_AXES)
    axes = [_whole(header, f"NAXIS{axis}") for axis in range(1, num_axes + 1)]
    bits = header.get("BITPIX", "")
    if bits not in map(str, _BITS):
        raise ValueError(f"expected BITPIX as one of {', '.join(map(str, _BITS))}, got {bits!r}")
    num = 1 if axes else 0
    for length in axes:
        num *= length
    extra, groups = _whole(header, "PCOUNT", "0"), _whole(header, "GCOUNT", "1")
    return abs(int(bits)) // 8 * groups * (extra + num) if axes else 0


def has_end(block: bytes | bytearray) -> bool:
    """Whether a block of a header is its last."""
    end = b"END" + b" " * (CARD_LENGTH - 3)
    return any(block[at : at + CARD_LENGTH] == end for at in range(0, len(block), CARD_LENGTH))


def damage(stream: io.BufferedIOBase) -> str:
    """The first thing that is wrong with the headers of a FITS file, "" where they add up."""
    num_bytes = stream.seek(0, io.SEEK_END)
    start = number = 0
    while start < num_bytes:
        stream.seek(start)
        content = bytearray()
        while not has_end(content[-BLOCK:]):
            block = stream.read(BLOCK)
            if number and not content and not block.startswith(b"XTENSION="):
                if not block.strip(b"\0 \r\n"):
                    return ""
                return f"HDU {number}: no header where HDU {number - 1} ends"
            if len(block) < BLOCK or len(content) > MAX_HEADER_BYTES:
                return f"HDU {number}: truncated: its header has no END"
            content += block
        try:
            header = table_header(bytes(content), header_start=0, data_start=len(content))
            promised = num_data_bytes(header)
            column_names(header)  # astropy takes any number of them, and for ever
        except ValueError as error:
            return f"HDU {number}: {error}"
        start += len(content)
        if promised > num_bytes - start:
            return (
                f"HDU {number}: truncated: {promised:,} bytes are promised, "
                f"{num_bytes - start:,} bytes are left"
            )
        start += -(-promised // BLOCK) * BLOCK
        number += 1
    return ""


def _whole(
    header: Mapping[str, str], key: str, default: str = "", *, high: int | None = None
) -> int:
    text = header.get(key, default)
    if not text.isascii() or not text.isdecimal() or (high is not None and int(text) > high):
        limits = "of 0 or more" if high is None else f"from 0 to {high}"
        raise ValueError(f"expected {key} as a whole number {limits}, got {text!r}")
    return int(text)
