"""Sources against the input manifest: which files are new or changed, which are gone, which may be.

A file is gone when its folder can be listed and does not have it, or when no source names it any
more. What cannot be told is an outage, and takes nothing away:

- a source that is missing, cannot be listed or holds no file, while the manifest knows files of it;
- a folder that is empty while the manifest knows files in it, as a disk leaves it that is not
  mounted;
- a file whose state cannot be asked for, for another reason than that it is not there.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import pyarrow as pa
import pyarrow.compute as pc

from index import disk
from index.building import list_files
from index.embedding import InputFile
from index.empty_files import EmptyFile, stands_behind
from index.inputs import Input, printable
from index.removals import InputKey
from index.updating import SurveyFiles
from training import surveys
from training.observations import Skipped


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Where files of a survey lie."""

    survey: str  # name of a reader
    path: str  # absolute: a file, a folder, or a pattern with * ? [ ] and ** for any folders

    @property
    def root(self) -> str:
        """The path up to its first wildcard."""
        if not glob.has_magic(self.path):
            return self.path
        parts = Path(self.path).parts
        first = next(i for i, part in enumerate(parts) if glob.has_magic(part))
        return str(Path(*parts[:first]))

    def has(self, key: InputKey) -> bool:
        """Whether a file of the manifest lies here."""
        survey, path = key
        return survey == self.survey and (path == self.root or path.startswith(_below(self.root)))


