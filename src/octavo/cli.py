"""octavo VERB ...: one function per verb, a few lines each over the Python function of the same name.

Results go to stdout: a table or short lines for people, JSON alone with --json. Progress and warnings go to
stderr. Exit codes: 0 done, 1 failed, 2 wrong usage, 130 stopped with Ctrl-C (what is done is kept).
OCTAVO_DEBUG=1 shows the traceback behind an error.
"""

from __future__ import annotations

import functools
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from octavo import __version__
from octavo.folder import UnknownName, did_you_mean, to_json, write_json

if TYPE_CHECKING:
    from rich.progress import TaskID

    from octavo.data.check import Report
    from octavo.lower.check import Finding
    from octavo.quantize.sensitivity import Table
    from octavo.run.bench import Row
    from octavo.verbs import NetworkProgress, Progress, Result, StepProgress, TrainingProgress

F = TypeVar("F", bound=Callable[..., Any])
# Which extra brings a module that the base install does without.
EXTRAS = {
    **dict.fromkeys(("torch", "onnx", "onnxscript", "lightning_fabric", "tensorboard", "scipy"), "train"),
    **{"openvino": "openvino", "pycocotools": "coco", "matplotlib": "report", "jinja2": "report"},
}
SHOWN = 20  # boxes printed per image; --json prints all

