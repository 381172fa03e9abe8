"""A model on disk is a folder: model.json and one file per network.

    model.json    family, variant, precision, target, scheme, networks, preprocessing, settings, origin
    pnet.onnx     one file per name in "networks": NAME.onnx to run, NAME.pt (a state dict) to train on
    pnet.onnxruntime.onnx   the same network in the form that is fastest there, NAME.RUNTIME.onnx; may refer to
                  weights in NAME.onnx, and says by its hash which one

Everything reads and writes such folders. What comes from a file is checked before it is believed: names
become paths and module names, so they may not hold separators. Writes are atomic: a new file beside the
old one, then a rename, so that a full disk or a Ctrl-C leaves what was there as it was.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import math
import os
import re
import secrets
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

FORMAT = 1
EMBEDDED = Path(__file__).parent / "weights"

BELONGS_TO = "octavo.belongs_to"  # metadata of a form made for one runtime: `digest` of the plain file

_NETWORK = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,63}")  # becomes a file name
_FAMILY = re.compile(r"[a-z][a-z0-9_]{0,63}")  # becomes a module name
_REQUIRED: dict[str, tuple[type, ...]] = {
    "format": (int,),
    "family": (str,),
    "variant": (str,),
    "precision": (str,),
    "networks": (list,),
    "preprocessing": (dict,),
    "settings": (dict,),
}
_OPTIONAL: dict[str, tuple[type, ...]] = {
    "target": (str,),
    "scheme": (dict,),
    "calibration": (dict,),
    "metrics": (dict,),
    "tuned": (dict,),
    "classes": (list,),  # names of what is found, by class id
    "history": (list,),  # command, commit, created of each step that led here, the first first
    "data": (str, dict, list),
    "commit": (str,),
    "command": (str,),
    "created": (str,),
    "octavo": (str,),
}
_IN_JSON = {int: "a whole number", str: "a string", list: "a list", dict: "an object"}


class FolderError(ValueError):
    """A model folder that is missing, broken, or not what was asked for."""


class UnknownName(FolderError):
    """A name of nothing that exists: the message says what does. The command line exits with 2."""


def names() -> list[str]:
    """Names of the embedded models, sorted."""
    return sorted(p.parent.name for p in EMBEDDED.glob("*/model.json"))


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """' Did you mean X?' where a known word is near (difflib's ratio, 0.6 or more) or begins so, else ''."""
    known = list(known)
    near = difflib.get_close_matches(word.lower(), known, n=2)
    near = near or [name for name in known if word and name.startswith(word.lower())][:2]
    return f" Did you mean {' or '.join(near)}?" if near else ""


def find(name_or_path: str | os.PathLike[str]) -> Path:
    """The folder of an embedded model's name, else of a path to a folder (or its model.json).

    A bare embedded name always means the embedded model; ./NAME means a folder of that name.
    """
    name = os.fspath(name_or_path)
    if name in names():
        return EMBEDDED / name
    path = Path(name).expanduser()
    if path.name == "model.json" and path.is_file():
        path = path.parent
    if (path / "model.json").is_file():
        return path
    if path.is_dir():
        raise FolderError(
            f"{name} is a folder without a model.json, so it is no model yet. "
            "octavo train, import, quantize and export write model folders."
        )
    if path.is_file():
        raise FolderError(f"{name} is a file; a model is a folder with a model.json and its networks.")
    near = did_you_mean(name, names())
    if not near:
        beside = [str(p.parent) for p in path.parent.glob("*/model.json")] if path.parent.is_dir() else []
        near = did_you_mean(name, beside)
    known = ", ".join(names()) or "none in this installation"
    raise UnknownName(
        f"no model {name!r}: neither an embedded model nor a model folder.{near} Embedded models: {known}."
    )


def read_info(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """model.json of a folder, checked; keys that may be absent are there as None. FolderError otherwise."""
    path = Path(folder) / "model.json"
    try:
        info = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FolderError(f"{path} does not exist: {folder} is no model folder.") from None
    except OSError as error:
        raise FolderError(f"{path} cannot be read: {error.strerror or error}.") from None
    except (UnicodeDecodeError, RecursionError):
        raise FolderError(f"{path} is not JSON text.") from None
    except json.JSONDecodeError as error:
        raise FolderError(f"{path} is not JSON: {error}.") from None
    return _checked(info, path)


def write_info(folder: str | os.PathLike[str], info: dict[str, Any]) -> None:
    """Check `info` as read_info does and write it as folder/model.json, atomically."""
    path = Path(folder) / "model.json"
    write_json(path, _checked(dict(info), path))


def files(folder: str | os.PathLike[str], suffix: str) -> dict[str, Path]:
    """{network: folder/network + suffix} in the order of model.json; FolderError names the files missing."""
    found = {name: Path(folder) / f"{name}{suffix}" for name in read_info(folder)["networks"]}
    missing = [path.name for path in found.values() if not path.is_file()]
    if missing:
        what = {
            ".onnx": "octavo export writes them",
            ".pt": "octavo train and octavo import write them; embedded models come without",
        }.get(suffix, "they belong beside model.json")
        raise FolderError(f"{folder} lacks {', '.join(missing)} ({what}).")
    return found


def size(folder: str | os.PathLike[str], suffix: str) -> int:
    """Bytes of the networks' files with this suffix, such as '.onnx', forms made for a runtime included."""
    found = files(folder, suffix).values()
    return sum(path.stat().st_size for plain in found for path in (plain, *forms(plain)))


def forms(plain: Path) -> list[Path]:
    """The forms of the network file NAME.onnx made for one runtime, NAME.RUNTIME.onnx, sorted."""
    return sorted(plain.parent.glob(f"{plain.stem}.*{plain.suffix}"))


def plain_of(path: Path) -> Path | None:
    """NAME.onnx for NAME.RUNTIME.onnx; None for a path that is no such form."""
    name, *runtime = path.name.removesuffix(".onnx").split(".")
    return path.with_name(f"{name}.onnx") if len(runtime) == 1 and path.suffix == ".onnx" else None


def digest(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file, which a form made for one runtime keeps of the NAME.onnx it belongs to."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def provenance(command: str | None = None) -> dict[str, str | None]:
    """Where a result comes from: commit of this checkout (or None), command, UTC time, version.

    `-dirty` marks tracked files changed since.
    """
    from octavo import __version__

    return {
        "commit": _commit(),
        "command": command if command is not None else " ".join(["octavo", *sys.argv[1:]]),
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "octavo": __version__,
    }


def continued(info: Mapping[str, Any], **changes: Any) -> dict[str, Any]:
    """The model.json of what was made from the model with this `info`, now; its `history` has the steps before."""
    now, history = provenance(), list(info.get("history") or ())
    # The same step once more takes the place of the last.
    if info.get("command") not in (None, now["command"]):
        history.append({name: info.get(name) for name in ("command", "commit", "created")})
    return dict(info) | changes | {"history": history} | now


@contextmanager
def atomic(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary path near `path`, of the same name: renamed to it on success, removed on failure.

    The name is the same, in a hidden folder beside the target, because some formats store it in the file.
    Missing parent folders are made. A link is followed; a device or pipe is written directly.
    """
    target = Path(os.path.realpath(path))
    if target.is_dir():
        raise FolderError(f"{path} is a folder; a file is to be written there.")
    if target.exists() and not target.is_file():  # /dev/stdout, a named pipe: nothing to rename over
        yield target
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    stage = _part(target.parent)
    try:
        yield stage / target.name
        with (stage / target.name).open("rb+") as file:  # the name must not reach the disk before the content
            os.fsync(file.fileno())
        os.replace(stage / target.name, target)
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def _part(parent: Path) -> Path:
    """A new hidden folder for what is not finished."""
    made = parent / f".{secrets.token_hex(4)}.part"
    made.mkdir()
    return made


@contextmanager
def staged(folder: str | os.PathLike[str]) -> Iterator[Path]:
    """An empty folder to write a model's files into; on success they move into `folder`, model.json last.

    On failure nothing of `folder` has changed. Files of `folder` under other names stay.
    """
    target = Path(folder)
    refuse_embedded(target, "give another folder (--out)")
    if target.exists() and not target.is_dir():
        raise FolderError(f"{target} is a file; a model is written into a folder.")
    existed = target.exists()
    target.mkdir(parents=True, exist_ok=True)
    stage = _part(target)
    try:
        yield stage
        for path in sorted(stage.iterdir(), key=lambda p: p.name == "model.json"):
            os.replace(path, target / path.name)
    finally:
        shutil.rmtree(stage, ignore_errors=True)
        if not existed and not any(target.iterdir()):
            target.rmdir()


def refuse_embedded(folder: str | os.PathLike[str], instead: str) -> None:
    """FolderError, with what to do instead, where the folder came with the package."""
    if Path(folder).resolve().is_relative_to(EMBEDDED.resolve()) and not os.environ.get(
        "OCTAVO_WRITE_EMBEDDED"
    ):
        raise FolderError(f"{folder} is an embedded model and stays as it is: {instead}.")


def to_json(value: Any, indent: int | None = 2) -> str:
    """JSON text of plain data, dataclasses' dicts, paths and NumPy; not-a-number and infinity become null."""
    text = json.dumps(_plain(value), indent=indent, ensure_ascii=False, allow_nan=False)
    try:
        text.encode()
    except UnicodeEncodeError:  # a file name that is not UTF-8: its bytes survive as escapes
        text = json.dumps(_plain(value), indent=indent, allow_nan=False)
    return text


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """`to_json` into a file, atomically."""
    text = to_json(value) + "\n"
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(v) for v in value]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if hasattr(value, "tolist"):  # NumPy arrays and scalars, without importing NumPy
        return _plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _checked(info: Any, path: Path) -> dict[str, Any]:
    def wrong(text: str) -> FolderError:
        return FolderError(f"{path}: {text}")

    def has(key: str, kinds: tuple[type, ...]) -> None:
        value = info[key]
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            expected = " or ".join(_IN_JSON[k] for k in kinds)
            raise wrong(f"{key!r} must be {expected}, not {_short(value)}.")

    if not isinstance(info, dict):
        raise wrong(f"must hold a JSON object, not {_short(info)}.")
    if missing := [key for key in _REQUIRED if key not in info]:
        raise wrong(f"lacks {', '.join(missing)}. Was it written by octavo?")
    has("format", (int,))
    if info["format"] > FORMAT:
        raise wrong(
            f"has format {info['format']}, this Octavo reads up to {FORMAT}. Update it: pip install -U octavo"
        )
    if info["format"] < 1:
        raise wrong(f"has format {info['format']}, the first one is 1.")
    for key, kinds in _REQUIRED.items():
        has(key, kinds)
    for key, kinds in _OPTIONAL.items():
        if info.setdefault(key, None) is not None:
            has(key, kinds)
    if not _FAMILY.fullmatch(info["family"]):
        raise wrong(f"'family' must be a plain lower-case word such as mtcnn, not {_short(info['family'])}.")
    if not info["variant"] or any(c in info["variant"] for c in "/\\\0\n"):
        raise wrong(f"'variant' must be a plain name such as mtcnn-relu, not {_short(info['variant'])}.")
    if info["precision"] not in ("float", "half", "int8"):
        raise wrong(f"'precision' must be float, half or int8, not {_short(info['precision'])}.")
    networks = info["networks"]
    if not networks or not all(isinstance(n, str) and _NETWORK.fullmatch(n) for n in networks):
        raise wrong(
            "'networks' must list plain names such as pnet (letters, digits, _ and -; they become file "
            f"names), not {_short(networks)}."
        )
    if len(set(networks)) < len(networks):
        raise wrong(f"'networks' names one network twice: {_short(networks)}.")
    return info


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _commit() -> str | None:
    """HEAD of the checkout this package lies in; None for an installed package."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    try:
        run = subprocess.run(
            ["git", "-C", str(root), "describe", "--always", "--abbrev=12", "--dirty", "--exclude=*"],
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return run.stdout.strip() or None
