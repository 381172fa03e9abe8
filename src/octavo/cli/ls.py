"""octavo ls: the models that there are, a line each."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from octavo.cli.console import kilobytes, print_json, print_table, tell
from octavo.cli.options import Json
from octavo.cli.verb import verb


@verb("octavo ls", "octavo ls runs --json")
def ls(
    folders: Annotated[list[Path] | None, typer.Argument(help="Folders to search as well.")] = None,
    json: Json = False,
) -> None:
    """List the embedded models, and model folders below the given ones."""
    from octavo import verbs

    models = verbs.ls(folders or [])
    if json:
        return print_json(models)
    rows = []
    for m in models:
        if "error" in m:
            tell(f"Warning: {m['error']}")
            continue
        size = m["bytes"].get(".onnx", m["bytes"].get(".pt"))
        kind = m["precision"] + (f", {m['target']}" if m["target"] else "")
        rows.append((m["name"], m["variant"], kind, ", ".join(m["networks"]), kilobytes(size)))
    print_table(("model", "variant", "precision", "networks", "size"), rows)