@dataclass(frozen=True, slots=True)
class Outage:
    """A place that could not be looked at; its files stay as they were."""

    place: str
    reason: str
    num_files: int  # of the manifest, which stay


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """What the sources have against what the version was made from."""

    parts: tuple[SurveyFiles, ...]  # only files to read
    gone: frozenset[InputKey]
    outages: tuple[Outage, ...]
    num_same: int
    new: frozenset[InputKey]  # of those to read, what the manifest does not know
    left_alone: tuple[InputKey, ...] = ()  # that were read in vain before, see empty_files.py

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to read and nothing is gone."""
        return not self.gone and not any(part.to_read for part in self.parts)


@dataclass(slots=True)
class _Known:
    """The input manifest by column, as objects for a million files cost ten seconds."""

    places: dict[InputKey, int]
    num_bytes: list[int]
    modified_ns: list[int]
    table: pa.Table

    def sha256(self, key: InputKey) -> str | None:
        place = self.places.get(key)
        return None if place is None else self.table["sha256"][place].as_py()


def compare(
    sources: Sequence[Source],
    *,
    sky: Path,
    inputs: Path | None,
    empty: Mapping[InputKey, EmptyFile] = MappingProxyType({}),
    anew: bool = False,
) -> Comparison:
    """Look at every source.

    Args:
        sources: All there are.
        sky: Its own files are none of a survey's.
        inputs: Input manifest of the version before; None: there is none.
        empty: Files that gave no row when they were read.
        anew: Every file is to be read, also where nothing in it changed.

    Raises:
        VersionCorrupt: the input manifest is damaged.
    """
    known = _read_known(inputs)
    listed: dict[InputKey, None] = {}
    outages: list[Outage] = []
    out: list[Source] = []
    for source in sources:
        found, reason = _list(source, sky)
        listed.update(dict.fromkeys((source.survey, path) for path in found))
        if reason:
            num = sum(source.has(key) for key in known.places)
            outages.append(Outage(printable(source.path), printable(reason), num))
            out.append(source)
    gone, more = _gone(sources, out, listed, known)
    outages += more
    touched: set[str] = set()
    left_alone: tuple[InputKey, ...] = ()
    if anew:
        changed = list(listed)
    else:
        differ = [key for key in listed if not _same(key, known)]
        settled = {key for key in differ if key not in known.places and _is_settled(key, empty)}
        touched = {path for _, path in gone} | {key[1] for key in differ if key not in settled}
        there = {path for _, path in known.places} - touched
        alone = {key for key in settled if empty[key].stands_behind <= there}
        left_alone = tuple(key for key in differ if key in alone)
        changed = [key for key in differ if key not in alone]
        changed += [key for key in _left_out_for(touched, known) if key in listed]
    return Comparison(
        parts=_parts(list(dict.fromkeys(changed)), touched, known),
        gone=frozenset(gone),
        outages=tuple(outages),
        num_same=len(listed) - len(set(changed)),
        new=frozenset(key for key in changed if key not in known.places),
        left_alone=left_alone,
    )


def _read_known(inputs: Path | None) -> _Known:
    if inputs is None:
        return _Known({}, [], [], pa.table({}))
    table = disk.read_table(inputs)
    keys = zip(table["survey"].to_pylist(), table["path"].to_pylist(), strict=True)
    return _Known(
        {key: place for place, key in enumerate(keys)},
        table["num_bytes"].to_pylist(),
        table["modified_ns"].to_pylist(),
        table,
    )


def _list(source: Source, sky: Path) -> tuple[list[str], str]:
    """Files of a source, and why it could not be listed where it could not."""
    places = [source.path]
    if glob.has_magic(source.path):
        places = sorted(glob.glob(source.path, recursive=True))
        if not places:
            return [], "nothing has a name like this"
    found: list[str] = []
    reasons: list[str] = []
    for place in places:
        try:
            found += list_files(Path(place), survey=source.survey, sky=sky)
        except (OSError, ValueError) as error:
            reasons.append(" ".join(str(error).split()))
    # of a pattern, a folder without a file of the survey is none that it means
    return found, "" if found else (reasons or ["it holds no file of the survey"])[0]


def _gone(
    sources: Sequence[Source],
    out: Sequence[Source],
    listed: dict[InputKey, None],
    known: _Known,
) -> tuple[list[InputKey], list[Outage]]:
    """Files of the manifest that are gone, and those of which that cannot be said."""
    gone: list[InputKey] = []
    unclear: dict[tuple[str, str], int] = {}  # place, reason -> files
    empty: dict[str, str | None] = {}
    for key in known.places:
        if key in listed or any(source.has(key) for source in out):
            continue
        mine = [source.root for source in sources if source.has(key)]
        reason = _why_unclear(key[1], max(mine, key=len), empty) if mine else None
        if reason is None:
            gone.append(key)
        else:
            unclear[reason] = unclear.get(reason, 0) + 1
    return gone, [Outage(printable(place), reason, num) for (place, reason), num in unclear.items()]


def _why_unclear(path: str, root: str, empty: dict[str, str | None]) -> tuple[str, str] | None:
    """Place and reason where it cannot be said that a file is gone."""
    folder = os.path.dirname(path)
    try:
        os.stat(path)
        # else it is still there, but the source does not list it any more
        return (folder, closed) if (closed := _why_closed(folder)) else None
    except (FileNotFoundError, NotADirectoryError):
        pass
    except OSError as error:
        return folder, f"its files cannot be asked for: {error.strerror}"
    while folder.startswith(_below(root)) and not os.path.lexists(folder):
        folder = os.path.dirname(folder)
    if folder not in empty:
        empty[folder] = _why_empty(folder)
    reason = empty[folder]
    return None if reason is None else (folder, reason)


def _why_empty(folder: str) -> str | None:
    try:
        with os.scandir(folder) as entries:
            if next(entries, None) is None:
                return "the folder is empty, as of a disk that is not mounted"
    except OSError as error:
        return f"cannot be listed: {error.strerror}"
    return None


def _why_closed(folder: str) -> str | None:
    try:
        with os.scandir(folder):
            return None
    except OSError as error:
        return f"cannot be listed: {error.strerror}"


def _same(key: InputKey, known: _Known) -> bool:
    place = known.places.get(key)
    if place is None:
        return False
    survey, path = key
    try:
        status = os.stat(path)
    except OSError:
        return False
    if (status.st_size, status.st_mtime_ns) != (known.num_bytes[place], known.modified_ns[place]):
        return False
    if not hasattr(surveys.reader(survey), "companions"):
        return True
    line = known.table.slice(place, 1).to_pylist()[0]
    return Input.from_line(line).unchanged(_beside(key))


def _is_settled(key: InputKey, empty: Mapping[InputKey, EmptyFile]) -> bool:
    known = empty.get(key)
    return known is not None and known.is_settled and known.found.unchanged(_beside(key))


def _beside(key: InputKey) -> tuple[str, ...]:
    survey, path = key
    # opening a pipe would wait for ever
    beside = surveys.companions(survey, Path(path)) if os.path.isfile(path) else ()
    return tuple(map(str, beside))


def _left_out_for(touched: set[str], known: _Known) -> list[InputKey]:
    """Files with rows that stood behind the same rows of a file that changed or is gone."""
    if not touched or not known.places:
        return []
    some = pc.greater(pc.list_value_length(known.table["skipped"]), 0)
    lines = known.table.select(["survey", "path", "skipped"]).filter(some).to_pylist()
    return [
        (line["survey"], line["path"])
        for line in lines
        if touched & stands_behind([Skipped(**each) for each in line["skipped"]])
    ]


def _parts(
    changed: Sequence[InputKey], touched: set[str], known: _Known
) -> tuple[SurveyFiles, ...]:
    """Files to read, numbered over all surveys; content that is known need not be read again."""
    of_survey: dict[str, list[InputFile]] = {}
    for number, key in enumerate(changed):
        survey, path = key
        again = path not in touched  # as it is, but its rows may count now
        sha256 = None if again else known.sha256(key)
        of_survey.setdefault(survey, []).append(InputFile(number, path, sha256, _beside(key)))
    return tuple(SurveyFiles(survey=name, to_read=some) for name, some in of_survey.items())


def _below(folder: str) -> str:
    return os.path.join(folder, "")
