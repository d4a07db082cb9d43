"""The first pass over a corpus, done by all processes of a team."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from data_pipeline.building.team import Report, Team
from data_pipeline.corpora.corpus_files import CorpusFile, count_line_ends
from data_pipeline.corpora.corpus_scan import (
    ReadingOptions,
    ScanUnit,
    UnitScan,
    scan_unit,
    scan_units,
)
from data_pipeline.progress import Work


def scan_corpus(
    team: Team,
    files: Sequence[CorpusFile],
    options: ReadingOptions,
    table_of: Callable[[int], Path],
    on_progress: Callable[[Work], None],
) -> list[UnitScan]:
    """Scans every unit of the corpus.

    Args:
        team: Who shares the work; every process calls this.
        files: The corpus.
        options: How to read it.
        table_of: Path of the table for the unit of a number.
        on_progress: Told on rank 0 of what has been read.

    Returns:
        On rank 0 what is known of each unit, in order; elsewhere an empty list.

    Raises:
        DataError: If a file is corrupt as a whole, or a table cannot be written.
    """
    units = _numbered(team, files, scan_units(files))

    def scan(number: int, report: Report) -> Any:
        return vars(scan_unit(files, units[number], options, table_of(number), report))

    costs = [_unit_bytes(files, unit) for unit in units]
    return [UnitScan.from_json(value) for value in team.run(scan, costs, on_progress)]


def _numbered(team: Team, files: Sequence[CorpusFile], units: Sequence[ScanUnit]) -> list[ScanUnit]:
    """Learns on which line each stretch of a long file begins."""
    stretches = [number for number, unit in enumerate(units) if unit.stop_bytes is not None]
    if not stretches:
        return list(units)

    def count(task: int, report: Report) -> int:
        unit = units[stretches[task]]
        assert unit.stop_bytes is not None, "only stretches are counted"
        report(Work())
        return count_line_ends(files[unit.first_file], unit.start_bytes, unit.stop_bytes)

    costs = [_unit_bytes(files, units[number]) for number in stretches]
    ends = team.broadcast(team.run(count, costs, lambda _: None))
    numbered, ordinal = list(units), 0
    for number, line_ends in zip(stretches, ends, strict=True):
        ordinal = 0 if units[number].start_bytes == 0 else ordinal
        numbered[number] = units[number]._replace(first_ordinal=ordinal)
        ordinal += line_ends
    return numbered


def _unit_bytes(files: Sequence[CorpusFile], unit: ScanUnit) -> int:
    if unit.stop_bytes is not None:
        return unit.stop_bytes - unit.start_bytes
    return sum(file.size_bytes or 0 for file in files[unit.first_file : unit.stop_file])
