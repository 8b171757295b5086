"""Sky: what a user opens, asks and looks at."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
from jaxtyping import Bool, Float32, Int64
from mocpy import MOC
from numpy import ndarray

from discovery.errors import SourceGone
from discovery.near_duplicates import first_of_each_place
from discovery.query import DEFAULT_K, Query
from discovery.results import Hits, hits_table
from discovery.seeds import (
    angle_text,
    footprint_text,
    in_footprint,
    resolve,
    without_position,
)
from index import sky_head
from index.choosing import choose, objects_in
from index.cluster import Missing
from index.errors import OutsideFootprint
from index.faiss_distributions import check_one_faiss
from index.filtering import Filter
from index.footprint import cells_of, read_moc
from index.precision import checked
from index.ray_nodes import Cluster, cluster_of
from index.version import Version
from index.versions import current_number, open_version
from training import encoder as encoders
from training.encoder import Encoder
from training.modalities import VIEWS
from training.observations import CatalogueValue, Observation
from training.surveys import reader

_BRIGHT_SHARE = 0.1  # "bright" = among this share of the objects with a magnitude


def open(sky: str | Path, *, device: str = "cpu", cluster: str | Cluster | None = None) -> Sky:
    """Open the published version of a sky.

    Args:
        sky: Its folder.
        device: Where large segments are searched: cpu, or a device of torch such as cuda.
        cluster: A Ray cluster whose machines hold the segments and search them: its address, "auto"
            or "local", or a Cluster, which tells how many hold what (docs/cluster.md); None: this
            process. `close` ends what was started there.

    Raises:
        NotASky: the folder is missing, or is not a sky.
        VersionCorrupt: a file of the version is missing or damaged.
        FaissConflict: two distributions of FAISS are installed over each other.
        GpuUnavailable: the device is not there, or has too little memory.
        ClusterUnavailable: there is no such cluster, or segments cannot be opened on it.
    """
    check_one_faiss()
    return Sky(Path(sky), device=device, cluster=cluster_of(cluster))


class Sky:
    """One published version of a sky. Safe to share between threads; `refresh` moves it on."""

    def __init__(
        self, folder: Path, *, device: str = "cpu", cluster: Cluster | None = None
    ) -> None:
        self.folder = folder
        self.device = device
        self.cluster = cluster
        self._version = open_version(folder, device=device, cluster=cluster)
        self._encoder: Encoder | None = None

    def __enter__(self) -> Sky:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End what was started on a cluster, after which nothing can be searched there."""
        if self._version.holders is not None:
            self._version.holders.close()

    @property
    def version(self) -> int:
        """Number of the version that is open."""
        return self._version.number

    @property
    def views(self) -> tuple[str, ...]:
        """Views that can be searched, preferred first."""
        return tuple(view for view in VIEWS if view in self._version.views)

    @property
    def num_objects(self) -> int:
        """Objects in this version."""
        return self._version.num_objects

    @property
    def num_without_position(self) -> int:
        """Objects that no search by position can reach."""
        return self._version.num_without_position

    @property
    def encoder_hash(self) -> str:
        """sha256 of the encoder that made the vectors."""
        return self._version.encoder.hash

    def refresh(self) -> bool:
        """Move on to the version that is published now; True if it is another one."""
        if current_number(self.folder) == self._version.number:
            return False
        published = open_version(self.folder, device=self.device, cluster=self.cluster)
        if published.encoder != self._version.encoder:
            self._encoder = None
        self._version = published
        return True

    def search(self, query: Query) -> Hits:
        """Find the objects most similar to the query's seeds, best first.

        Fewer than k come back where filters, exclusions or collapsing leave fewer. Where actors of
        a cluster are lost, `Hits.missing` tells what was not searched.

        Raises:
            UnknownObject: an id is not in this sky.
            OutsideFootprint: a position, or a cone without objects, lies outside the footprint.
            NoObjectNear: no object lies within the radius of a position.
            EncoderMismatch: the encoder at hand is not the one that made this sky.
            ValueError: k is above the corpus, the predicate names an unknown column, a file cannot
                be used, or the seeds have no view in common or cancel out.
        """
        version = self._version
        own = query.file is not None or len(query.observations) > 0
        aim = resolve(query, version, self.encoder() if own else None)
        there = objects_in(version, aim.view)
        num_there = int(np.count_nonzero(there))
        if query.k is not None and query.k > num_there:
            raise ValueError(
                f"k must be between 1 and {num_there:,}, the number of objects with view "
                f"{aim.view} in this sky, got {query.k:,}"
            )
        left_out = np.union1d(aim.keys, version.keys_of(query.exclude)).astype(np.int64)
        chosen = _chosen(version, query, aim.view)
        searched = there[left_out] if chosen.allowed is None else (there & chosen.allowed)[left_out]
        num_searched = chosen.num_among(there) - int(np.count_nonzero(searched))
        wanted = min(query.k or DEFAULT_K, num_searched)
        asked = wanted
        keys, scores = np.zeros(0, np.int64), np.zeros(0, np.float32)
        missing: list[Missing] = []
        while asked:
            found = version.search(
                aim.vector[None],
                view=aim.view,
                k=asked,
                chosen=chosen,
                exclude=left_out,
                recall=query.recall,
                missing=missing,
            )
            real = found.keys[0] >= 0
            keys, scores = found.keys[0][real], found.scores[0][real]
            if query.collapse_arcsec is None:
                break
            keys, scores = _collapsed(version, keys, scores, query.collapse_arcsec)
            if len(keys) >= wanted or asked == num_searched:
                keys, scores = keys[:wanted], scores[:wanted]
                break
            asked = min(2 * asked, num_searched)
        positional = any(
            each is not None for each in (query.position, query.name, query.cone, query.moc)
        )
        return Hits(
            table=hits_table(
                version.objects(keys),
                scores=scores,
                surveys=_surveys(version, keys, aim.view),
                views=[aim.view] * len(keys),
            ),
            query=query,
            version=version.number,
            encoder_hash=version.encoder.hash,
            view=aim.view,
            seeds=aim.seeds,
            num_searched=num_searched,
            num_without_position=version.num_without_position if positional else None,
            missing=tuple(missing),
        )

    def missing_footprint(self, hits: Hits) -> MOC | None:
        """Where the rows lie that a search could not look at; None where it looked at all.

        Cells of order 10 that hold such an object, without their neighbours. Objects without a
        position are in none.
        """
        names = {name for part in hits.missing for name in part.segments}
        pairs = zip(self._version.segments, self._version.segment_rows, strict=True)
        keys = [rows.keys() for live, rows in pairs if live.segment.name in names]
        if not keys:
            return None
        columns = ["ra_deg", "dec_deg"]
        table = self._version.objects(np.unique(np.concatenate(keys)), columns=columns)
        known = table.filter(pc.is_valid(table["ra_deg"]))
        return cells_of(known["ra_deg"].to_numpy(), known["dec_deg"].to_numpy())

    def nearest(
        self,
        keys: Int64[ndarray, " query"],
        *,
        view: str,
        k: int,
        among: Int64[ndarray, " corpus"],
    ) -> Int64[ndarray, "query k"]:
        """Keys of the k most similar to each object, itself included; short rows end in -1."""
        vectors = self._version.vectors(keys, view)
        return self._version.search(vectors, view=view, k=k, keys=among).keys

    def keys_in_view(
        self, object_ids: Sequence[str], view: str
    ) -> tuple[Int64[ndarray, " found"], Bool[ndarray, " object"]]:
        """Keys of those ids that this sky has in a view, and which of the ids they are."""
        keys = self._version.object_table.keys_of_ids(object_ids)
        found = keys >= 0
        found[found] = objects_in(self._version, view)[keys[found]]
        return keys[found], found

    def encoder(self) -> Encoder:
        """The encoder that made this sky, read when first needed.

        Raises:
            EncoderMismatch: the encoder found, or its search head, is another one than made the
                vectors.
            EncoderNotFound: it is not there any more.
        """
        if self._encoder is None:
            made_by = self._version.encoder
            encoder = encoders.load(made_by.name, precision=checked(made_by.precision))
            sky_head.attach(self.folder, encoder, made_by)
            self._encoder = encoder
        return self._encoder

    def embed(
        self, observations: Sequence[Observation], *, view: str | None = None
    ) -> Float32[ndarray, "n 256"]:
        """Unit search vectors of observations of one's own, one each.

        Args:
            observations: As a survey's reader gives them.
            view: What to read of each; None = image where there is one, else spectrum.

        Raises:
            ValueError: an observation does not have the view.
        """
        encoder = self.encoder()
        chosen: dict[str, list[int]] = {}  # view -> numbers of the observations read in it
        for number, observation in enumerate(observations):
            views = encoder.views(observation)
            own = view or next(iter(views), None)
            if own is None or own not in views:
                raise ValueError(
                    f"observation {observation.object_id} has no view {own or 'at all'}: it has "
                    f"{', '.join(views) or 'nothing that this encoder reads'}"
                )
            chosen.setdefault(own, []).append(number)
        vectors = np.zeros((len(observations), encoder.search_dim), np.float32)
        for own, numbers in chosen.items():
            embedded = encoder.embed([observations[number] for number in numbers], views=(own,))
            surveys = [observations[number].survey for number in numbers]
            vectors[numbers] = encoder.search_vectors(embedded.vectors, own, surveys)
        return vectors

    def object(self, object_id: str) -> dict[str, CatalogueValue]:
        """The object table's line of one object; None = unknown.

        Raises:
            UnknownObject: the id is not in this sky.
        """
        line = self._version.objects(self._version.keys_of([object_id])).to_pylist()[0]
        return {
            name: ",".join(value) if isinstance(value, list) else value
            for name, value in line.items()
            if name != "object_key" and not name.startswith("_")
        }

    def observations(self, object_id: str, *, view: str | None = None) -> list[Observation]:
        """Read again what the surveys saw of an object, for cutouts and spectra.

        Args:
            object_id: An object of this sky.
            view: Only what this view was made from: "image" or "spectrum"; None = everything.

        Raises:
            UnknownObject: the id is not in this sky.
            SourceGone: a file is not there any more, or does not hold the object any more.
        """
        where = ("reader", "source", "source_part")
        rows = self._version.rows(self._version.keys_of([object_id]), where)
        columns = (rows[name].to_pylist() for name in (*where, "view"))
        places = dict.fromkeys(  # an observation with two views has two rows
            (name, source, part)
            for name, source, part, made in zip(*columns, strict=True)
            if made != "joint" and view in (None, made)
        )
        observations = []
        for name, source, part in places:
            try:
                observations.append(reader(name).read_one(Path(source), part))
            except (OSError, ValueError) as error:
                raise SourceGone(
                    f"object {object_id} cannot be read again from {source}"
                    f"{f' ({part})' if part else ''}: {error}"
                ) from error
        return observations

    def random_bright(self, seed: int | None = None) -> str:
        """Id of an object drawn from the brightest tenth in r, or of any object without magnitudes.

        Args:
            seed: The same seed draws the same object; None draws anew.
        """
        rng = np.random.default_rng(seed)
        keys = np.flatnonzero(objects_in(self._version, self.views[0]))
        mag_r = self._version.objects(keys, ["mag_r"])["mag_r"].to_numpy()  # NaN where unknown
        num_known = int(np.isfinite(mag_r).sum())
        some = np.arange(len(keys))
        if num_known:
            some = np.argsort(mag_r)[: max(1, round(_BRIGHT_SHARE * num_known))]  # NaN sorts last
        drawn = keys[[int(rng.choice(some))]]
        return str(self._version.objects(drawn, ["object_id"])["object_id"][0].as_py())


