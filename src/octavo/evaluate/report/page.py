"""A Report as one HTML file that needs nothing else: no network, no script, no file beside it.

Charts are SVG in the page itself, drawn in the colour of its text, so that they follow a dark window and a printer.
Photographs are JPEG data. Names come from files and folders: the template escapes all of them, and no chart holds one.
"""

from __future__ import annotations

import base64
import math
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from octavo.evaluate import charts
from octavo.evaluate.report import Candidate, Report
from octavo.evaluate.report.numbers import ALL, CLASSES, SIZES, SQNR, STAGES, Number, exact
from octavo.folder import FolderError, atomic, to_json

if TYPE_CHECKING:
    import numpy as np

HERE = Path(__file__).parent
BENEATH = {
    SIZES.title,
    CLASSES.title,
    STAGES.title,
    SQNR.title,
}  # sections that have a place of their own below the summary
QUALITY = 82  # of JPEG: no difference is seen at this size


def check(out: str | Path) -> None:
    """Say that a page can't be made there before anything long begins: ImportError, ValueError or OSError."""
    for library in ("jinja2", "matplotlib"):
        if find_spec(library) is None:
            raise ImportError(
                f"a report needs {library}, which is not installed: pip install 'octavo[report]'"
            )
    out = Path(out)
    if out.suffix.lower() not in (".html", ".htm"):
        raise ValueError(f"{out}: the report is a page, give a name that ends in .html")
    if out.is_dir():
        raise FolderError(f"{out} is a folder; a file is to be written there.")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=out.parent):
        pass


def write(report: Report) -> None:
    """Draw the report and write it as report.html."""
    page = render(report)
    with atomic(report.html) as temporary:
        temporary.write_text(page, encoding="utf-8", errors="backslashreplace")