app = typer.Typer(
    name="octavo",
    help="Small vision models, folded into eight bits: train, quantize, export, run and judge them.",
    epilog="Example:\n\noctavo predict mtcnn-relu photo.jpg --save out",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def main(arguments: Sequence[str] | None = None) -> None:
    """The `octavo` command. Always raises SystemExit."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # file names need not be text
            stream.reconfigure(errors="backslashreplace")
    app(_bare_json(list(sys.argv[1:] if arguments is None else arguments)), prog_name="octavo")


def _bare_json(arguments: list[str]) -> list[str]:
    """For verbs that take --json FILE: a --json without a file means stdout, as for every other verb."""
    if arguments and arguments[0] in ("evaluate", "bench", "sensitivity"):
        for i, word in enumerate(arguments):
            if word == "--json" and (i + 1 == len(arguments) or arguments[i + 1].startswith("--")):
                return [*arguments[: i + 1], "-", *arguments[i + 1 :]]
    return arguments


def verb(*examples: str, **settings: Any) -> Callable[[F], F]:
    """Make a function a command with examples below its help, and its errors messages with an exit code.

    settings: click's for how the words of the command are read.
    """

    def decorate(function: F) -> F:
        @functools.wraps(function)
        def guarded(*args: Any, **options: Any) -> None:
            try:
                function(*args, **options)
            except (typer.Exit, typer.Abort):  # RuntimeErrors by their class
                raise
            except KeyboardInterrupt:
                _tell("Stopped. What was done until here is kept.")
                raise typer.Exit(130) from None
            except BrokenPipeError:
                raise  # typer ends quietly when the reader of a pipe has gone
            except (ValueError, OSError, ImportError, RuntimeError, MemoryError) as error:
                if os.environ.get("OCTAVO_DEBUG"):
                    raise
                _tell(f"Error: {_message(error)}")
                raise typer.Exit(2 if isinstance(error, UnknownName) else 1) from None

        epilog = "\n\n".join(["Examples:", *examples])
        app.command(function.__name__.rstrip("_"), epilog=epilog, context_settings=settings)(guarded)
        return function

    return decorate


def _message(error: BaseException) -> str:
    if isinstance(error, ModuleNotFoundError) and error.name:
        module = error.name.partition(".")[0]
        if module in EXTRAS:
            return f"this needs {module}, which is not installed: pip install 'octavo[{EXTRAS[module]}]'"
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    if isinstance(error, MemoryError):
        return f"out of memory. {error}".strip()
    return str(error) or type(error).__name__


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _print_json(value: Any) -> None:
    print(to_json(value))


def _write(value: Any, file: str) -> None:
    """A result as JSON into a file, '-' for stdout."""
    if file == "-":
        _print_json(value)
    else:
        write_json(file, value)


def _table(columns: Sequence[str], rows: Iterable[Sequence[Any]], title: str = "") -> None:
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


@contextmanager
def _progress(what: str) -> Iterator[Progress]:
    """A bar on stderr, with the time left; nothing where stderr is no terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _numbers(text: str | None, option: str) -> tuple[float, ...] | None:
    """'.5,.5,.3' -> (.5, .5, .3). How many there must be, the model knows."""
    try:
        return None if text is None else tuple(float(part) for part in text.split(","))
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not numbers such as .5,.5,.3", param_hint=option) from None


def _settings(
    min_face: float | None,
    thresholds: str | None,
    confidence: float | None,
    factor: float | None,
    nms: str | None,
) -> dict[str, Any]:
    """What was given on the command line, by the names that a family's Settings have."""
    settings = {
        "min_face": min_face,
        "thresholds": _numbers(thresholds, "--thresholds"),
        "confidence": confidence,
        "factor": factor,
        "nms": _numbers(nms, "--nms"),
    }
    return {name: value for name, value in settings.items() if value is not None}


# Arguments and options that several verbs share
ModelName = Annotated[
    str, typer.Argument(metavar="MODEL", help="An embedded model's name, or a model folder.")
]
Variant = Annotated[str, typer.Argument(metavar="VARIANT", help="What to build, such as mtcnn-relu.")]
Backend = Annotated[str, typer.Option(help="What runs the networks: auto, onnxruntime, openvino or torch.")]
Threads = Annotated[int, typer.Option(min=1, help="Threads inside a network.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]
JsonFile = Annotated[
    str | None,
    typer.Option("--json", metavar="FILE", help="Write the results as JSON; - or no FILE: to stdout."),
]
Data = Annotated[Path, typer.Option(metavar="DIR", help="Data set in WIDER FACE layout.")]
Changes = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="PATH=VALUE", help="Change a number of the recipe. Repeatable."),
]
# The model's own settings stand in for what is not given.
MinFace = Annotated[float | None, typer.Option(help="Smallest face searched for, pixels.")]
Thresholds = Annotated[
    str | None, typer.Option(metavar="A,B,C", help="Lowest probability that each stage lets pass.")
]
Confidence = Annotated[
    float | None,
    typer.Option(help="Lowest probability reported; without --thresholds it replaces the last of them."),
]
Factor = Annotated[float | None, typer.Option(help="Size of a pyramid level over the one before.")]
Nms = Annotated[str | None, typer.Option(metavar="A,B,C,D", help="Largest overlap kept at each NMS.")]


def _version(wanted: bool) -> None:
    if wanted:
        print(f"octavo {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    pass


@verb("octavo ls", "octavo ls runs --json")
def ls(
    folders: Annotated[list[Path] | None, typer.Argument(help="Folders to search as well.")] = None,
    json: Json = False,
) -> None:
    """List the embedded models, and model folders below the given ones."""
    from octavo import verbs

    models = verbs.ls(folders or [])
    if json:
        return _print_json(models)
    rows = []
    for m in models:
        if "error" in m:
            _tell(f"Warning: {m['error']}")
            continue
        size = m["bytes"].get(".onnx", m["bytes"].get(".pt"))
        kind = m["precision"] + (f", {m['target']}" if m["target"] else "")
        rows.append((m["name"], m["variant"], kind, ", ".join(m["networks"]), _kilobytes(size)))
    _table(("model", "variant", "precision", "networks", "size"), rows)


def _kilobytes(size: int | None) -> str:
    return "-" if size is None else f"{size / 1000:.0f} kB"


@verb("octavo data shared/data/faces", "octavo data shared/data/faces --sheet out/sheet.jpg --json")
def data(
    root: Annotated[Path, typer.Argument(metavar="DIR", help="Data set in WIDER FACE layout.")],
    split: Annotated[str | None, typer.Option(help="Only this split: train or val.")] = None,
    sheet: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write a picture of samples to look at.")
    ] = None,
    json: Json = False,
) -> None:
    """Check a data set: images, faces by size and event, landmarks, missing and broken files."""
    from octavo import verbs

    with _progress("Checking") as progress:
        report = verbs.data(root, split, sheet, progress)
    if json:
        _print_json(report.to_dict())
    else:
        _print_report(report)
    if not report.ok:
        raise typer.Exit(1)


def _print_report(report: Report) -> None:
    for split in report.splits:
        rows = [(name, e.images, e.faces, e.invalid, e.landmarks) for name, e in split.events.items()]
        total = split.total
        rows.append(("all", total.images, total.faces, total.invalid, total.landmarks))
        _table(("event", "images", "faces", "marked invalid", "with landmarks"), rows, split.name)
        _table(("face size, px", "faces"), split.sizes.items())
    for finding in report.findings():
        print(finding)


@verb("octavo recipe mtcnn-relu", "octavo recipe mtcnn-relu --set stages.pnet.schedule.epochs=8 --json")
def recipe(variant: Variant, set_: Changes = None, json: Json = False) -> None:
    """Print every number that a variant is trained with, under the name that --set changes it by."""
    from octavo.recipe import to_dict

    chosen = to_dict(_recipe(variant, set_))
    if json:
        return _print_json(chosen)
    for path, value in _flat(chosen):
        print(f"{path} = {to_json(value, indent=None)}")


def _recipe(variant: str, changes: list[str] | None) -> Any:
    """The changed recipe; a change that can't be made is wrong usage."""
    from octavo import verbs

    verbs.family_of(variant)
    try:
        return verbs.recipe(variant, changes or [])
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--set") from None


def _flat(node: dict[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in node.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{path}{name}.")
        else:
            yield path + name, value


@verb(
    "octavo import mtcnn shared/weights/mtcnn",
    "octavo import mtcnn shared/weights/mtcnn --out runs/published",
)
def import_(
    variant: Variant,
    source: Annotated[Path, typer.Argument(metavar="DIR", help="Where the published weights are.")],
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Model folder to write. [runs/VARIANT]")
    ] = None,
    json: Json = False,
) -> None:
    """Read published float weights into a model folder."""
    from octavo import verbs

    _done("Imported", verbs.import_(variant, source, out), json)


def _done(what: str, path: Path, json: bool) -> None:
    if json:
        from octavo import verbs

        _print_json(verbs.row(str(path), path))
    else:
        print(f"{what}: {path}")


@verb(
    "octavo train mtcnn-relu --data shared/data/faces --out runs/mtcnn",
    "octavo train mtcnn-relu --data faces --out runs/quick --stage pnet --set stages.pnet.schedule.epochs=2",
)
def train(
    variant: Variant,
    data: Data,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Run folder; one that was stopped goes on.")],
    stage: Annotated[str, typer.Option(help="One network's name, or all of them in their order.")] = "all",
    set_: Changes = None,
    accelerator: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    devices: Annotated[str, typer.Option(help="How many of them, or auto.")] = "auto",
    precision: Annotated[str, typer.Option(help="32-true, bf16-mixed or 16-mixed.")] = "32-true",
    json: Json = False,
) -> None:
    """Train a variant's networks; logs, checkpoints and the recipe used are kept in the run folder."""
    from octavo import verbs

    _recipe(variant, set_)
    fabric = {"accelerator": accelerator, "devices": int(devices) if devices.isdecimal() else devices}
    with _training() as progress:
        made = verbs.train(
            variant,
            data,
            out,
            stage=stage,
            changes=set_ or (),
            progress=progress,
            precision=precision,
            **fabric,
        )
    if made:
        _done("Trained", made, json)
    else:
        _tell(f"{out} holds what was trained so far; it becomes a model when all networks are there.")


@contextmanager
def _bars() -> Iterator[Callable[[str, int, int, str], None]]:
    """show(name, done, total, text): a bar per name on stderr, or its text now and then where that is no terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        tasks: dict[str, TaskID] = {}
        told = time.monotonic()

        def show(name: str, done: int, total: int, text: str) -> None:
            nonlocal told
            if name not in tasks:
                tasks[name] = bar.add_task(name, total=total)
            bar.update(tasks[name], completed=done, total=total, description=text)
            if not console.is_terminal and (done == total or time.monotonic() - told > 10):
                _tell(f"{text}  {done}/{total}")
                told = time.monotonic()

        yield show


@contextmanager
def _training() -> Iterator[TrainingProgress]:
    """Bars for the samples and the training of each network, with its losses."""
    with _bars() as show:

        def progress(network: str, done: int, total: int, losses: dict[str, float]) -> None:
            what = network if losses else f"{network} samples"
            show(
                what,
                done,
                total,
                " ".join([what, *(f"{name} {value:.4f}" for name, value in losses.items())]),
            )

        yield progress


@contextmanager
def _steps() -> Iterator[StepProgress]:
    """A bar for each network that is looked at."""
    with _bars() as show:
        yield lambda what, done, total: show(what, done, total, what)


@verb(
    "octavo quantize runs/mtcnn --data shared/data/faces --out runs/mtcnn-int8",
    "octavo quantize runs/mtcnn --data faces --target tensorrt --calibrator percentile",
)
def quantize(
    model: ModelName,
    data: Data,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Folder to write. [runs/NAME-int8]")] = None,
    target: Annotated[str, typer.Option(help="Whose integers: cpu or tensorrt.")] = "cpu",
    calibrator: Annotated[str, typer.Option(help="max, moving_average, percentile, mse or entropy.")] = "max",
    images: Annotated[int, typer.Option(min=1, help="Photographs to calibrate with.")] = 64,
    keep_float: Annotated[
        list[str] | None,
        typer.Option(metavar="PATTERN", help="Layers to leave in float, such as face. Repeatable."),
    ] = None,
    json: Json = False,
) -> None:
    """Turn a float model into an INT8 one without training: ranges from a few photographs."""
    from octavo import verbs

    _one_of(target, verbs.targets(), "--target")
    _one_of(calibrator, verbs.calibrators(), "--calibrator")
    with _spinner() as progress:
        made = verbs.quantize(
            model,
            data,
            out,
            target=target,
            calibrator=calibrator,
            images=images,
            keep_float=keep_float or (),
            progress=progress,
        )
    _done("Quantized", made, json)


@verb(
    "octavo export runs/mtcnn-int8",
    "octavo export runs/mtcnn --out runs/mtcnn-onnx --images photos --json",
)
def export(
    model: ModelName,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder to write. [the model's own]")
    ] = None,
    target: Annotated[
        str | None, typer.Option(help="cpu or tensorrt: must be what it was quantized for.")
    ] = None,
    images: Annotated[
        list[Path] | None,
        typer.Option(metavar="PATH", help="Images to compare on. [the samples] Repeatable."),
    ] = None,
    no_lower: Annotated[
        bool, typer.Option("--no-lower", help="Leave out the forms that are faster in one runtime.")
    ] = False,
    json: Json = False,
) -> None:
    """Write the networks as ONNX files and compare them with torch."""
    from octavo import verbs

    if target:
        _one_of(target, verbs.targets(), "--target")
    made, parities, lowered = verbs.export(model, out, target=target, images=images or (), lower=not no_lower)
    if json:
        parity = {name: found.to_dict() for name, found in parities.items()}
        from dataclasses import asdict

        forms = {name: asdict(form) for name, form in lowered.items()}
        _print_json(verbs.row(str(made), made) | {"parity": parity, "lowered": forms})
    else:
        print(f"Exported: {made}\nThe files in ONNX Runtime against the networks in torch:")
        for name, found in parities.items():
            print(f"{name}: {found}")
        for name, form in lowered.items():
            print(f"{name}: {'; '.join(form.done)}; {form.parity}")
    for name, found in (parities | {name: form.parity for name, form in lowered.items()}).items():
        if not found.ok:
            _tell(f"Warning: {name}.onnx computes something else than the network it was made from.")


@verb(
    "octavo sensitivity runs/mtcnn-int8 --data shared/data/faces --chart sensitivity.png",
    "octavo sensitivity runs/mtcnn-int8 --data faces --by ap --images 300 --budget .002 --out runs/mtcnn-mixed",
)
def sensitivity(
    model: Annotated[
        str, typer.Argument(metavar="INT8-FOLDER", help="A quantized model folder with .pt files.")
    ],
    data: Data,
    by: Annotated[
        str, typer.Option(help="sqnr: outputs against the float networks; ap: precision on held-out images.")
    ] = "sqnr",
    images: Annotated[
        int | None, typer.Option(min=1, help="Training images to measure on. [sqnr: 16, ap: 100]")
    ] = None,
    budget: Annotated[
        float | None,
        typer.Option(
            help="Keep layers in float until: no output is below this SQNR, dB; or so much AP is lost."
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write the model with these layers in float.")
    ] = None,
    chart: Annotated[
        Path | None, typer.Option(metavar="FILE.png", help="Draw bars: FILE_NETWORK.png for each network.")
    ] = None,
    json: JsonFile = None,
) -> None:
    """Quantize one layer at a time, and all but one: which of them suffer, worst first.

    With --budget, find how few layers must stay in float, and with --out write that model.
    """
    from octavo import verbs

    _one_of(by, ("sqnr", "ap"), "--by")
    if out and budget is None:
        raise typer.BadParameter("needs --budget: how much may be lost?", param_hint="--out")
    with _steps() as progress:
        found = verbs.sensitivity(
            model, data, by=by, images=images, budget=budget, out=out, chart=chart, progress=progress
        )
    if json:
        from octavo.folder import provenance

        _write({"model": model, "data": str(data)} | found.to_dict() | provenance(), json)
    if json != "-":
        for name, table in found.tables.items():
            _print_sensitivity(name, table)
    if found.kept is not None and json != "-":
        reached = ", ".join(f"{name} {score:.4g}" for name, score in (found.score or {}).items())
        print(f"In float: {', '.join(found.kept) or 'nothing needs to be'}. Then: {reached}")
        if found.out:
            print(f"Written: {found.out} (octavo export {found.out} makes the ONNX files)")
    for file in found.charts:
        _tell(f"Chart: {file}")


def _print_sensitivity(name: str, table: Table) -> None:
    by = "SQNR, dB" if table.by == "sqnr" else table.by
    head = ("layer", "kind", "weights", *(f"{o}: alone" for o in table.outputs))
    head += tuple(f"{o}: all but it" for o in table.outputs)
    rows: list[tuple[Any, ...]] = [
        (row.layer, row.kind, row.parameters, *map(_decibels, (*row.alone, *row.others)))
        for row in table.rows
    ]
    ends = [] if table.by == "sqnr" else [("float", None, None, *map(_decibels, table.reference), None)]
    together = (None,) * len(table.outputs)
    ends.append(("all quantized", None, None, *together, *map(_decibels, table.quantized)))
    _table(head, [*rows, *ends], f"{name}, {by}")


def _decibels(value: float) -> str:
    return "exact" if value == float("inf") else f"{value:.2f}" if abs(value) > 1 else f"{value:.4f}"


@verb(
    "octavo inspect runs/mtcnn-int8 --data shared/data/faces --out out/inside",
    "octavo inspect runs/mtcnn-int8 --data faces --out out/inside --images 4 --no-pictures",
)
def inspect(
    model: Annotated[str, typer.Argument(metavar="FOLDER", help="A quantized model folder with .pt files.")],
    data: Data,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where to write tables and pictures.")],
    images: Annotated[int, typer.Option(min=1, help="Training images to look at.")] = 16,
    no_pictures: Annotated[bool, typer.Option("--no-pictures", help="Only the CSV files.")] = False,
    json: Json = False,
) -> None:
    """Look inside a quantized model: range, clipping, dead channels and SQNR of every layer's values."""
    from octavo import verbs

    with _steps() as progress:
        found = verbs.inspect(model, data, out, images=images, pictures=not no_pictures, progress=progress)
    if json:
        return _print_json({name: [t.to_row() for t in tensors] for name, tensors in found.items()})
    for name, tensors in found.items():
        rows = [
            (
                f"{t.layer} {t.kind}",
                t.grid,
                *(f"{value:.3g}" for value in (t.min, t.max, t.std)),
                f"{t.clipped:.3%}",
                f"{t.dead}/{t.channels}",
                *map(_decibels, (t.sqnr, t.sqnr_network)),
            )
            for t in tensors
        ]
        _table(
            ("values", "grid", "min", "max", "deviation", "clipped", "dead", "SQNR, dB", "of the network"),
            rows,
            name,
        )
    print(f"Written: {out}")


@verb("octavo check runs/mtcnn-int8", "octavo check network.onnx --target tensorrt --json")
def check(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="An embedded model's name, a folder, or an .onnx file.")
    ],
    target: Annotated[
        str | None,
        typer.Option(help="tensorrt, cpu (ONNX Runtime), openvino or ncnn. [what it was quantized for]"),
    ] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Fail on warnings too, not on errors only.")
    ] = False,
    json: Json = False,
) -> None:
    """Read exported networks and name every rule of a target that they break: why it matters, what to do.

    Nothing is run. The exit code is 1 where there are errors.
    """
    from octavo import verbs

    if target:
        _one_of(target, verbs.check_targets(), "--target")
    found = verbs.check(model, target)
    if json:
        _print_json({name: [finding.to_dict() for finding in findings] for name, findings in found.items()})
    else:
        for name, findings in found.items():
            _print_findings(name, findings)
    if {f.level for findings in found.values() for f in findings} & {"error", *(["warning"] * strict)}:
        raise typer.Exit(1)


