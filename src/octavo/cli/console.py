"""What is printed: lines, tables and JSON to stdout, words about the work to stderr."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from octavo.folder import to_json, write_json


def tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def print_json(value: Any) -> None:
    print(to_json(value))


def write(value: Any, file: str) -> None:
    """A result as JSON into a file, '-' for stdout."""
    if file == "-":
        print_json(value)
    else:
        write_json(file, value)


def print_made(what: str, path: Path, json: bool) -> None:
    if json:
        from octavo import verbs

        print_json(verbs.row(str(path), path))
    else:
        print(f"{what}: {path}")


def print_table(columns: Sequence[str], rows: Iterable[Sequence[Any]], title: str = "") -> None:
    """Print a table; the first column to the left, numbers to the right."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD)
    for i, column in enumerate(columns):
        table.add_column(Text(column), justify="left" if i == 0 else "right", overflow="fold")
    for row in rows:
        table.add_row(*(Text(_cell(value)) for value in row))
    console = Console(highlight=False)
    if not console.is_terminal:  # nobody's window limits a file
        console.width = 200
    if title:
        print(title)
    console.print(table)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4f}" if abs(value) < 10 else f"{value:.2f}"
    return str(value)


def kilobytes(size: int | None) -> str:
    return "-" if size is None else f"{size / 1000:.0f} kB"


def decibels(value: float) -> str:
    return "exact" if value == float("inf") else f"{value:.2f}" if abs(value) > 1 else f"{value:.4f}"
