"""What the benchmarks share: where rows go, which are there already, what identifies a model, AP of images.

Every row names the command as it was typed from the repository's root. A measurement whose key is in the file
already is not made again (--again makes it): a stopped benchmark is started once more and goes on.
"""

from __future__ import annotations

import argparse
import hashlib
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from octavo import verbs
from octavo.data.split import is_held_out
from octavo.data.widerface import Entry, read
from octavo.evaluate import events, landmarks, record
from octavo.models import part
from octavo.outputs import Detections

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "results"
EVENTS = ("Crowd", "Web", "Portrait", "all")  # of data/faces
# The smallest face that the data set asks for; single-shot detectors look at each image in its own size (long side
# 0). The rest is the family's MEASURING: thresholds so low that AP sees the whole curve.
SETTINGS: dict[str, Any] = {"min_face": 12, "confidence": 0.02, "long_side": 0}


def parser(doc: str | None) -> argparse.ArgumentParser:
    """The options that all benchmarks have."""
    made = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--out", type=Path, default=RESULTS, help="folder of the CSV file [results]")
    made.add_argument("--again", action="store_true", help="measure what is in the file already once more")
    return made


def command() -> str:
    """The running benchmark as typed."""
    return shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]])


def there(path: Path, **key: Any) -> bool:
    """A row with these values is in the file."""
    if not path.is_file():
        return False
    wanted = {name: str(value) for name, value in key.items()}
    return any(wanted.items() <= row.items() for row in record.read(path))


def weights(folder: Path) -> str:
    """12 hexadecimal digits that change with a model's networks: of the .onnx files, else of the .pt files."""
    files = sorted(folder.glob("*.onnx")) or sorted(folder.glob("*.pt"))
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.name.encode() + file.read_bytes())
    return digest.hexdigest()[:12]


def setting(text: str) -> tuple[str, float]:
    """ "long_side=320" -> a setting's name and value."""
    name, _, value = text.partition("=")
    return name, float(value) if "." in value else int(value)


def cells(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as columns of a row: {"min_face": 12} -> {"min face": 12}."""
    return {
        name.replace("_", " "): said(value) if isinstance(value, (tuple, list)) else value
        for name, value in settings.items()
    }


def said(values: Iterable[float]) -> str:
    """(.5, .5, .3) -> "0.5 0.5 0.3", one cell of a row."""
    return " ".join(f"{value:g}" for value in values)


def plain(event: str) -> str:
    """ "0--Crowd" -> "Crowd"."""
    return event.partition("--")[2] or event


def find(model: verbs.Model, entries: Iterable[Entry], **settings: Any) -> dict[str, Detections]:
    """{entry.name: what the model finds}."""
    return {e.name: replace(model(e.path, **settings), image=None) for e in entries}


def splits(data: Path, recipe: Any) -> tuple[list[Entry], list[Entry]]:
    """The images to choose by, of train but not trained on, and those of val, to report."""
    share = {stage.sampling.held_out for stage in recipe.stages.values()}.pop()
    return [entry for entry in read(data, "train") if is_held_out(entry, share)], read(data, "val")


def settings(model: verbs.Model) -> dict[str, Any]:
    """What AP is measured with: those of SETTINGS that the model has, and its family's MEASURING."""
    known = model.settings().to_dict()
    chosen = {name: value for name, value in SETTINGS.items() if name in known}
    return chosen | part(model.info["family"], "predict").MEASURING


def both(model: verbs.Model, held_out: list[Entry], val: list[Entry]) -> dict[str, float]:
    """Metrics on the held-out training images and on val."""
    chosen = ap(held_out, find(model, held_out, **settings(model)))
    return {
        **{f"held out {name}": value for name, value in chosen.items()},
        **ap(val, find(model, val, **settings(model))),
    }


def ap(entries: Sequence[Entry], found: Mapping[str, Detections]) -> dict[str, float]:
    """AP of each event and "all", and "NME" over all."""
    by_event = {plain(event): value for event, value in events.by_event(entries, found).items()}
    return by_event | {"NME": landmarks.nme(entries, found)["all"]}