def _print_findings(name: str, findings: list[Finding]) -> None:
    """Rule by rule: the nodes that break it, then why and what to do once."""
    from textwrap import fill

    many = {level: sum(f.level == level for f in findings) for level in ("error", "warning", "hint")}
    print(f"{name}: " + ", ".join(f"{n} {level}{'s' * (n != 1)}" for level, n in many.items()))
    groups: dict[tuple[str, ...], list[Finding]] = {}
    for f in findings:
        groups.setdefault((f.level, f.rule, f.why, f.do), []).append(f)
    for (level, rule, why, do), members in groups.items():
        print(f"  {level}: {rule}")
        for f in members:
            print(f"    {f.node}: {f.what}")
        print(fill(f"{why} {do}", 100, initial_indent="      ", subsequent_indent="      "))


@verb(
    "octavo explain tensor -0.52 0.3 1.7",
    "octavo explain fixedpoint 2.71875 --format 10.5",
    ignore_unknown_options=True,  # a number may be negative
)
def explain(
    what: Annotated[
        str, typer.Argument(metavar="tensor|fixedpoint", help="A scale for all, or a fixed binary point.")
    ],
    numbers: Annotated[list[str], typer.Argument(metavar="NUMBER...", help="What to quantize.")],
    bits: Annotated[int, typer.Option(min=2, max=8, help="Of a tensor's integers.")] = 8,
    format: Annotated[
        str | None, typer.Option(metavar="N.M", help="Integer and fraction bits of a fixed-point number.")
    ] = None,
    json: Json = False,
) -> None:
    """Quantize a few numbers step by step: integers, what they return, errors, memory, time.

    tensor: the offset method (affine), the same scale without its offset, and max-abs (symmetric).
    fixedpoint: two's complement with N integer and M fraction bits; try -0.499878 with --format 2.13 too.
    """
    from octavo import verbs

    _one_of(what, ("tensor", "fixedpoint"), "tensor|fixedpoint")
    values = [number for text in numbers for number in _numbers(text, "NUMBER") or ()]
    if (what == "fixedpoint") != (format is not None):
        rule = "fixedpoint needs it, such as 10.5" if format is None else "goes with fixedpoint only"
        raise typer.BadParameter(rule, param_hint="--format")
    said = verbs.explain(what, values, bits, format)
    if json:
        return _print_json([{k: v for k, v in one.items() if k != "text"} for one in said])
    print("\n".join(one["text"].rstrip("\n") + "\n" for one in said), end="")


