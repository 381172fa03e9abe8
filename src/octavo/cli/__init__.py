"""octavo VERB ...: a file per verb, a few lines each over the Python function of the same name.

Results go to stdout: a table or short lines for people, JSON alone with --json. Progress and warnings go to
stderr. Exit codes: 0 done, 1 failed, 2 wrong usage, 130 stopped with Ctrl-C (what is done is kept).
OCTAVO_DEBUG=1 shows the traceback behind an error.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module

from octavo.cli.verb import app

# The files of the verbs, in the order in which --help lists them; importing one adds its command to the app.
VERBS = (
    "ls",
    "data",
    "recipe",
    "import_",
    "train",
    "average",
    "quantize",
    "export",
    "convert",
    "sensitivity",
    "inspect",
    "check",
    "explain",
    "predict",
    "evaluate",
    "tune",
    "validate",
    "bench",
    "report",
)
JSON_INTO_FILE = ("evaluate", "bench", "sensitivity", "tune", "validate")  # their --json takes a FILE

for _name in VERBS:
    import_module(f"{__name__}.{_name}")


def main(arguments: Sequence[str] | None = None) -> None:
    """The `octavo` command. Always raises SystemExit."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # file names need not be text
            stream.reconfigure(errors="backslashreplace")
    app(_bare_json(list(sys.argv[1:] if arguments is None else arguments)), prog_name="octavo")


def _bare_json(arguments: list[str]) -> list[str]:
    """For verbs that take --json FILE: a --json without a file means stdout, as for every other verb."""
    if arguments and arguments[0] in JSON_INTO_FILE:
        for i, word in enumerate(arguments):
            if word == "--json" and (i + 1 == len(arguments) or arguments[i + 1].startswith("--")):
                return [*arguments[: i + 1], "-", *arguments[i + 1 :]]
    return arguments
