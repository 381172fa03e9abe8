"""Octavo beside what a user would pick instead: how fast, how exact, how large, how soon?

    python benchmarks/peers.py                      all peers, on a quiet machine
    python benchmarks/peers.py --trial              one scene, a few images, rows into /tmp: does it work?

Each detector lives in an environment of its own that is made under --envs at first use (Octavo's too, from the last
commit), and runs in a process of its own (peer_worker.py) on the same pixels: facenet-pytorch, the mtcnn package on
TensorFlow, YuNet in OpenCV's FaceDetectorYN. One that can't be installed or fails has its error in its row.

    ms, p95      one image, in rounds in which every peer looks once, in turn; thresholds as each library has them
    times        facenet-pytorch's ms over this one's, in the same rounds
    faces        found in that image
    MB           highest memory of a fresh process after looking three times, beyond the bare interpreter
    cold s       from the start of a fresh process to its first result (median of three)
    cli s        of `octavo predict` on that image, from start to end (median of three)
    install MB   files in the environment's site-packages
    Crowd ...    AP on data/faces val by event: same min face, boxes down to a score of .02

The scenes: a 640x480 portrait (1 face), a 640x480 corner of a group (5), and a 1280x720 crowd of 240 tiles with a
face in each, all made of the photographs that ship with Octavo. YuNet has no min face: it sees the whole size.
-> results/peers.csv
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import common
import cv2
import numpy as np
import scenes

from octavo import images
from octavo.data.widerface import Entry, read
from octavo.evaluate import events, record
from octavo.outputs import Detections

WORKER = Path(__file__).with_name("peer_worker.py")
BASE = "facenet-pytorch"  # what "times" compares with
LOWEST = 0.02  # score down to which boxes count for AP: the same as in the other benchmarks
WARMUP, STARTS, PAUSE = 5, 3, 0.02  # rounds; fresh processes; s in which the last one's threads stop to spin
LEAST = 5  # rounds, however slow a peer is


class PeerError(RuntimeError):
    """A peer that can't be installed, or failed at what it was asked."""


@dataclass(frozen=True)
class Peer:
    """A detector (function of peer_worker.py) with its options, and what `pip install` is given, call by call."""

    name: str
    detector: str
    installs: tuple[tuple[str, ...], ...]
    options: dict[str, Any] = field(default_factory=dict)
    cli: tuple[str, ...] = ()  # words before the image of the command that "cli s" times
    note: str = ""


def peers(model: str, min_face: float, weights: Path) -> list[Peer]:
    def octavo(backend: str, extra: str) -> Peer:
        options = {"model": model, "backend": backend, "min_face": min_face}
        cli = ("octavo", "predict", model, "--backend", backend, "--min-face", str(min_face), "--json")
        return Peer(f"octavo {model} {backend}", "octavo", ((f"OCTAVO{extra}",),), options, cli)

    return [
        octavo("onnxruntime", ""),
        octavo("openvino", "[openvino]"),
        Peer(
            BASE,
            "facenet_pytorch",
            # Its own pins (torch < 2.3, torchvision) would bring CUDA; peer_worker.py stands in for torchvision.
            (
                ("--no-deps", "facenet-pytorch==2.6.0"),
                ("torch>=2.9,<2.14", "numpy<2", "pillow", "requests", "tqdm"),
            ),
            {"min_face": min_face},
            note="with torch 2.9 or newer for CPU, torchvision's NMS compiled from its source",
        ),
        Peer("mtcnn", "mtcnn", (("mtcnn==1.0.0", "tensorflow-cpu"),), {"min_face": min_face}),
        Peer(
            "yunet",
            "yunet",
            (("opencv-python-headless",),),
            {"weights": str(weights)},
            note="has no min face",
        ),
    ]