def _one_of(word: str, known: Sequence[str], option: str) -> None:
    if word not in known:
        near = did_you_mean(word, known)
        raise typer.BadParameter(f"no {word!r}.{near} There are: {', '.join(known)}.", param_hint=option)


@contextmanager
def _spinner() -> Iterator[NetworkProgress]:
    """Network and count on stderr, while it is a terminal."""
    from rich.console import Console

    console = Console(stderr=True)
    with console.status("") as status:
        yield lambda network, done: status.update(f"{network}: {done}")


@verb(
    "octavo predict mtcnn-relu photo.jpg --save out",
    "octavo predict mtcnn-relu photos --min-face 12 --confidence .9 --jsonl faces.jsonl",
)
def predict(
    model: ModelName,
    paths: Annotated[list[str], typer.Argument(metavar="PATH...", help="Images, or folders of images.")],
    min_face: MinFace = None,
    thresholds: Thresholds = None,
    confidence: Confidence = None,
    factor: Factor = None,
    nms: Nms = None,
    backend: Backend = "auto",
    threads: Threads = 1,
    max_pixels: Annotated[
        int | None, typer.Option(min=1, help="Refuse larger images. [default: 100 megapixels]")
    ] = None,
    save: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write annotated pictures, subfolders kept.")
    ] = None,
    jsonl: Annotated[Path | None, typer.Option(metavar="FILE", help="Write one JSON line per image.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON line per image.")] = False,
) -> None:
    """Find objects in images: boxes, probabilities, key points.

    A file that cannot be read is reported, the others are still done, and the exit code is 1 at the end.
    """
    from octavo import verbs

    settings = _settings(min_face, thresholds, confidence, factor, nms)
    results = verbs.predict(model, paths, backend=backend, threads=threads, max_pixels=max_pixels, **settings)
    place = verbs.saver(save, paths) if save else None
    done = failed = 0
    with _lines(jsonl) as file:
        for result in results:
            if place:
                result = place(result)
            done, failed = done + 1, failed + (result.error is not None)
            if file:
                print(to_json(result.to_dict(), indent=None), file=file, flush=True)
            if json:
                print(to_json(result.to_dict(), indent=None), flush=True)
            else:
                _print_result(result)
    if failed:
        _tell(f"{failed} of {done} images failed.")
        raise typer.Exit(1)


