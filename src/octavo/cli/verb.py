"""A function becomes a verb: a command with examples below its help, whose errors are messages with exit codes.

0 done, 1 failed, 2 wrong usage, 130 stopped with Ctrl-C.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Annotated, Any, TypeVar

import typer

from octavo import __version__
from octavo.cli.console import tell
from octavo.folder import UnknownName

F = TypeVar("F", bound=Callable[..., Any])
# Which extra brings a module that the base install does without.
EXTRAS = {
    **dict.fromkeys(("torch", "onnx", "onnxscript", "lightning_fabric", "tensorboard", "scipy"), "train"),
    **{"openvino": "openvino", "pycocotools": "coco", "matplotlib": "report", "jinja2": "report"},
    **{"ncnn": "ncnn", "pnnx": "ncnn"},
}
app = typer.Typer(
    name="octavo",
    help="Small vision models, folded into eight bits: train, quantize, export, run and judge them.",
    epilog="Example:\n\noctavo predict mtcnn-relu photo.jpg --save out",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


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
                tell("Stopped. What was done until here is kept.")
                raise typer.Exit(130) from None
            except BrokenPipeError:
                raise  # typer ends quietly when the reader of a pipe has gone
            except (ValueError, OSError, ImportError, RuntimeError, MemoryError) as error:
                if os.environ.get("OCTAVO_DEBUG"):
                    raise
                tell(f"Error: {_message(error)}")
                raise typer.Exit(_exit_code(error)) from None

        epilog = "\n\n".join(["Examples:", *examples])
        app.command(function.__name__.rstrip("_"), epilog=epilog, context_settings=settings)(guarded)
        return function

    return decorate


def _exit_code(error: BaseException) -> int:
    from octavo.verbs import WrongSetting

    return 2 if isinstance(error, (UnknownName, WrongSetting)) else 1


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
