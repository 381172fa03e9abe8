"""What MTCNN learns from: windows cut out of photographs, labelled by their overlap with the faces.

    IoU >= .65  positive     .4 to .65  part of a face     < .3  negative     (the rest teaches nothing)

P-Net sees windows thrown around faces and over the background. R-Net sees besides what P-Net takes for a face,
O-Net what R-Net takes for one: hard examples, mined with the networks just trained. Windows are cut once,
resized to the network's input and kept on disk as one flat uint8 file (12 px: 432 bytes a window, 24 px: 1.7 kB,
48 px: 6.9 kB), which training maps into memory; mirroring and colours are drawn anew for every batch.

A pool is made again only when the data, the sampling numbers or the previous networks have changed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from copy import copy
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from octavo import images
from octavo.boxes import area, crop_resize, iom, iou, square
from octavo.data.loader import in_order
from octavo.data.pixels import normalise, relight
from octavo.data.split import fingerprint_of, is_held_out
from octavo.data.widerface import MIRRORED, Entry, read
from octavo.folder import staged

from .loss import LANDMARK, NEGATIVE, PART, POSITIVE
from .predict import MEASURING, Network, Settings, look, propose, pyramid, refine, to_planes
from .recipe import Recipe, Sampling, Stage

SMALLEST = 8  # faces with a longer side below this many pixels teach nothing
Progress = Callable[[int, int], None]  # done, of how many


@dataclass(frozen=True)
class Windows:
    """Labelled square windows of one image: xyxy (n, 4), kind (n,), box (n, 4) and landmarks (n, 10) targets."""

    xyxy: np.ndarray
    kind: np.ndarray
    box: np.ndarray
    landmarks: np.ndarray


def label(windows: np.ndarray, entry: Entry, sampling: Sampling) -> Windows:
    """Give each window (n, 4) of an image its kind and targets; windows between two kinds are left out."""
    valid = ~entry.invalid
    faces, points = entry.xyxy[valid], entry.keypoints[valid]
    kind = np.full(len(windows), NEGATIVE, np.int64)
    best = np.zeros(len(windows), np.int64)
    usable = np.ones(len(windows), bool)
    if len(faces):
        overlap = iou(windows, faces) / reachable(faces)
        best, top = overlap.argmax(1), overlap.max(1)
        kind[top >= sampling.part_iou] = PART
        kind[top >= sampling.positive_iou] = POSITIVE
        usable = (top < sampling.negative_iou) | (top >= sampling.part_iou)
    if (~valid).any():
        near_unsure = iom(windows, entry.xyxy[~valid]).max(1) > sampling.invalid_overlap
        usable &= (kind != NEGATIVE) | ~near_unsure
    windows, kind, best = windows[usable], kind[usable], best[usable]
    box = np.zeros((len(windows), 4), np.float32)
    landmarks = np.full((len(windows), 10), np.nan, np.float32)
    if len(faces):
        side = windows[:, 2:] - windows[:, :2]  # rounding may leave a square one pixel longer than wide
        box = ((faces[best] - windows) / np.tile(side, 2)).astype(np.float32)
        relative = (points[best] - windows[:, None, :2]) / side[:, None]  # (n, 5, 2)
        landmarks = relative.transpose(0, 2, 1).reshape(-1, 10).astype(np.float32)
        box[kind == NEGATIVE] = 0
        landmarks[kind == NEGATIVE] = np.nan
    return Windows(windows.astype(np.float32), kind, box, landmarks)


def reachable(faces: np.ndarray) -> np.ndarray:
    """What a square window can reach of a face (n, 4), as a share of what it can of a 3:4 face, at most 1.

    A square of side a about a box of sides 1 and r overlaps it most, sqrt(r) / (2 - sqrt(r)), at a = sqrt(r).
    For 3:4, a usual face, that is .76; a face cut by the border, at 1:2, stops at .55 and would never be a
    positive at .65. IoU is divided by this share before it is held against the limits.
    """
    sides = faces[:, 2:] - faces[:, :2]
    root = np.sqrt(sides.min(1) / sides.max(1))
    usual = np.sqrt(0.75)
    return np.minimum(1, root / (2 - root) * (2 - usual) / usual)


def throw(entry: Entry, sampling: Sampling, rng: np.random.Generator, width: int, height: int) -> np.ndarray:
    """Square windows (n, 4) in whole pixels: around each face, inside and about it, and anywhere."""
    faces = entry.xyxy[~entry.invalid]
    faces = faces[(faces[:, 2:] - faces[:, :2]).max(1) >= SMALLEST] if len(faces) else faces
    repeat = sampling.repeat.get(entry.event, 1)
    made = []
    if len(faces):
        # Sides and shifts in units of the face: tight for positives, loose for parts, far off for the
        # negatives that a detector fires on: an eye and a cheek, a head with its shoulders.
        for count, small, large, shift in (
            (sampling.positives * repeat, 0.85, 1.3, 0.17),
            (sampling.parts * repeat, 0.7, 1.6, 0.45),
            (sampling.parts * repeat // 2, 0.3, 0.7, 0.6),
            (sampling.parts * repeat // 4, 1.6, 2.8, 0.9),
        ):
            made.append(around(np.repeat(faces, count, axis=0), small, large, shift, rng))
    count = sampling.negatives * repeat
    if min(width, height) > 12:
        side = np.exp(rng.uniform(np.log(12), np.log(min(width, height)), count))[:, None]
        corner = rng.uniform(0, 1, (count, 2)) * (np.array([width, height]) - side)
        made.append(np.concatenate([corner, corner + side], axis=1))
    return np.rint(np.concatenate(made)) if made else np.empty((0, 4))


def around(
    faces: np.ndarray, small: float, large: float, shift: float, rng: np.random.Generator
) -> np.ndarray:
    """One window (n, 4) for each face (n, 4): side and centre drawn in units of the face's mean side."""
    unit = np.sqrt(area(faces))[:, None]  # geometric mean: the side of the square that overlaps it most
    side = unit * rng.uniform(small, large, (len(faces), 1))
    centre = (faces[:, :2] + faces[:, 2:]) / 2 + unit * rng.uniform(-shift, shift, (len(faces), 2))
    return np.concatenate([centre - side / 2, centre + side / 2], axis=1)


