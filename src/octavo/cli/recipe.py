"""octavo recipe: the numbers of a training, a line each."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from octavo.cli.console import print_json
from octavo.cli.options import Changes, Json, Start, changed_recipe
from octavo.cli.verb import verb
from octavo.folder import to_json


@verb(
    "octavo recipe mtcnn-relu",
    "octavo recipe mtcnn-relu --set stages.pnet.schedule.epochs=8 --json",
    "octavo recipe runs/mtcnn-int8",
)
def recipe(model: Start, set_: Changes = None, json: Json = False) -> None:
    """Print every number that a training uses, under the name that --set changes it by.

    For a quantized folder these are the numbers of its quantization-aware training.
    """
    from octavo.recipe import to_dict

    chosen = to_dict(changed_recipe(model, set_))
    if json:
        return print_json(chosen)
    for path, value in _flat(chosen):
        print(f"{path} = {to_json(value, indent=None)}")


def _flat(node: dict[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in node.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{path}{name}.")
        else:
            yield path + name, value
