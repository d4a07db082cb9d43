"""The folder of a build: kept for one writer, and what is recorded there to go on and to repair."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from data_pipeline.building.plan import HELDOUT, PART_NAMES, TRAIN, ShardPlan
from data_pipeline.corpora.corpus_files import CorpusFile
from data_pipeline.corpora.corpus_locations import Location, searched_folder
from data_pipeline.corpora.corpus_scan import ReadingOptions
from data_pipeline.corpora.filters import TextRules
from data_pipeline.errors import DataError
from data_pipeline.files import (
    PARTIAL_SUFFIX,
    canonical_json,
    explaining,
    make_folder,
    read_json_object,
    readable_json,
    remove_partial_files,
    write_atomically,
)
from data_pipeline.remote.locations import check_location, show_url

BUILD_FILE = "build.json"
PLAN_FILE = "plan.json"
QUARANTINE_FILE = "quarantine.jsonl"
TOKENIZER_FOLDER = "tokenizer"

_LOCK_FILE = "build.lock"
# Tables of the scan and failures of tokenization; removed when the build is complete.
_WORK_FOLDER = ".build"
_PURPOSE = "the record of a build"


@dataclass(frozen=True, kw_only=True)
class BuildOptions:
    """What decides about the bytes of a data set beside corpus and tokenizer.

    Attributes:
        text_field: JSON field or parquet column with the text.
        name_field: JSON field or parquet column with the name.
        rules: Normalisation and filters.
        heldout_fraction: Share of documents held out.
        keeps_duplicates: Whether documents stay whose text has occurred before.
        keeps_names: Whether documents' names go into the shards.
        shard_text_bytes: Text in a shard; None chooses by the size of the corpus.
    """

    text_field: str = "text"
    name_field: str = "id"
    rules: TextRules = field(default_factory=TextRules)
    heldout_fraction: float = 0.05
    keeps_duplicates: bool = False
    keeps_names: bool = False
    shard_text_bytes: int | None = None

    @property
    def reading(self) -> ReadingOptions:
        """The part of them that reading the corpus needs."""
        return ReadingOptions(self.text_field, self.name_field, self.rules)

    def to_json(self) -> dict[str, Any]:
        """As JSON types."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> BuildOptions:
        """The inverse of `to_json`.

        Raises:
            TypeError: If fields are missing or unknown.
        """
        return cls(**{**value, "rules": TextRules(**value["rules"])})


class BuildRecord(NamedTuple):
    """What a build has recorded for its repair.

    Attributes:
        locations: Absolute paths and URLs of the inputs.
        options: The options.
        files: (number of the input, name) of every corpus file, in order.
        shards: The plan.
    """

    locations: list[str]
    options: BuildOptions
    files: list[tuple[int, str]]
    shards: list[ShardPlan]