def main() -> None:
    options = arguments()
    file = options.out / "peers.csv"
    chosen = [
        peer
        for peer in peers(options.model, options.min_face, options.weights.resolve())
        if not options.peers or peer.detector in options.peers.split(",")
    ]
    pythons: dict[str, Path] = {}
    for peer in chosen:
        try:
            pythons[peer.name] = environment(peer, options.envs)
        except PeerError as error:
            print(f"{peer.name}: {error}", flush=True)
            write(file, peer, options, data="installation", error=str(error))
    ready = [peer for peer in chosen if peer.name in pythons]
    with tempfile.TemporaryDirectory() as place:
        for name, pixels in list(scenes.all_of_them().items())[: options.scenes]:
            path = Path(place) / f"{name}.npy"
            np.save(path, pixels)
            cv2.imwrite(str(path.with_suffix(".png")), pixels[:, :, ::-1])
            for threads in map(int, options.threads.split(",")):
                key = {"data": name, "threads": threads, "error": ""}
                if not options.again and all(common.there(file, model=p.name, **key) for p in ready):
                    print(f"{name} on {threads} threads: there already", flush=True)
                    continue
                for row in side_by_side(ready, pythons, path, threads, options):
                    size = f"{pixels.shape[1]}x{pixels.shape[0]}"
                    write(file, row.pop("peer"), options, data=name, threads=threads, size=size, **row)
        entries = read(options.data, "val")[:: options.every]
        for peer in ready:
            key = {"model": peer.name, "data": options.data.name, "split": "val", "error": ""}
            if options.again or not common.there(file, **key):
                found = accuracy(peer, pythons[peer.name], entries, Path(place) / "image.npy")
                write(file, peer, options, data=options.data.name, split="val", **found)


def arguments() -> argparse.Namespace:
    parser = common.parser(__doc__)
    parser.add_argument("--envs", type=Path, default=Path("~/.cache/octavo-peers").expanduser())
    parser.add_argument("--model", default="mtcnn-relu", help="Octavo's: an embedded name")
    parser.add_argument("--peers", default="", help="only these: octavo,facenet_pytorch,mtcnn,yunet")
    parser.add_argument("--weights", type=Path, default=Path("../shared/weights/yunet_n_320_320.onnx"))
    parser.add_argument("--data", type=Path, default=Path("../shared/data/faces"))
    parser.add_argument("--min-face", type=float, default=20)
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--repeats", type=int, default=30, help="rounds for each scene, at most")
    parser.add_argument("--seconds", type=float, default=100, help="after which the rounds of a scene end")
    parser.add_argument("--scenes", type=int, default=3, help="only the first ones")
    parser.add_argument("--every", type=int, default=1, help="AP on every so many-th image")
    parser.add_argument("--trial", action="store_true", help="a quick look whether all works")
    options = parser.parse_args()
    if options.trial:
        options.repeats, options.scenes, options.threads, options.every = 5, 1, "1", 50
        options.again = True
        options.out = Path(tempfile.gettempdir()) / "octavo-peers-trial"
    return options


COLUMNS = (
    *("version", "threads", "size", "min face", "ms", "p95", "times", "rounds", "faces", "MB", "cold s"),
    *("cli s", "install MB", "images", "failed", *common.EVENTS, "error", "note"),
)


def write(
    file: Path, peer: Peer, options: argparse.Namespace, data: str, split: str = "", **metrics: Any
) -> None:
    known = {"min face": peer.options.get("min_face"), "note": peer.note, "error": "", **metrics}
    if not metrics.get("error"):
        known["install MB"] = size_of(options.envs / folder_of(peer))
    row = record.append(
        file,
        {name: known.get(name) for name in COLUMNS},
        model=peer.name,
        data=data,
        split=split,
        command=common.command(),
    )
    shown = (
        "model",
        "data",
        "threads",
        "ms",
        "times",
        "faces",
        "MB",
        "cold s",
        "cli s",
        *common.EVENTS,
        "error",
    )
    print(*(f"{name} {row[name]}" for name in shown if row[name]), flush=True)


# The environments


def folder_of(peer: Peer) -> str:
    return peer.name.replace(" ", "-")