def mine(
    image: np.ndarray,
    entry: Entry,
    run: Mapping[str, Network],
    settings: Settings,
    sampling: Sampling,
    rng: np.random.Generator,
) -> np.ndarray:
    """What the networks so far take for faces: windows (n, 4) as the next network will see them."""
    boxes = propose(image, run["pnet"], settings)
    if "rnet" in run:
        boxes = refine(image, boxes, run["rnet"], settings)
    windows = np.rint(square(boxes))
    limit = sampling.mined * sampling.repeat.get(entry.event, 1)
    if len(windows) > limit:  # half of them the surest, half from all over the list
        rest = limit // 2 + rng.permutation(len(windows) - limit // 2)[: limit - limit // 2]
        windows = windows[np.concatenate([np.arange(limit // 2), rest])]
    return windows


def cut(image: np.ndarray, windows: np.ndarray, stage: Stage, rng: np.random.Generator) -> np.ndarray:
    """Pixels (n, size, size, 3) of windows; a share of them through a smaller size, as a small face would look."""
    pixels = crop_resize(image, windows, stage.size)
    sides = windows[:, 2] - windows[:, 0]
    blurred = np.flatnonzero((rng.random(len(windows)) < stage.sampling.blur) & (sides > 12))
    for i in blurred:
        small = int(rng.integers(10, max(11, min(stage.size, int(sides[i])))))
        tiny = crop_resize(image, windows[i : i + 1], small)
        pixels[i] = crop_resize(tiny[0], np.array([[0, 0, small, small]]), stage.size)[0]
    return pixels


class Pool:
    """Windows on disk, drawn in balanced batches.

    images (n, size, size, 3) uint8 stay on disk (mapped); kind, box, landmarks and the number of the entry they
    were cut from are in memory.
    """

    def __init__(self, folder: Path, stage: Stage) -> None:
        with np.load(folder / "labels.npz") as labels:
            self.kind, self.box, self.landmarks = labels["kind"], labels["box"], labels["landmarks"]
            self.entry = labels["entry"]
        shape = (len(self.kind), stage.size, stage.size, 3)
        self.images = np.memmap(folder / "images.bin", np.uint8, "r", shape=shape)
        self.stage = stage
        known = ~np.isnan(self.landmarks).any(1)
        self.members = {
            POSITIVE: np.flatnonzero(self.kind == POSITIVE),
            PART: np.flatnonzero(self.kind == PART),
            LANDMARK: np.flatnonzero((self.kind == POSITIVE) & known),
            NEGATIVE: np.flatnonzero(self.kind == NEGATIVE),
        }

    def __len__(self) -> int:
        return len(self.kind)

    def draw(self, seed: tuple[int, ...], count: int) -> tuple[np.ndarray, np.ndarray]:
        """Indices (count,) and kinds (count,) of a batch in the recipe's ratio, the same for the same seed."""
        rng = np.random.default_rng(seed)
        shares = {
            kind: share
            for kind, share in zip(self.members, self.stage.sampling.ratio, strict=True)
            if share and len(self.members[kind])
        }
        total = sum(shares.values())
        indices, kinds = [], []
        for kind, share in shares.items():
            number = max(1, count * share // total)
            indices.append(rng.choice(self.members[kind], number))
            kinds.append(np.full(number, kind))
        return np.concatenate(indices), np.concatenate(kinds)

    def targets(self, indices: np.ndarray, kind: np.ndarray) -> dict[str, Tensor]:
        return {
            "kind": torch.from_numpy(kind),
            "box": torch.from_numpy(self.box[indices]),
            "landmarks": torch.from_numpy(self.landmarks[indices]),
        }

    def pixels(self, indices: np.ndarray) -> Tensor:
        """(n, 3, size, size) uint8."""
        order = np.argsort(indices)  # the disk is read forwards
        gathered = np.empty((len(indices), *self.images.shape[1:]), np.uint8)
        gathered[order] = self.images[indices[order]]
        return torch.from_numpy(gathered).permute(0, 3, 1, 2)


@dataclass(frozen=True)
class TrainSet:
    """One network's batches, and the held-out windows that tell how it is doing."""

    pool: Pool
    held_out: Pool

    def batch(self, seed: tuple[int, ...], count: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Inputs (n, 3, size, size) float32 and targets; the same for the same seed, so training resumes exactly."""
        indices, kind = self.pool.draw(seed, count)
        generator = torch.Generator().manual_seed(int(np.random.default_rng(seed).integers(2**62)))
        return augment(self.pool.pixels(indices), self.pool.targets(indices, kind), generator)

    @torch.inference_mode()
    def watch(self, module: nn.Module) -> dict[str, float]:
        """On held-out windows: the share of positives found when 1 % of the negatives pass, and mean box IoU."""
        indices, kind = self.held_out.draw((0,), 6000)
        device = next(module.parameters()).device
        scores, boxes = [], []
        for start in range(0, len(indices), 1000):
            pixels = normalise(self.held_out.pixels(indices[start : start + 1000]).to(device))
            outputs = module(pixels)
            face = outputs[0].flatten(1)
            scores.append((face[:, 1] - face[:, 0]).float().cpu())
            boxes.append(outputs[1].flatten(1).float().cpu())
        score = torch.cat(scores).numpy()
        positive, negative = score[kind == POSITIVE], score[kind == NEGATIVE]
        judged = (kind == POSITIVE) | (kind == PART)
        unit = np.array([0, 0, 1, 1], np.float32)
        found, true = torch.cat(boxes).numpy()[judged] + unit, self.held_out.box[indices[judged]] + unit
        overlaps = [iou(f[None], t[None])[0, 0] for f, t in zip(found, true, strict=True)]
        return {
            "recall_at_1pct": float((positive > np.quantile(negative, 0.99)).mean())
            if len(negative)
            else 0.0,
            "recall_at_0.1pct": float((positive > np.quantile(negative, 0.999)).mean())
            if len(negative)
            else 0.0,
            "box_iou": float(np.mean(overlaps)) if overlaps else 0.0,
        }


def augment(
    pixels: Tensor, targets: dict[str, Tensor], generator: torch.Generator
) -> tuple[Tensor, dict[str, Tensor]]:
    """Mirror half of the windows, change brightness, contrast and colour of all, take the colour from some."""
    x = relight(normalise(pixels), generator)
    mirrored = torch.rand(len(x), generator=generator) < 0.5
    x[mirrored] = x[mirrored].flip(3)
    box, landmarks = targets["box"].clone(), targets["landmarks"].clone()
    box[mirrored] = box[mirrored][:, [2, 1, 0, 3]] * torch.tensor([-1.0, 1, -1, 1])
    across, down = landmarks[mirrored].split(5, dim=1)
    landmarks[mirrored] = torch.cat([1 - across[:, MIRRORED], down[:, MIRRORED]], dim=1)
    return x, {"kind": targets["kind"], "box": box, "landmarks": landmarks}


def train_set(
    name: str,
    recipe: Recipe,
    data: Path,
    samples: Path,
    run: Mapping[str, Network],
    fingerprint: str,
    progress: Progress | None = None,
) -> TrainSet:
    """The windows for network `name`, from a data set in WIDER FACE layout.

    run holds the networks before this one, fingerprint says which weights they have (it is part of the pool's
    name, so that windows mined by older weights are not used again). Pools are kept in the folder `samples`.
    """
    stage = recipe.stages[name]
    entries = read(data, "train")
    kept_out = [is_held_out(entry, stage.sampling.held_out) for entry in entries]
    key = json.dumps(
        [asdict(stage.sampling), stage.size, recipe.mining_min_face, fingerprint, fingerprint_of(entries)]
    )
    folder = samples / f"{name}-{hashlib.sha256(key.encode()).hexdigest()[:12]}"
    if not (folder / "labels.npz").is_file():
        settings = Settings(min_face=recipe.mining_min_face, thresholds=(*stage.sampling.thresholds, 0))
        with staged(folder) as temporary:
            make_pool(entries, stage, run, settings, temporary, progress)
    pool = Pool(folder, stage)
    held = np.array(kept_out)[pool.entry]
    return TrainSet(subset(pool, ~held), subset(pool, held))


def subset(pool: Pool, mask: np.ndarray) -> Pool:
    """The same windows, of which only those of the mask (n,) are drawn."""
    chosen = copy(pool)
    chosen.members = {kind: members[mask[members]] for kind, members in pool.members.items()}
    return chosen


def make_pool(
    entries: list[Entry],
    stage: Stage,
    run: Mapping[str, Network],
    settings: Settings,
    folder: Path,
    progress: Progress | None,
) -> None:
    """Cut and label the windows of all images into a folder. Memory: the images in flight and the labels."""

    def work(number: int) -> tuple[np.ndarray, Windows]:
        entry = entries[number]
        rng = np.random.default_rng([number, stage.size])
        image = images.read(entry.path)
        windows = throw(entry, stage.sampling, rng, image.shape[1], image.shape[0])
        if stage.sampling.mined:
            windows = np.concatenate([windows, mine(image, entry, run, settings, stage.sampling, rng)])
        labelled = label(windows, entry, stage.sampling)
        return cut(image, labelled.xyxy, stage, rng), labelled

    labels: dict[str, list[np.ndarray]] = {"kind": [], "box": [], "landmarks": [], "entry": []}
    with open(folder / "images.bin", "wb") as file:
        for number, (pixels, windows) in enumerate(in_order(work, range(len(entries)))):
            file.write(pixels.tobytes())
            labels["kind"].append(windows.kind)
            labels["box"].append(windows.box)
            labels["landmarks"].append(windows.landmarks)
            labels["entry"].append(np.full(len(windows.kind), number))
            if progress:
                progress(number + 1, len(entries))
    joined: dict[str, Any] = {name: np.concatenate(parts) for name, parts in labels.items()}
    np.savez(folder / "labels.npz", **joined)


def calibration_batches(
    name: str, data: Path, run: Mapping[str, Network], settings: Settings, count: int, seed: int = 0
) -> Iterator[np.ndarray]:
    """What network `name` meets on `count` training images: (n, 3, h, w) uint8 batches.

    P-Net gets whole pyramid levels, R- and O-Net the windows that the networks before them (in `run`) let pass,
    by the settings that AP is measured with, or lower thresholds: ranges must hold for doubtful windows too.
    """
    thresholds = tuple(map(min, settings.thresholds, MEASURING["thresholds"]))
    settings = replace(settings, **MEASURING | {"thresholds": thresholds})
    entries = read(data, "train")
    chosen = np.random.default_rng(seed).permutation(len(entries))[:count]
    for number in chosen.tolist():
        image = images.read(entries[number].path)
        seen: list[np.ndarray] = []

        def record(batch: np.ndarray, seen: list[np.ndarray] = seen) -> tuple[np.ndarray, ...]:
            seen.append(batch)
            return tuple(np.zeros((len(batch), width), np.float32) for width in (2, 4, 10))

        if name == "pnet":
            seen = [to_planes(level) for level, _ in pyramid(image, settings)]
        else:
            boxes = propose(image, run["pnet"], settings)
            if name == "onet":
                boxes = refine(image, boxes, run["rnet"], settings)
            look(image, np.rint(square(boxes)), record, {"rnet": 24, "onet": 48}[name], (2, 4, 10))
        yield from seen