class BuildFolder:
    """The folder that a build writes."""

    def __init__(self, out: Path) -> None:
        """Touches nothing yet.

        Args:
            out: The folder.
        """
        self.out = out

    def part(self, part: int) -> Path:
        """Folder of the training or held-out part."""
        return self.out / PART_NAMES[part]

    @property
    def work(self) -> Path:
        """Folder for what is needed only until the build is complete."""
        return self.out / _WORK_FOLDER

    def scan_table(self, unit: int) -> Path:
        """Table of a unit of the scan."""
        return self.work / f"scan-{unit:06d}.rows"

    @contextlib.contextmanager
    def locked(self, inputs: Sequence[Location]) -> Iterator[None]:
        """Keeps other builds away; the lock falls with the process, however it ends.

        Raises:
            DataError: If the folder lies within the corpus, holds other files, or is in use.
        """
        for location in map(check_location, inputs):
            root = searched_folder(location)
            if root is not None and self.out.resolve().is_relative_to(root.resolve()):
                raise DataError(
                    f"{self.out} lies within the corpus folder {root}, so its files would become "
                    "part of the corpus: choose a folder outside"
                )
        make_folder(self.out)
        with contextlib.ExitStack() as stack:
            with explaining("write", self.out / _LOCK_FILE):
                lock = stack.enter_context((self.out / _LOCK_FILE).open("ab"))
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise DataError(
                    f"another build is writing {self.out}: wait for it to end, or stop it"
                ) from error
            except OSError:
                # A file system without locks: what keeps two builds apart is then the user.
                pass
            self._refuse_strangers()
            make_folder(self.work)
            yield

    def _refuse_strangers(self) -> None:
        if (self.out / BUILD_FILE).exists():
            return
        strangers = sorted(
            entry.name
            for entry in self.out.iterdir()
            if entry.name not in (_LOCK_FILE, _WORK_FOLDER, PLAN_FILE)
            and not entry.name.endswith(PARTIAL_SUFFIX)
        )
        if strangers:
            raise DataError(
                f"{self.out} is not empty (it holds {strangers[0]!r}) and holds no build: "
                "choose a new folder"
            )

    def claim(
        self,
        identity: dict[str, Any],
        inputs: Sequence[Location],
        options: BuildOptions,
        files: Sequence[CorpusFile],
        shards: Sequence[ShardPlan],
    ) -> list[str]:
        """Makes the folder ready for a build, or for going on with it.

        Returns:
            Names of the inputs as first given for it.

        Raises:
            DataError: If the folder holds a build from something else.
        """
        path = self.out / BUILD_FILE
        if path.exists():
            remedy = f"choose another folder, or remove {self.out} first"
            recorded = read_json_object(path, _PURPOSE, remedy)
            differing = sorted(key for key in identity if recorded.get(key) != identity[key])
            if differing:
                self.remove_work()
                raise DataError(
                    f"{self.out} holds a build from something else (differing: "
                    f"{', '.join(differing)}): {remedy}"
                )
            names = [str(name) for name in recorded["inputs"]]
        else:
            names = input_names(inputs)
            named = [[file.source, file.name] for file in files]
            write_atomically(
                self.out / PLAN_FILE, canonical_json({"files": named, "shards": shards}) + b"\n"
            )
            record = {
                **identity,
                "inputs": names,
                "locations": absolute_locations(inputs),
                "options": options.to_json(),
            }
            write_atomically(path, readable_json(record))
        folders = [self.part(TRAIN), self.out / TOKENIZER_FOLDER]
        if options.heldout_fraction > 0:
            folders.append(self.part(HELDOUT))
        for folder in folders:
            make_folder(folder)
            remove_partial_files(folder)
        remove_partial_files(self.out)
        return names

    def read_record(self) -> BuildRecord:
        """Reads what was recorded.

        Raises:
            DataError: If it is missing or damaged.
        """
        remedy = 'name a folder that "spade data build" wrote'
        build = read_json_object(self.out / BUILD_FILE, _PURPOSE, remedy)
        plan = read_json_object(self.out / PLAN_FILE, "the plan of a build", remedy)
        try:
            return BuildRecord(
                [str(location) for location in build["locations"]],
                BuildOptions.from_json(build["options"]),
                [(int(source), str(name)) for source, name in plan["files"]],
                [ShardPlan.from_json(shard) for shard in plan["shards"]],
            )
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"{self.out}: {_PURPOSE} is damaged ({error}); {remedy}") from error

    def save_failures(self, shard: ShardPlan, failures: Sequence[tuple[int, str, str]]) -> None:
        """Records which documents of a shard could not be tokenized, before the shard is there."""
        path = self.work / f"failed-{PART_NAMES[shard.part]}-{shard.number:06d}.json"
        write_atomically(path, canonical_json({"shard": shard.name, "failures": failures}) + b"\n")

    def known_failures(self) -> dict[str, list[tuple[int, str, str]]]:
        """Name of a shard -> (position, name, reason) of documents it lacks, from earlier runs."""
        known: dict[str, list[tuple[int, str, str]]] = {}
        quarantine = self.out / QUARANTINE_FILE
        # What another hand has written into these files costs no more than making shards again.
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            for line in quarantine.read_text("utf-8").splitlines():
                entry = json.loads(line)
                if "shard" in entry:
                    failure = (entry["position"], entry["name"], entry["reason"])
                    known.setdefault(entry["shard"], []).append(failure)
        for path in sorted(self.work.glob("failed-*.json")):
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                value = json.loads(path.read_text("utf-8"))
                known[value["shard"]] = [(n, name, why) for n, name, why in value["failures"]]
        return known

    def save_quarantine(
        self,
        problems: Sequence[tuple[str, str]],
        failures: dict[str, list[tuple[int, str, str]]],
    ) -> None:
        """Lists every document that was left out for a fault of its own, or removes the list."""
        entries: list[dict[str, Any]] = [{"name": name, "reason": why} for name, why in problems]
        for shard, failed in sorted(failures.items()):
            entries += [
                {"name": name, "reason": why, "shard": shard, "position": position}
                for position, name, why in failed
            ]
        path = self.out / QUARANTINE_FILE
        if entries:
            write_atomically(path, b"".join(canonical_json(entry) + b"\n" for entry in entries))

    def remove_work(self) -> None:
        """Removes what is needed only until the build is complete."""
        with explaining("clean up", self.work):
            shutil.rmtree(self.work, ignore_errors=False)


def input_names(inputs: Sequence[Location]) -> list[str]:
    """Names of the inputs: the last parts of their paths, as many as tell them apart."""
    parts = []
    for given in inputs:
        location = check_location(given)
        if isinstance(location, Path):
            text = str(location.resolve())
        else:
            text = show_url(location).partition("://")[2]
        parts.append([part for part in text.split("/") if part] or ["/"])
    most = max(map(len, parts), default=1)
    for count in range(1, most + 1):
        names = ["/".join(some[-count:]) for some in parts]
        if len(set(names)) == len(names):
            return names
    return names


def absolute_locations(inputs: Sequence[Location]) -> list[str]:
    """Absolute paths and URLs; of a signed URL only what is no secret."""
    locations = map(check_location, inputs)
    return [
        str(location.resolve()) if isinstance(location, Path) else show_url(location)
        for location in locations
    ]