@contextmanager
def _lines(path: Path | None) -> Iterator[IO[str] | None]:
    """A file for lines that stay when the run is stopped half-way; None without a path."""
    if path is None:
        yield None
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        yield file


def _print_result(result: Result) -> None:
    if result.found is None or result.size is None:
        return _tell(f"Error: {result.error}")
    found = result.found
    width, height = result.size
    print(f"{result.image}  {width}x{height}  {len(found)} found", flush=True)
    for xyxy, confidence in zip(found.xyxy[:SHOWN], found.confidence[:SHOWN], strict=True):
        print(f"  {confidence:.3f}  " + " ".join(f"{v:7.1f}" for v in xyxy))
    if len(found) > SHOWN:
        print(f"  ... and {len(found) - SHOWN} more (--json prints all)")


@verb(
    "octavo evaluate mtcnn-relu --data shared/data/faces --min-face 12 --confidence .02 --json val.json",
    "octavo evaluate --predictions out/wider --ground-truth shared/wider_gt --json wider.json",
)
def evaluate(
    model: Annotated[
        str | None, typer.Argument(metavar="MODEL", help="An embedded model's name, or a folder.")
    ] = None,
    data: Annotated[Path | None, typer.Option(metavar="DIR", help="Data set in WIDER FACE layout.")] = None,
    split: Annotated[str, typer.Option(help="train or val.")] = "val",
    predictions: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Judge these EVENT/NAME.txt files instead of a model.")
    ] = None,
    ground_truth: Annotated[
        Path | None, typer.Option(metavar="DIR", help="WIDER FACE's .mat files: easy, medium, hard.")
    ] = None,
    min_face: MinFace = None,
    thresholds: Thresholds = None,
    confidence: Confidence = None,
    factor: Factor = None,
    nms: Nms = None,
    backend: Backend = "auto",
    threads: Threads = 1,
    save_predictions: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Write EVENT/NAME.txt as the benchmark's tools read them."),
    ] = None,
    json: JsonFile = None,
) -> None:
    """Measure average precision and landmark error of a model on a data set, or of given predictions.

    Keep --confidence low: faces that are cut off cannot be found.
    """
    from octavo import verbs

    if predictions:
        if model or data or not ground_truth:
            raise typer.BadParameter(
                "goes with --ground-truth, without MODEL and --data", param_hint="--predictions"
            )
        result: dict[str, Any] = verbs.judge(predictions, ground_truth)
    elif model and data:
        with _progress("Evaluating") as progress:
            result = verbs.evaluate(
                model,
                data,
                split=split,
                ground_truth=ground_truth,
                save_predictions=save_predictions,
                backend=backend,
                threads=threads,
                progress=progress,
                **_settings(min_face, thresholds, confidence, factor, nms),
            )
    else:
        raise typer.BadParameter("give MODEL and --data, or --predictions and --ground-truth")
    if json:
        _write(result, json)
    if json != "-":
        _print_evaluation(result)
    if result.get("errors"):
        for name, error in result["errors"].items():
            _tell(f"Error: {name}: {error}")
        raise typer.Exit(1)


