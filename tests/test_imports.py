"""The directions of imports, as a table: what each part of the package may know of the others.

Read from the source (ast), so nothing has to be installed or run; `if TYPE_CHECKING` counts as nothing. Then a
fresh interpreter shows that the base package really loads without what it must do without.
"""

from __future__ import annotations

import ast
import importlib.util
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "octavo"
FILES = sorted(p for p in SOURCE.rglob("*.py") if "__pycache__" not in p.parts)

# Part of the package -> the other parts it may import. A file's own part is always allowed, and so is `octavo`
# itself (its version). Longest name first: models.mtcnn before models.
BASE = {"images", "boxes", "outputs", "folder", "recipe"}
STEPS = {"data", "train", "quantize", "export", "lower", "run", "evaluate"}
MAY = {
    "": set(),  # octavo/__init__.py: names are loaded at first use, by importlib
    "__main__": {"cli"},
    "cli": {"verbs", "folder", "recipe"},
    "verbs": {"models"} | STEPS | BASE,
    "models": STEPS | BASE,  # what can be done to every family alike; families are found by name
    "models.*": STEPS | BASE,  # never another family
    "data": BASE,
    "train": {"recipe", "folder"},  # quantization is a module like any other
    "quantize": set(),
    "export": {"quantize", "lower", "run", "folder"},
    "lower": {"folder"},
    "run": {"folder", "images", "boxes", "outputs"},
    "evaluate": {"data"} | BASE,
    "recipe": {"folder"},
    "folder": set(),
    "boxes": set(),
    "images": set(),
    "outputs": {"boxes", "images", "folder"},
}
# Libraries with a cost or an extra -> files that may import them when they are themselves imported ("module"),
# and files that may do so inside a function only ("late").
LIBRARIES = {
    "torch": (
        [
            "train.py",
            "quantize/*",
            "export/*",
            "data/*",
            "run/on_torch.py",
            *(f"models/*/{f}.py" for f in ("net", "loss", "data")),
        ],
        ["models/__init__.py", "verbs/*"],
    ),
    "onnx": (["export/*", "lower/*"], ["export/*", "lower/*", "run/*"]),
    "onnxruntime": ([], ["run/on_onnxruntime.py", "run/bench.py", "lower/dynamic.py"]),
    "openvino": ([], ["run/on_openvino.py", "run/bench.py"]),
    "ncnn": ([], ["run/on_ncnn.py"]),
    "pnnx": ([], ["export/to_ncnn.py"]),
    "cv2": (
        ["images.py", "boxes.py", "outputs.py", "data/*", "models/*/predict.py", "models/*/data.py"],
        ["*"],
    ),
    "lightning_fabric": (["train.py"], []),
    "scipy": ([], ["evaluate/*"]),
    "typer": (["cli/*"], []),
    "rich": ([], ["cli/console.py", "cli/progress.py"]),
    "matplotlib": ([], ["*"]),
    "jinja2": ([], ["evaluate/report/*"]),
    "pycocotools": ([], ["evaluate/objects.py"]),
}
# Files that a deployment without torch uses, though their folder may import it.
NO_TORCH = [
    "data/__init__.py",
    "data/check.py",
    "data/files.py",
    "data/widerface.py",
    "data/coco.py",
    "data/coco_check.py",
    "models/*/predict.py",
    "models/*/recipe.py",
    "models/*/__init__.py",
]


@dataclass(frozen=True)
class Import:
    module: str  # "octavo.boxes", "torch"
    late: bool  # inside a function
    line: int


def imports(path: Path) -> Iterator[Import]:
    """Every import of a file that is carried out when it runs, absolute; TYPE_CHECKING blocks left out."""
    package = ["octavo", *path.relative_to(SOURCE).parent.parts]

    def visit(node: ast.AST, late: bool) -> Iterator[Import]:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            return
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, late, node.lineno)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:  # `from octavo import boxes` imports octavo.boxes
                inner = f"{module}.{alias.name}"
                yield Import(inner if is_ours(inner) else module, late, node.lineno)
        deeper = late or isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        for child in ast.iter_child_nodes(node):
            yield from visit(child, deeper)

    yield from visit(ast.parse(path.read_text(encoding="utf-8")), False)


def is_ours(module: str) -> bool:
    parts = module.split(".")
    base = SOURCE.joinpath(*parts[1:])
    return parts[0] == "octavo" and (base.with_suffix(".py").is_file() or (base / "__init__.py").is_file())