def environment(peer: Peer, envs: Path) -> Path:
    """The Python of the peer's environment, made where it is missing or was made of other things."""
    folder = envs / folder_of(peer)
    python, stamp = folder / "bin" / "python", folder / "made-of.json"
    ours = any("OCTAVO" in word for words in peer.installs for word in words)
    made_of = json.dumps([peer.installs, git("rev-parse", "HEAD") if ours else "", sys.version])
    if stamp.is_file() and stamp.read_text() == made_of:
        return python
    print(f"{peer.name}: installing into {folder} ...", flush=True)
    shutil.rmtree(folder, ignore_errors=True)
    run([sys.executable, "-m", "venv", "--without-pip", str(folder)])
    with tempfile.TemporaryDirectory() as source:
        if ours:  # the last commit, so that no build folder is left in the checkout
            archive = Path(source) / "octavo.tar"
            git("archive", "HEAD", "-o", str(archive))
            shutil.unpack_archive(archive, source, filter="data")
        for words in peer.installs:
            given = [word.replace("OCTAVO", source) for word in words]
            run([sys.executable, "-m", "pip", "--python", str(python), "install", "-q", *given])
    stamp.write_text(made_of)
    return python


def git(*words: str) -> str:
    return subprocess.run(
        ["git", "-C", str(common.ROOT), *words], capture_output=True, text=True, check=True
    ).stdout.strip()


def run(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if "ERROR" in line or "Error" in line]
        raise PeerError((said or done.stderr.splitlines() or ["failed without a word"])[-1].strip())


def size_of(folder: Path) -> float:
    """MB of the files in its site-packages."""
    files = (path for packages in folder.glob("lib/*/site-packages") for path in packages.rglob("*"))
    return sum(path.stat().st_size for path in files if path.is_file() and not path.is_symlink()) / 1e6


# The processes


