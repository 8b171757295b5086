"""Which encoder a build uses, and what the sky writes down of it.

Each version names its encoder; that of the published one is the sky's. sky.json names it too, for
a sky that has no version yet, and may be a version behind where a run was killed.
"""

from __future__ import annotations

import os
from pathlib import Path

from index import disk, sky_head
from index.errors import EncoderMismatch, NotASky, VersionCorrupt
from index.manifest import EncoderReference, SkyHead, read_head, read_manifest, write_head
from index.versions import current_number, numbers
from training import encoder as encoders
from training import hub
from training.encoder import Encoder, EncoderNotFound
from training.precision import Precision


def head_of(sky: Path) -> SkyHead | None:
    """The sky's own encoder; None for a folder that is not there or empty.

    Raises:
        NotASky: the folder holds something else.
    """
    if not sky.exists():
        return None
    if sky.is_dir():
        ours = ("build.lock",)  # all that a build killed at its very start leaves
        there = [each for each in os.listdir(sky) if each not in ours]
        if not [each for each in there if not each.startswith(disk.TEMPORARY)]:
            return None
    if not sky.is_dir() or not (sky / "sky.json").is_file():
        raise NotASky(
            f"expected a new or empty folder or a sky, but {sky} holds something else: "
            "name another folder"
        )
    head = read_head(sky)
    known = numbers(sky)
    try:
        number = current_number(sky)
    except VersionCorrupt:
        number = -1
    if number in known:  # else the newest that is whole, as versions.find_base has it
        known = [number]
    for number in reversed(known):
        try:
            return head.model_copy(update={"encoder": read_manifest(sky, number).encoder})
        except VersionCorrupt:
            continue
    return head


def write_down(sky: Path, encoder: EncoderReference) -> None:
    """Make sky.json name the encoder of the published version, where it does not."""
    head = read_head(sky)
    if head.encoder != encoder:
        write_head(sky, head.model_copy(update={"encoder": encoder}))


def is_empty(sky: Path) -> bool:
    """Whether no build has stored a vector or published anything yet."""
    made = ("store/*/*/*/part.json", "versions/*/manifest.json")
    return not any(any(sky.glob(pattern)) for pattern in made)


def encoder_name(encoder: str | Path | None, head: SkyHead | None) -> str:
    """Shipped name, absolute path of a folder, or id on the Hub; the sky's own where None."""
    if encoder is None:
        return "nano" if head is None else head.encoder.name
    if isinstance(encoder, str) and (encoders.SHIPPED / encoder).is_dir():
        return encoder
    return os.path.abspath(encoder) if os.path.exists(encoder) else str(encoder)


def local_name(name: str) -> str:
    """The name, or the folder in the cache where it is an id on the Hub: which is asked once.

    Raises:
        EncoderNotFound: the Hub does not give it.
    """
    if (encoders.SHIPPED / name).is_dir() or os.path.exists(name) or not hub.is_id(name):
        return name
    try:
        return str(hub.fetch(name))
    except ValueError as error:
        raise EncoderNotFound(f"no folder {name!r} here, and {error}") from error


def reference_of(
    name: str, loaded: Encoder, sky: Path, head: SkyHead | None, *, precision: Precision
) -> EncoderReference:
    """What the sky writes down; `precision` is the sky's own.

    An encoder without a search head gets that of the sky, which a new sky does not have yet.

    Raises:
        EncoderMismatch: the sky was made with another encoder, or with a head that is gone.
    """
    if head is not None and head.encoder.hash != loaded.hash:
        raise EncoderMismatch(
            f"{sky} was made with the encoder {head.encoder.name!r} ({head.encoder.hash[:12]}), "
            f"not with {name!r} ({loaded.hash[:12]}), and vectors of two encoders do not compare: "
            "build a new sky, or name the encoder in the TOML of a nightly, which embeds all again"
        )
    if head is not None and not loaded.head_hash and head.encoder.head_hash:
        sky_head.attach(sky, loaded, head.encoder)
    return EncoderReference(
        name=name,
        hash=loaded.hash,
        head_hash=loaded.head_hash,
        dim=loaded.dim,
        search_dim=loaded.search_dim,
        precision=precision,
    )