def _print_evaluation(result: dict[str, Any]) -> None:
    subsets = {k: result[k] for k in ("easy", "medium", "hard") if k in result}
    if subsets:
        _table(("WIDER FACE", "AP"), subsets.items())
    if "ap" not in result:
        return
    landmarks = result.get("landmarks", {})
    rows = [(name, ap, landmarks.get(name, {}).get("nme")) for name, ap in result["ap"].items()]
    title = f"{result['model']} ({result['precision']}, {result['backend']}): {result['images']} images, "
    _table(
        ("event", "AP", "landmark error"), rows, title + f"{result['faces']} faces, {result['seconds']:.0f} s"
    )
    _table(("face size, px", "AP"), result["ap_by_size"].items())


@verb(
    "octavo bench mtcnn-relu mtcnn-relu-float --size 640x480",
    "octavo bench mtcnn-relu --image photo.jpg --backend onnxruntime,openvino --json bench.json",
)
def bench(
    models: Annotated[list[str], typer.Argument(metavar="MODEL...", help="Embedded names or model folders.")],
    size: Annotated[str | None, typer.Option(metavar="WxH", help="Size of the image. [640x480]")] = None,
    image: Annotated[
        Path | None, typer.Option(metavar="FILE", help="An image. [a sample photograph]")
    ] = None,
    threads: Threads = 1,
    min_face: MinFace = None,
    thresholds: Thresholds = None,
    confidence: Confidence = None,
    factor: Factor = None,
    nms: Nms = None,
    backend: Annotated[
        str, typer.Option(help="auto, onnxruntime, openvino, torch, or several: a,b.")
    ] = "auto",
    repeats: Annotated[int, typer.Option(min=1, help="Rounds that are measured.")] = 50,
    memory: Annotated[bool, typer.Option(help="Measure peak memory too, in a process per model.")] = True,
    json: JsonFile = None,
) -> None:
    """Measure models side by side: latency per stage, memory, size, share of integers."""
    from dataclasses import asdict

    from octavo import verbs
    from octavo.folder import provenance

    wanted = _size(size)
    settings = _settings(min_face, thresholds, confidence, factor, nms)
    with _progress("Measuring") as progress:
        rows = verbs.bench(
            models,
            size=wanted,
            image=image,
            backends=backend.split(","),
            threads=threads,
            repeats=repeats,
            memory=memory,
            progress=progress,
            **settings,
        )
    if json:
        _write({"rows": [asdict(row) for row in rows], "settings": settings} | provenance(), json)
    if json != "-":
        _print_bench(rows)


