"""octavo explain and octavo check as typed: the issue's worked cases, forms, messages, exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from octavo import cli, folder, verbs

pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")


def octavo(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """Exit code, stdout, stderr (in one line)."""
    with pytest.raises(SystemExit) as stopped:
        cli.main([str(a) for a in arguments])
    printed = capsys.readouterr()
    return int(stopped.value.code or 0), printed.out, " ".join(printed.err.split())


@pytest.mark.parametrize(
    ("number", "form", "integer", "binary"),
    [
        ("2.71875", "10.5", 87, "0,0000000010,10111"),
        ("-0.499878", "2.13", -4095, "1,11,1000000000001"),
    ],
)
def test_fixedpoint(
    capsys: pytest.CaptureFixture[str], number: str, form: str, integer: int, binary: str
) -> None:
    code, out, _ = octavo(capsys, "explain", "fixedpoint", number, "--format", form)
    assert code == 0
    assert f"in binary  {binary}" in out
    _, out, _ = octavo(capsys, "explain", "fixedpoint", number, "--format", form, "--json")
    (said,) = json.loads(out)
    assert (said["integer"], said["binary"], said["value"]) == (integer, binary, float(number))
    assert abs(said["error"]) <= 2.0 ** -(int(form.split(".")[1]) + 1)


def test_tensor(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = octavo(capsys, "explain", "tensor", "-0.52", "0.3", "1.7")
    assert code == 0
    for part in ("offset", "max-abs", "memory", "time", "error"):
        assert part in out
    _, out, _ = octavo(capsys, "explain", "tensor", "-0.52,0.3,1.7", "--json")
    (said,) = json.loads(out)
    methods = {m["name"]: m for m in said["methods"]}
    assert methods["offset"]["scale"] == pytest.approx(0.0087059, rel=1e-5)
    assert methods["offset"]["zero_point"] == -68
    assert methods["offset"]["integers"] == [-128, -34, 127]
    assert methods["no offset"]["unclipped"] == [-60, 34, 195]
    assert methods["no offset"]["integers"] == [-60, 34, 127]
    assert methods["no offset"]["returns"] == pytest.approx([-0.522, 0.296, 1.106], abs=5e-4)
    assert methods["max-abs"]["integers"] == [-39, 22, 127]


def test_two_numbers_are_told_one_after_the_other(capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = octavo(capsys, "explain", "fixedpoint", "1.5", "-1.5", "--format", "3.4")
    assert out.count("S(3.4)") == 2


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        pytest.param(["tensr", "1"], 2, "mean tensor?", id="what"),
        pytest.param(["tensor", "one"], 2, "'one' is not numbers", id="no number"),
        pytest.param(["tensor", "--bit", "4", "1"], 2, "'--bit' is not numbers", id="no option"),
        pytest.param(["tensor"], 2, "NUMBER", id="nothing"),
        pytest.param(["fixedpoint", "1"], 2, "fixedpoint needs it", id="no format"),
        pytest.param(["tensor", "1", "--format", "2.5"], 2, "goes with fixedpoint", id="format of a tensor"),
        pytest.param(["fixedpoint", "1", "--format", "25"], 1, "'25' is not N.M", id="no point"),
        pytest.param(["fixedpoint", "nan", "--format", "2.5"], 1, "finite", id="nan"),
    ],
)
def test_wrong_usage(capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, says: str) -> None:
    stopped, out, err = octavo(capsys, "explain", *arguments)
    assert stopped == code
    assert says in err.replace("│ ", "")
    assert not out


# octavo check


def pixel_sum(path: Path, zero: int, bias: bool = False) -> None:
    """A network of one grid, whose zero-point may break TensorRT's rule."""
    h = onnx.helper
    nodes = [
        h.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], name="round"),
        h.make_node("DequantizeLinear", ["q", "s", "z"], ["d"]),
        h.make_node("ReduceSum", ["d"], ["y"]),
    ]
    graph = h.make_graph(
        nodes,
        "g",
        [h.make_tensor_value_info("x", 1, [1, 4])],
        [h.make_tensor_value_info("y", 1, [1, 1])],
        [h.make_tensor("s", 1, [], [0.1]), h.make_tensor("z", 3, [], [zero])],
    )
    path.write_bytes(h.make_model(graph, opset_imports=[h.make_opsetid("", 19)]).SerializeToString())


def test_check_prints_and_fails_on_errors(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    pixel_sum(path, zero=-3)
    code, out, _ = octavo(capsys, "check", path, "--target", "tensorrt")
    assert code == 1
    assert out.startswith(
        "net.onnx: 1 error, 0 warnings, 0 hints\n  error: zero-point\n    round: zero-point -3\n"
    )
    assert "symmetric" in out
    code, out, _ = octavo(capsys, "check", path, "--target", "openvino", "--json")
    assert (code, json.loads(out)) == (0, {"net.onnx": []})
    pixel_sum(path, zero=0)
    assert octavo(capsys, "check", path, "--target", "tensorrt")[0] == 0


def test_check_of_folders(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for name in ("a", "b"):
        pixel_sum(tmp_path / f"{name}.onnx", zero=0)
    assert list(verbs.check(tmp_path, "tensorrt")) == ["a.onnx", "b.onnx"]
    code, _, err = octavo(capsys, "check", tmp_path)
    assert (code, "Give --target: tensorrt, cpu" in err) == (1, True)
    info = {
        **{"format": 1, "family": "mtcnn", "variant": "mtcnn-relu", "precision": "int8", "target": "cpu"},
        **{"networks": ["a"], "preprocessing": {"color": "RGB", "offset": 128.0, "scale": 1 / 128}},
        "settings": {},
    }
    folder.write_info(tmp_path, info)
    assert list(verbs.check(tmp_path)) == ["a.onnx"]
    pixel_sum(tmp_path / "a.onnxruntime.onnx", zero=0)
    assert list(verbs.check(tmp_path)) == ["a.onnxruntime.onnx"]
    assert list(verbs.check(tmp_path, "tensorrt")) == ["a.onnx"]
    (tmp_path / "a.onnx").unlink()
    assert "octavo export writes them" in octavo(capsys, "check", tmp_path)[2]


def test_check_wants_a_known_target(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, _, err = octavo(capsys, "check", tmp_path / "net.onnx", "--target", "tensort")
    assert code == 2
    assert "tensorrt?" in err


def test_strict_fails_on_warnings(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    pixel_sum(path, zero=0)
    model = onnx.load(path)
    model.opset_import[0].version = 21
    path.write_bytes(model.SerializeToString())
    assert octavo(capsys, "check", path, "--target", "tensorrt")[0] == 0
    assert octavo(capsys, "check", path, "--target", "tensorrt", "--strict")[0] == 1


@pytest.mark.parametrize("name", ["check", "explain"])
def test_help_ends_with_two_examples(capsys: pytest.CaptureFixture[str], name: str) -> None:
    code, out, _ = octavo(capsys, name, "--help")
    assert code == 0
    assert out.rstrip().count(f"\n octavo {name} ") == 2


@pytest.mark.parametrize("name", [n for n in folder.names() if list(folder.find(n).glob("*.onnx"))])
def test_the_embedded_models_break_no_rule(name: str) -> None:
    target = folder.read_info(folder.find(name))["target"] or "cpu"
    found = verbs.check(name, target)
    assert found
    assert not [f for findings in found.values() for f in findings if f.level == "error"]