@dataclass
class Worker:
    """A peer's process: ask it something, get its answer or a PeerError."""

    process: subprocess.Popen[str]
    errors: IO[str]

    def ask(self, do: str, **what: Any) -> dict[str, Any]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            print(json.dumps({"do": do, **what}), file=self.process.stdin, flush=True)
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            self.errors.seek(0)
            raise PeerError(f"died at {do}: {(self.errors.read().strip().splitlines() or [''])[-1]}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise PeerError(answer["error"])
        return answer

    def find(self, image: str, lowest: float | None = None) -> tuple[float, np.ndarray]:
        """Seconds, and boxes (n, 5): x1, y1, x2, y2, score."""
        answer = self.ask("find", name=image, lowest=lowest)
        return answer["seconds"], np.array(answer["boxes"], np.float64).reshape(-1, 5)


@contextmanager
def worker(peer: Peer, python: Path, threads: int) -> Iterator[Worker]:
    """The process, not opened yet."""
    left_out = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
    env = {name: value for name, value in os.environ.items() if name not in left_out}
    env["OMP_NUM_THREADS"] = str(threads)
    command = [str(python), str(WORKER), peer.detector, str(threads), json.dumps(peer.options)]
    with tempfile.TemporaryFile("w+") as errors:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": errors}
        process = subprocess.Popen(command, text=True, env=env, **pipes)  # type: ignore[call-overload]
        try:
            yield Worker(process, errors)
        finally:
            process.kill()
            process.communicate()


# The measurements


def side_by_side(
    ready: Sequence[Peer], pythons: Mapping[str, Path], scene: Path, threads: int, options: argparse.Namespace
) -> Iterator[dict[str, Any]]:
    """A row for each peer on this scene: latency in common rounds, then fresh processes."""
    rows: dict[str, dict[str, Any]] = {peer.name: {"peer": peer} for peer in ready}
    with ExitStack() as stack:
        workers: dict[str, Worker] = {}
        for peer in ready:
            with failing_into(rows[peer.name]):
                started = stack.enter_context(worker(peer, pythons[peer.name], threads))
                rows[peer.name]["version"] = started.ask("open")["version"]
                started.ask("load", name=scene.stem, path=str(scene))
                workers[peer.name] = started
        seconds: dict[str, list[float]] = {name: [] for name in workers}
        rounds(workers, rows, scene.stem, WARMUP, options.seconds / 4, seconds)
        for name, one in workers.items():
            seconds[name].clear()
            with failing_into(rows[name]):
                one.ask("settle")
                one.find(scene.stem)
        rounds(workers, rows, scene.stem, options.repeats, options.seconds, seconds)
    workers = {name: one for name, one in workers.items() if "error" not in rows[name]}
    base = np.median(seconds[BASE]) if BASE in workers else None
    for peer in ready:
        row = rows[peer.name]
        if peer.name in workers:
            took = np.array(seconds[peer.name])
            row |= {"ms": np.median(took) * 1e3, "p95": np.quantile(took, 0.95) * 1e3, "rounds": len(took)}
            row["times"] = None if base is None else base / np.median(took)
            with failing_into(row):
                row |= fresh(peer, pythons[peer.name], scene, threads)
        yield row


def rounds(
    workers: Mapping[str, Worker],
    rows: Mapping[str, dict[str, Any]],
    scene: str,
    most: int,
    limit: float,
    seconds: Mapping[str, list[float]],
) -> None:
    """Every peer looks once a round, each round beginning with the next one, until `limit` seconds have passed."""
    began = time.perf_counter()
    for turn in range(most):
        names = [name for name in workers if "error" not in rows[name]]
        for name in [*names[turn % max(1, len(names)) :], *names[: turn % max(1, len(names))]]:
            with failing_into(rows[name]):
                took, boxes = workers[name].find(scene)
                seconds[name].append(took)
                rows[name]["faces"] = len(boxes)
            time.sleep(PAUSE)
        if turn + 1 >= LEAST and time.perf_counter() - began > limit:
            return


def fresh(peer: Peer, python: Path, scene: Path, threads: int) -> dict[str, float | None]:
    """Cold start and memory; of the first of the processes nothing is kept, it fills the disk's cache."""
    cold, cli, memory = [], [], 0.0
    for turn in range(1 + STARTS):
        started = time.perf_counter()
        with worker(peer, python, threads) as one:
            bare = one.ask("memory")["MB"]
            one.ask("open")
            one.ask("load", name=scene.stem, path=str(scene))
            one.find(scene.stem)
            cold.append(time.perf_counter() - started)
            if turn == STARTS:
                one.find(scene.stem)
                one.find(scene.stem)
                memory = one.ask("memory")["MB"] - bare
        if peer.cli:
            command = [str(python.parent / peer.cli[0]), *peer.cli[1:], str(scene.with_suffix(".png"))]
            started = time.perf_counter()
            run([*command, "--threads", str(threads)])
            cli.append(time.perf_counter() - started)
    return {
        "cold s": float(np.median(cold[1:])),
        "MB": memory,
        "cli s": float(np.median(cli[1:])) if cli else None,
    }


def accuracy(peer: Peer, python: Path, entries: Sequence[Entry], place: Path) -> dict[str, Any]:
    """AP by event; an image at which the peer fails counts as one without faces found."""
    found, failed = {}, 0
    row: dict[str, Any] = {"images": len(entries), "threads": 2}
    with failing_into(row), worker(peer, python, threads=2) as one:
        row["version"] = one.ask("open")["version"]
        for entry in entries:
            np.save(place, images.read(entry.path))
            one.ask("load", name="image", path=str(place))
            try:
                boxes = one.find("image", LOWEST)[1]
            except PeerError as error:
                if one.process.poll() is not None:  # not this image only
                    raise
                print(f"{peer.name}: {entry.name}: {error}", flush=True)
                boxes, failed = np.zeros((0, 5)), failed + 1
            found[entry.name] = detections(boxes)
        ap = events.by_event(entries, found)
        row |= {common.plain(event): value for event, value in ap.items()} | {"failed": failed}
    return row


def detections(boxes: np.ndarray) -> Detections:
    corners = np.hstack(
        [boxes[:, :2], np.maximum(boxes[:, :2], boxes[:, 2:4])]
    )  # rounding can turn a thin box
    return Detections(corners, boxes[:, 4], np.zeros(len(boxes), np.int64))


@contextmanager
def failing_into(row: dict[str, Any]) -> Iterator[None]:
    """A peer's failure is its row's error, and the others go on."""
    try:
        yield
    except PeerError as error:
        row["error"] = str(error)
        print(f"failed: {error}", flush=True)


if __name__ == "__main__":
    main()