def _collapsed(
    version: Version,
    keys: Int64[ndarray, " hit"],
    scores: Float32[ndarray, " hit"],
    radius_arcsec: float,
) -> tuple[Int64[ndarray, " kept"], Float32[ndarray, " kept"]]:
    """The best hit of each place."""
    table = version.objects(keys, ["ra_deg", "dec_deg"])
    ra_deg, dec_deg = (table[name].to_numpy().astype(np.float64) for name in ("ra_deg", "dec_deg"))
    kept = first_of_each_place(ra_deg, dec_deg, radius_arcsec)
    return keys[kept], scores[kept]


def _chosen(version: Version, query: Query, view: str) -> Filter:
    """What predicate, cone, MOC and surveys leave."""
    cone = None
    if query.cone is not None:
        ra_deg, dec_deg, radius_deg = query.cone
        cone = (ra_deg, dec_deg, radius_deg * 3600)
        inside = choose(version, cone=cone)
        assert inside.allowed is not None
        if not inside.allowed.any() and not in_footprint(version, ra_deg, dec_deg):
            raise OutsideFootprint(
                f"no object within {angle_text(radius_deg * 3600)} of {ra_deg:.6f} "
                f"{dec_deg:+.6f}, which is outside the footprint of this sky "
                f"({footprint_text(version)}); {without_position(version)}"
            )
    return choose(
        version,
        where=query.where,
        cone=cone,
        moc=None if query.moc is None else read_moc(Path(query.moc)),
        surveys=query.seen_by,
        view=view,
    )


def _surveys(version: Version, keys: Int64[ndarray, " hit"], view: str) -> list[str]:
    """Whose observations of each object were compared, joined by commas."""
    rows = version.surveys(keys)
    seen: dict[int, dict[str, None]] = {int(key): {} for key in keys}
    columns = (rows[name].to_pylist() for name in ("object_key", "survey", "view"))
    for key, survey, own in zip(*columns, strict=True):
        if own == view or (view == "any" and own != "joint"):
            seen[key][survey] = None
    return [",".join(seen[int(key)]) for key in keys]