def part_of(module: str) -> str:
    """octavo.models.mtcnn.net -> models.mtcnn; octavo.run.bench -> run; octavo -> ''."""
    parts = module.split(".")[1:]
    if parts[:1] == ["models"] and len(parts) > 1:
        return ".".join(parts[:2])
    return parts[0] if parts else ""


def module_of(path: Path) -> str:
    parts = path.relative_to(SOURCE).with_suffix("").parts
    return ".".join(["octavo", *(p for p in parts if p != "__init__")])


def allowed(part: str) -> set[str]:
    return MAY["models.*"] if part.startswith("models.") else MAY[part]


def matches(path: Path, patterns: list[str]) -> bool:
    return any(path.relative_to(SOURCE).match(pattern) for pattern in patterns)


def wrong_directions(path: Path) -> list[str]:
    here = part_of(module_of(path))
    ours = [i for i in imports(path) if i.module.split(".")[0] == "octavo"]
    known = {here, ""} | allowed(here)
    return [f"{path.name}:{i.line} imports {i.module}" for i in ours if part_of(i.module) not in known]


def misplaced_libraries(path: Path) -> list[str]:
    wrong = []
    for i in imports(path):
        library = i.module.split(".")[0]
        if library not in LIBRARIES:
            continue
        at_once, late = LIBRARIES[library]
        fine = matches(path, at_once + late if i.late else at_once)
        if library == "torch" and not i.late:
            fine = fine and not matches(path, NO_TORCH)
        if not fine:
            wrong.append(f"{path.name}:{i.line} imports {library}{' in a function' if i.late else ''}")
    return wrong


@pytest.mark.parametrize("path", FILES, ids=[str(p.relative_to(SOURCE)) for p in FILES])
def test_directions(path: Path) -> None:
    here = part_of(module_of(path))
    assert not wrong_directions(path), f"{here or 'octavo'} may import {sorted(allowed(here)) or 'nothing'}"
    assert not misplaced_libraries(path)


@pytest.mark.parametrize(
    ("file", "code", "says"),
    [
        pytest.param("boxes.py", "import octavo.verbs", "octavo.verbs", id="upwards"),
        pytest.param(
            "boxes.py", "def f():\n    from octavo import verbs", "octavo.verbs", id="upwards and late"
        ),
        pytest.param(
            "models/a/net.py", "from octavo.verbs.load import load", "verbs.load", id="upwards, deep"
        ),
        pytest.param("verbs/x.py", "from octavo.cli import main", "octavo.cli", id="a verb, upwards"),
        pytest.param("verbs/x.py", "import torch", "torch", id="a verb, torch at once"),
        pytest.param("verbs/x.py", "import typer", "typer", id="a verb that prints"),
        pytest.param("verbs/x.py", "def f():\n    import torch", "", id="a verb, torch when needed"),
        pytest.param("cli/x.py", "from octavo.data import widerface", "data.widerface", id="past the verbs"),
        pytest.param("cli/x.py", "def f():\n    import torch", "torch", id="torch in the command line"),
        pytest.param("cli/x.py", "import typer\nfrom octavo import verbs", "", id="over the verbs"),
        pytest.param("models/a/net.py", "from octavo.models.b import net", "models.b", id="another family"),
        pytest.param(
            "models/a/net.py", "from ..b.net import build", "models.b.net", id="another one, relative"
        ),
        pytest.param("quantize/x.py", "from octavo.data import widerface", "data.widerface", id="quantize"),
        pytest.param("models/a/predict.py", "import torch", "torch", id="torch in predict"),
        pytest.param("run/on_onnxruntime.py", "import onnxruntime", "onnxruntime", id="a runtime at once"),
        pytest.param("boxes.py", "if TYPE_CHECKING:\n    import torch", "", id="types only"),
        pytest.param(
            "models/a/net.py", "import torch\nfrom octavo import boxes\nfrom . import x", "", id="fine"
        ),
    ],
)
def test_the_check_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str, code: str, says: str
) -> None:
    packages = ("verbs", "cli", "data", "models/b")
    for made in (
        "boxes",
        "verbs/load",
        "data/widerface",
        "models/b/net",
        *(f"{p}/__init__" for p in packages),
    ):
        (tmp_path / made).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / f"{made}.py").touch()
    monkeypatch.setattr(sys.modules[__name__], "SOURCE", tmp_path)
    path = tmp_path / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(code)
    wrong = wrong_directions(path) + misplaced_libraries(path)
    assert [says in w for w in wrong] == ([True] if says else [])