def render(report: Report) -> str:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    env = Environment(
        loader=FileSystemLoader(HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    env.filters |= {"exact": exact, "jpeg": _jpeg}
    numbers = report.numbers
    candidates = report.candidates
    return env.get_template("page.html").render(
        report=report,
        candidates=candidates,
        others=_others(candidates),
        styles=charts.SERIES,
        headlines=[[n for n in report.headlines if n.label == c.label] for c in candidates],
        summary=_tables(numbers, lambda section: section not in BENEATH),
        curves=dict(_curves(candidates)),
        sizes=_tables(numbers, SIZES.title.__eq__),
        sizes_chart=_chart(
            "sizes",
            charts.points,
            _of(candidates, "ap_by_size"),
            ("size √(w·h), px", "average precision"),
        ),
        errors_chart=_chart(
            "errors",
            charts.shares,
            dict(_errors(candidates)),
            ("error / √(w·h) of the face", "share of the faces"),
        ),
        classes=_tables(numbers, CLASSES.title.__eq__),
        stages=_tables(numbers, STAGES.title.__eq__),
        bars=_bars(candidates),
        sensitivity=_sensitivity(numbers),
        facts=_facts(candidates),
    )


def _others(candidates: Sequence[Candidate]) -> str:
    """The models that are held against the first, by the shortest names that fit into a heading."""
    labels = [c.label for c in candidates[1:]]
    names = list(dict.fromkeys(c.name for c in candidates[1:] if c.model != candidates[0].model))
    short = next((of for of in (labels, names) if 0 < len(of) <= 3), None)
    return ", ".join(short) if short else f"{len(labels)} others" if labels else ""


# Numbers ------------------------------------------------------------------------------------------------

Table = Mapping[str, Mapping[str, Mapping[str, Number]]]  # section: {measure: {label: Number}}


def _tables(numbers: Sequence[Number], wanted: Callable[[str], bool]) -> Table:
    out: dict[str, dict[str, dict[str, Number]]] = {}
    for number in numbers:
        if wanted(number.section):
            of_section = out.setdefault(number.section, {})
            of_section.setdefault(number.measure, {})[number.label] = number
    return out


def _bars(candidates: Sequence[Candidate]) -> dict[str, list[tuple[str, float, str]]]:
    """{label: [(stage, share of the longest bar in %, colour)]}."""
    stages = {c.label: {s: of["p50"] for s, of in c.timing["stages"].items()} for c in candidates if c.timing}
    longest = max((sum(of.values()) for of in stages.values()), default=1) or 1
    colours = dict(zip(dict.fromkeys(s for of in stages.values() for s in of), _colours(), strict=False))
    return {
        label: [(s, 100 * ms / longest, colours.get(s, charts.GREY)) for s, ms in of.items()]
        for label, of in stages.items()
    }


def _colours() -> list[str]:
    return [colour for colour, dashes in charts.SERIES[1:] if not dashes]


def _sensitivity(numbers: Sequence[Number]) -> dict[str, dict[str, list[tuple[str, Number, float]]]]:
    """{model: {network: [(layer, Number, width of its bar in %)]}}."""
    own = [n for n in numbers if n.section == SQNR.title]
    longest = max((n.value for n in own if math.isfinite(n.value)), default=1)
    out: dict[str, dict[str, list[tuple[str, Number, float]]]] = {}
    for n in own:
        network, _, layer = n.measure.partition(": ") if ": " in n.measure else n.measure.partition("/")
        width = 100 * max(0.0, min(n.value, longest)) / longest
        out.setdefault(n.label, {}).setdefault(network, []).append((layer, n, width))
    return out


# Charts -------------------------------------------------------------------------------------------------


def _of(candidates: Sequence[Candidate], key: str) -> dict[str, Any]:
    return {c.label: c.record[key] for c in candidates if c.record.get(key)}


def _curves(candidates: Sequence[Candidate]) -> Iterator[tuple[str, str]]:
    """(subset, chart) of every subset that a record has a curve of."""
    curves = _of(candidates, "curves")
    for i, subset in enumerate(dict.fromkeys(name for of in curves.values() for name in of)):
        lines = {
            label: (of[subset]["recall"], of[subset]["precision"])
            for label, of in curves.items()
            if subset in of
        }
        yield subset, _chart(f"curve{i}", charts.precision_recall, lines)


def _errors(candidates: Sequence[Candidate]) -> Iterator[tuple[str, tuple[Sequence[float], float]]]:
    """(label, (quantiles, share of the annotated faces that were found))."""
    for c in candidates:
        if c.record.get("landmark_errors"):
            all_ = c.record["landmarks"][ALL]
            yield c.label, (c.record["landmark_errors"], all_["found"] / all_["faces"])


def _chart(
    name: str, draw: Callable[..., None], values: Mapping[str, Any], labels: tuple[str, str] | None = None
) -> str:
    """An SVG element, or "" where there is nothing to draw. The page names the lines, once for all charts.

    name: no other chart of the page may have it, since what an SVG file names within is made from its own name.
    """
    if not values:
        return ""
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / f"{name}.svg"
        draw(values, path, legend=False, **({"labels": labels} if labels else {}))
        return inline(path.read_text(encoding="utf-8"))


def inline(svg: str) -> Any:
    """An SVG file's text as an element of an HTML page, in the page's own font and text colour."""
    from markupsafe import Markup

    svg = svg[svg.index("<svg") :]
    svg = re.sub(r' xmlns(:\w+)?="[^"]*"', "", svg).replace("xlink:href", "href")
    svg = re.sub(
        r"<defs>\s*<style.*?</style>\s*</defs>", "", svg, flags=re.DOTALL
    )  # would hold for the whole page
    svg = re.sub(r' (width|height)="[\d.]+pt"', "", svg, count=2)
    svg = re.sub(r"font-family: [^;\"]*;? ?", "", svg).replace("#000000", "currentColor")
    used = set(re.findall(r"(?:url\(|href=\")#([^\")]+)", svg))
    svg = re.sub(r' id="([^"]*)"', lambda m: m[0] if m[1] in used else "", svg)
    svg = re.sub(r"(\d\.\d\d)\d+", r"\1", re.sub(r"\s*\n\s*", " ", svg))
    return Markup(svg.replace("<svg", '<svg role="img" aria-hidden="true"', 1))


def _jpeg(image: np.ndarray) -> str:
    """(h, w, 3) uint8 RGB -> a data URI."""
    import cv2

    done, data = cv2.imencode(".jpg", image[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
    assert done
    return "data:image/jpeg;base64," + base64.b64encode(data.tobytes()).decode("ascii")


# Models -------------------------------------------------------------------------------------------------


def _facts(candidates: Sequence[Candidate]) -> dict[str, dict[str, str]]:
    """{fact: {label: text}} of the model cards; a fact that no model has is left out."""
    by_model = {c.label: dict(_facts_of(c)) for c in candidates}
    longest = sorted(by_model.values(), key=len, reverse=True)  # its order, which the others keep too
    names = dict.fromkeys(name for of in longest for name in of)
    return {name: {label: of.get(name, "") for label, of in by_model.items()} for name in names}


def _facts_of(candidate: Candidate) -> Iterator[tuple[str, str]]:
    info = candidate.info
    yield "model", candidate.model
    yield "family, variant", f"{info['family']}, {info['variant']}"
    yield "precision", info["precision"] + (f", target {info['target']}" if info.get("target") else "")
    yield "runtime", candidate.backend
    scheme = info.get("scheme") or {}
    for name in ("weight", "activation"):
        if name in scheme:
            yield f"{name}s", _grid(scheme[name])
    if scheme:
        yield "kept in float", ", ".join(scheme.get("skip") or []) or "no layer"
    calibration = info.get("calibration") or {}
    if calibration:
        yield "calibrator", str(calibration.get("method") or scheme.get("calibrator", ""))
        yield "calibrated on", f"{calibration.get('images', '?')} images of {calibration.get('data', '?')}"
        yield "calibration hash", str(calibration.get("hash", ""))[:16]
    yield "own settings", _assignments(info["settings"])
    if candidate.record.get("settings"):
        yield "accuracy measured with", _assignments(candidate.record["settings"])
    yield "trained on", info["data"] if isinstance(info.get("data"), str) else to_json(info.get("data"), None)
    yield "made by", info.get("command") or "?"
    yield "made", ", ".join(filter(None, (info.get("created"), f"commit {info.get('commit')}")))
    yield "files, SHA-256", candidate.digest[:16]


def _grid(grid: Mapping[str, Any]) -> str:
    sign = "signed" if grid.get("signed") else "unsigned"
    around = "symmetric" if grid.get("symmetric") else "with zero-point"
    return f"{grid.get('bits')} bits, {sign}, {around}, per {grid.get('granularity')}"


def _assignments(settings: Mapping[str, Any]) -> str:
    def said(value: Any) -> str:
        return (
            " ".join(map(said, value))
            if isinstance(value, (list, tuple))
            else f"{value:g}"
            if isinstance(value, float)
            else str(value)
        )

    return ", ".join(f"{name} {said(value)}" for name, value in settings.items())
