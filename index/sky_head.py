"""The search head of a sky whose encoder has none: centred principal components, kept in the sky.

    SKY/head/<first 16 digits of its hash>/config.json, model.safetensors

Fitted by the first build on the vectors it stored, view by view, and used by every later one. A
view that comes later is added, which gives a new head and new segments; the views that were there
stay as they are. Every version names its head, so that an older one can be published again.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from index import disk
from index.errors import EncoderMismatch, VersionCorrupt
from index.manifest import EncoderReference, FileRecord, record
from index.store import Store
from training import artifact
from training.disk import flush
from training.encoder import Encoder
from training.search_head import SearchHead, principal_components

FOLDER = "head"
MOST_ROWS = 65_536  # of a view that the components are fitted on
FEW_ROWS = 2_560  # ten a dimension of the search space: below, a note says so


def folder_of(sky: Path, head_hash: str) -> Path:
    """Where a head of that hash lies."""
    return sky / FOLDER / head_hash[:16]


def is_in(sky: Path, head_hash: str) -> bool:
    """Whether the sky itself holds the head of that hash."""
    return bool(head_hash) and folder_of(sky, head_hash).is_dir()


def attach(sky: Path, encoder: Encoder, reference: EncoderReference) -> None:
    """Make an encoder search with the head that a sky or a version names.

    Raises:
        EncoderMismatch: it is another encoder, or the head is neither its own nor in the sky.
        VersionCorrupt: the sky's head is damaged.
    """
    if encoder.hash == reference.hash and encoder.head_hash == reference.head_hash:
        return
    if encoder.hash != reference.hash or not is_in(sky, reference.head_hash):
        raise EncoderMismatch(
            f"{sky} was made with encoder {reference.hash[:12]}, head {reference.head_hash[:12]}, "
            f"but {reference.name} is now {encoder.hash[:12]}, head "
            f"{encoder.head_hash[:12] or 'none'}, and their vectors do not compare: bring the one "
            "back that it was made with, or build the sky again"
        )
    head, found = _load(folder_of(sky, reference.head_hash))
    if found != reference.head_hash:
        raise VersionCorrupt(
            f"{folder_of(sky, reference.head_hash)}: its content has changed, it is no longer the "
            f"search head {reference.head_hash[:12]}"
        )
    encoder.use_head(head, found)


def complete(
    sky: Path, encoder: Encoder, store: Store, rows: Mapping[str, pa.ChunkedArray]
) -> tuple[str, ...]:
    """Fit the views that the sky's head lacks, on stored vectors, and attach the head.

    Args:
        sky: Folder of the sky, while it is locked.
        encoder: Without a head, or with that of this sky.
        store: Where the vectors are.
        rows: Fingerprints of the new rows of each view.

    Returns:
        What a user should know of a head that is new.
    """
    known = () if encoder.head is None else encoder.head.config.views
    missing = {view: names for view, names in rows.items() if len(names) and view not in known}
    if not missing or (encoder.head is not None and not is_in(sky, encoder.head_hash)):
        return ()  # an artefact's own head is never added to
    vectors, notes = {}, []
    for view, names in sorted(missing.items()):
        # fingerprints are hashes: the lowest are a random sample, whatever the order of files
        unique = names.unique()
        lowest = pc.bottom_k_unstable(unique, k=min(MOST_ROWS, len(unique)))
        some = sorted(unique.take(lowest).to_pylist())
        vectors[view] = store.vectors(view, some).astype(np.float32)
        if len(some) < FEW_ROWS:
            notes.append(
                f"the encoder has no search head, and the principal components of view {view} "
                f"that stand in for it were fitted on {len(some):,} vectors: where many more "
                "follow, a new sky is better"
            )
    head = principal_components(vectors, like=encoder.head)
    head_hash = _save(sky, head)
    encoder.use_head(head, head_hash)
    return tuple(notes)


def files_of(sky: Path, head_hash: str) -> list[FileRecord]:
    """What a version writes down of the sky's own head; nothing where it is the encoder's."""
    if not is_in(sky, head_hash):
        return []
    folder = folder_of(sky, head_hash)
    return [record(sky, folder / name) for name in (artifact.CONFIG, artifact.WEIGHTS)]


def _save(sky: Path, head: SearchHead) -> str:
    with disk.new_folder(sky / FOLDER) as temporary:
        artifact.save_head(temporary, head)
        for name in (artifact.CONFIG, artifact.WEIGHTS):
            flush(temporary / "head" / name)
        _, head_hash = _load(temporary / "head")
        disk.seal(temporary / "head", folder_of(sky, head_hash))
    return head_hash


def _load(folder: Path) -> tuple[SearchHead, str]:
    """A head and its hash, which is what it would be in an artefact."""
    read: artifact.Read = {}
    try:
        head = artifact.load_head(folder.parent, part=folder.name, read=read)
    except ValueError as error:
        raise VersionCorrupt(str(error)) from error
    return head, artifact.hash_of({f"head/{Path(name).name}": sha for name, sha in read.items()})