def test_shared_code_names_no_family() -> None:
    families = [p.name for p in (SOURCE / "models").iterdir() if (p / "net.py").is_file()]
    assert families
    for path in FILES:
        if "models" in path.relative_to(SOURCE).parts[:-1] and path.parent.name in families:
            continue
        strings = [
            node.value
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(node, ast.Constant) and isinstance(node.value, str)
        ]
        assert not set(strings) & set(families), f"{path}: found by name from model.json instead"


def test_verbs_know_no_task_and_no_layout() -> None:
    """They ask a family's TASK. The one benchmark that judges files without a model has a verb to itself (judge)."""
    tasks = {f"octavo.evaluate.{task}" for task in ("faces", "objects", "text")}
    layouts = {f"octavo.data.{file}" for file in ("widerface", "check", "coco", "textlines")}
    for folder in ("verbs", "cli", "models"):
        for path in (SOURCE / folder).glob("*.py"):
            known = {i.module for i in imports(path)}
            assert not known & (tasks | layouts), path


def test_every_family_has_a_task_that_answers() -> None:
    """What octavo/evaluate/__init__.py promises the verbs."""
    from octavo import evaluate, models

    assert evaluate.__doc__ is not None
    required, optional = evaluate.__doc__.split("Only where there is such a thing")
    names = re.findall(r"^ {4}([A-Za-z_]+)[ (]", required, re.MULTILINE)
    assert {"UNIT", "read", "measure", "write"} < set(names)
    optional_names = re.findall(r"^ {4}([a-z_]+)\(", optional, re.MULTILINE)
    assert optional_names == ["scores", "chart", "ground_truth", "predicted"]
    for task in models.tasks():
        assert not [name for name in names if not hasattr(task, name)], task.__name__
        assert "all" in task.WHOLE
        assert task.count([]) == 0
        assert task.nothing().lines()


def test_quantize_needs_torch_and_the_standard_library_only() -> None:
    for path in (SOURCE / "quantize").glob("*.py"):
        for i in imports(path):
            library = i.module.split(".")[0]
            fine = library in {"octavo", "torch"} or library in sys.stdlib_module_names
            assert fine or (library == "numpy" and path.name == "fixedpoint.py"), (
                f"{path.name}:{i.line} {i.module}"
            )


def loaded_by(code: str) -> set[str]:
    """Top-level modules in a fresh interpreter after `code`."""
    script = f"import sys\n{code}\nprint(*sorted({{m.split('.')[0] for m in sys.modules}}))"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(run.stdout.split())


def test_import_octavo_loads_nothing_heavy() -> None:
    assert not loaded_by("import octavo") & {
        "numpy",
        "cv2",
        "onnxruntime",
        "torch",
        "typer",
        "rich",
        "openvino",
    }


def test_the_command_line_loads_nothing_heavy() -> None:
    assert not loaded_by("import octavo.cli") & {"numpy", "cv2", "onnxruntime", "torch", "openvino"}


def test_the_base_modules_load_without_torch_or_a_runtime() -> None:
    base = [
        "images", "boxes", "outputs", "folder", "recipe", "verbs", "run", "run.bench", "run.on_onnxruntime",
        "run.on_openvino", "data.widerface", "evaluate.widerface", "evaluate.events", "evaluate.landmarks",
        "evaluate.faces", "evaluate",
        *(f"models.{p.parent.name}.{p.stem}" for f in ("predict", "recipe") for p in SOURCE.glob(f"models/*/{f}.py")),
    ]  # fmt: skip
    missing = [name for name in base if importlib.util.find_spec(f"octavo.{name}") is None]
    assert not missing
    code = "\n".join(f"import octavo.{name}" for name in base)
    assert not loaded_by(code) & {"torch", "onnxruntime", "openvino", "onnx", "scipy", "matplotlib"}


def test_quantize_without_torch_has_what_needs_none() -> None:
    code = """
sys.modules["torch"] = None
from octavo.quantize import Scheme, fixedpoint, scheme
from octavo import verbs
assert verbs.targets() == list(scheme.TARGETS)
for name in ("prepare", "FakeQuant"):
    try:
        exec(f"from octavo.quantize import {name}")
    except ModuleNotFoundError as error:
        assert error.name == "torch" and "octavo[train]" in str(error)
    else:
        raise AssertionError(name)
"""
    assert "octavo" in loaded_by(code)


def test_public_names_resolve() -> None:
    import octavo

    for name in octavo.__all__:
        assert getattr(octavo, name) is not None
    assert set(octavo.__all__) <= set(dir(octavo))
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        octavo.nonsense  # noqa: B018