def _size(text: str | None) -> tuple[int, int] | None:
    """'640x480' -> (640, 480)."""
    width, _, height = (text or "1x1").lower().partition("x")
    if not (width.isdecimal() and height.isdecimal() and int(width) and int(height)):
        raise typer.BadParameter(
            f"{text!r} is not WIDTHxHEIGHT in pixels, such as 640x480", param_hint="--size"
        )
    return (int(width), int(height)) if text else None


def _print_bench(rows: list[Row]) -> None:
    first = rows[0]
    print(
        f"{first.width}x{first.height}, {first.threads} thread(s), median ms of {first.repeats} rounds in turn"
    )
    stages = list(dict.fromkeys(stage for row in rows for stage in row.stages))
    table = []
    for row in rows:
        share = row.integers
        table.append(
            (
                row.name,
                row.backend,
                f"{row.total.p50:.2f}",
                f"{row.total.p95:.2f}",
                f"{first.total.p50 / row.total.p50:.2f}x",
                *(f"{row.stages[s].p50:.2f}" if s in row.stages else None for s in stages),
                row.detections,
                _kilobytes(row.file_bytes),
                f"{row.memory.peak:.0f} MB" if row.memory else None,
                f"{share.integer}/{share.layers}" if share else None,
            )
        )
    head = ("model", "backend", "p50", "p95", "speed", *stages, "found", "files", "memory", "integer layers")
    _table(head, table)
