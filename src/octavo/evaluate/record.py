"""One measurement -> one row of a CSV file in results/; README tables are generated from those rows.

    date,commit,machine,command,model,data,split,easy,medium,hard

The first columns say where the numbers come from, the others are the metrics of that file. A file has one
header for good: a measurement with other metrics belongs into another file. Rows are appended, never
changed; a table shows the last row of each model, data set and split.

A row is written whole or not at all: under a lock, as one write at the end of the file, taken back if it
fails half way (a full disk).
"""

from __future__ import annotations

import csv
import io
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median

from octavo.folder import provenance

try:
    import fcntl
except ImportError:  # Windows; one process at a time there
    fcntl = None  # type: ignore[assignment]

ORIGIN = ("date", "commit", "machine", "command", "model", "data", "split")


class RecordError(ValueError):
    """A row that does not fit its file, or a file that is not one of rows."""


def append(
    path: str | Path,
    metrics: Mapping[str, float | int | str | None],
    *,
    model: str,
    data: str,
    split: str = "",
    command: str | None = None,
    machine: str | None = None,
) -> dict[str, str]:
    """Append one measurement and return its row. Date, commit and, by default, command and machine are found.

    metrics: {column: value}; floats are kept to 6 significant digits, None is an empty cell.
    Raises RecordError where the file has other columns.
    """
    clash = [name for name in metrics if name in ORIGIN]
    if clash or not metrics:
        raise RecordError(f"metrics need names of their own, found {clash or 'none at all'}")
    origin = provenance(command)
    row = {
        "date": origin["created"] or "",
        "commit": origin["commit"] or "",
        "machine": machine if machine is not None else this_machine(),
        "command": origin["command"] or "",
        "model": model,
        "data": data,
        "split": split,
        **{name: _text(value) for name, value in metrics.items()},
    }
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+b", buffering=0) as file:
        if fcntl is not None:
            fcntl.flock(file, fcntl.LOCK_EX)  # until the file is closed
        file.seek(0)
        before = file.read()
        _fits(path, before, list(row))
        payload = _line(row.values()) if before else _line(row) + _line(row.values())
        try:
            written = file.write(payload)
            if written != len(payload):
                raise OSError(f"{path}: only {written} of {len(payload)} bytes could be written")
            os.fsync(file.fileno())
        except OSError:
            file.truncate(len(before))
            raise
    return row


def read(path: str | Path) -> list[dict[str, str]]:
    """The rows of a file, oldest first."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise RecordError(f"{path} does not exist: no measurement has been recorded there") from None
    lines = list(csv.reader(io.StringIO(text)))
    if not lines or tuple(lines[0][: len(ORIGIN)]) != ORIGIN:
        raise RecordError(
            f"{path} is not a file of measurements: its header must start with {','.join(ORIGIN)}"
        )
    for number, line in enumerate(lines[1:], 2):
        if len(line) != len(lines[0]):
            raise RecordError(f"{path}, row {number}: {len(line)} cells, but the header has {len(lines[0])}")
    return [dict(zip(lines[0], line, strict=True)) for line in lines[1:]]


def last(
    rows: Sequence[dict[str, str]], key: Sequence[str], where: Mapping[str, str] | None = None
) -> list[dict[str, str]]:
    """The last row for each `key` of those with the {column: text} of `where`, in the order of appearance."""
    wanted = dict(where or {}).items()
    return list({tuple(row[name] for name in key): row for row in rows if wanted <= row.items()}.values())


def medians(rows: Sequence[dict[str, str]], key: Sequence[str], count: str) -> list[dict[str, str]]:
    """One row for each `key`: the median of every column of numbers, the last text of the others, and how many rows
    they are of in the column `count`."""
    groups: dict[tuple[str, ...], list[dict[str, str]]] = {}
    for row in rows:
        groups.setdefault(tuple(row[name] for name in key), []).append(row)

    def middle(values: list[str]) -> str:
        return _text(median(map(float, values))) if all(map(_is_number, values)) else values[-1]

    return [
        {name: middle([row[name] for row in group]) for name in group[0]} | {count: str(len(group))}
        for group in groups.values()
    ]


def table(
    path: str | Path,
    columns: Sequence[str] | None = None,
    key: Sequence[str] = ("model", "data", "split"),
    digits: int = 3,
    where: Mapping[str, str] | None = None,
    over: str = "",
) -> str:
    """The file as a Markdown table: the last row for each `key`, in the order of first appearance.

    columns: which, in this order; by default the key and all metrics. Numbers with a fraction are rounded
    to `digits` places and right-aligned. where: only rows with these {column: text}. over: a column, such as the
    seed, that tells repetitions apart: medians over them are shown, and of how many, where "seeds" is a column.
    """
    rows = read(path)
    have = list(rows[0]) if rows else list(ORIGIN)
    columns = list(columns) if columns is not None else [*key, *have[len(ORIGIN) :]]
    made = f"{over}s"  # the column of how many
    unknown = [name for name in [*columns, *key, *(where or {})] if name not in [*have, *[made] * bool(over)]]
    if unknown:
        raise RecordError(f"{path} has no column {', '.join(unknown)}; it has {', '.join(have)}")
    shown = medians(last(rows, [*key, over], where), key, made) if over else last(rows, key, where)
    cells = [[_shown(row[name], digits) for name in columns] for row in shown]
    right = [
        bool(cells) and all(_is_number(line[i]) or not line[i] for line in cells) for i in range(len(columns))
    ]
    lines = [columns, ["---:" if r else "---" for r in right], *cells]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def this_machine() -> str:
    """Processor, its cores that this process may use, and the system: what a timing depends on."""
    name = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            name = next(
                (line.split(":", 1)[1].strip() for line in file if line.startswith("model name")), name
            )
    except OSError:
        pass  # not Linux
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{name}, {cores} cores, {platform.system()}"


def _fits(path: Path, before: bytes, columns: list[str]) -> None:
    if not before:
        return
    if not before.endswith(b"\n"):
        raise RecordError(f"{path}: the last line has no end; complete or remove it before rows are added")
    header = next(csv.reader(io.StringIO(before.decode("utf-8"))))
    if header != columns:
        raise RecordError(
            f"{path} has the columns {', '.join(header)}, but this measurement has {', '.join(columns)}: "
            f"record it in another file"
        )


def _line(cells: object) -> bytes:
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerow(cells)  # type: ignore[arg-type]
    return out.getvalue().encode("utf-8")


def _text(value: float | int | str | None) -> str:
    if value is None:
        return ""
    if isinstance(value, (bool, int, str)):
        return str(value)
    return f"{float(value):.6g}"


def _shown(text: str, digits: int) -> str:
    if _is_number(text) and not text.lstrip("+-").isdigit():
        return f"{float(text):.{digits}f}"
    return text.replace("|", "\\|").replace("\n", " ")


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
