"""What YOLOv5 learns from: square pictures put together of four photographs, and the objects in them.

    four photographs, each with its longer side of the picture's size
          -> around a point of a grey canvas twice as large (mosaic: Bochkovskiy et al. 2020, arXiv 2004.10934)
          -> a window of it at a drawn scale -> mirrored or not -> other hue, saturation and brightness

Photographs are decoded once (octavo.data.pictures); a batch depends on its seed only, so that training resumes exactly.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from octavo import images
from octavo.boxes import area
from octavo.data.coco import Entry, read
from octavo.data.pictures import Pictures, keep
from octavo.data.split import fingerprint_of, is_held_out
from octavo.evaluate import objects

from .predict import GREY, MEASURING, Network, Settings, letterbox, predict
from .recipe import Recipe, Sampling, Stage

Progress = Callable[[int, int], None]  # done, of how many
# An object that a window cuts is kept where so much of it is left, pixels of each side and share of its area.
LEAST_SIDE, LEAST_SHARE = 2.0, 0.1


@dataclass(frozen=True)
class View:
    """A square picture (size, size, 3) uint8, and the objects in it, in its pixels."""

    pixels: np.ndarray
    xyxy: np.ndarray  # (n, 4) float32
    class_id: np.ndarray  # (n,)


def mosaic(views: list[View], size: int, rng: np.random.Generator) -> View:
    """Four photographs around a point of a canvas of twice the size, each with a corner at it."""
    canvas = np.full((2 * size, 2 * size, 3), GREY, np.uint8)
    x, y = (int(value) for value in rng.uniform(0.5, 1.5, 2) * size)
    boxes = []
    for place, view in enumerate(views):
        height, width = view.pixels.shape[:2]
        left, top = x - width * (place % 2 == 0), y - height * (place < 2)
        x1, y1, x2, y2 = max(left, 0), max(top, 0), min(left + width, 2 * size), min(top + height, 2 * size)
        canvas[y1:y2, x1:x2] = view.pixels[y1 - top : y2 - top, x1 - left : x2 - left]
        boxes.append(view.xyxy + np.array([left, top, left, top], np.float32))
    return View(canvas, np.concatenate(boxes), np.concatenate([view.class_id for view in views]))


def window(view: View, size: int, sampling: Sampling, rng: np.random.Generator) -> View:
    """A picture of this size about the middle of another one, scaled and shifted at random."""
    scale = rng.uniform(*sampling.zoom)
    middle = np.array(view.pixels.shape[1::-1]) / 2
    shift = (0.5 + rng.uniform(-sampling.shift, sampling.shift, 2)) * size - middle * scale
    matrix = np.array([[scale, 0, shift[0]], [0, scale, shift[1]]])
    grey = (GREY, GREY, GREY)
    pixels = cv2.warpAffine(view.pixels, matrix, (size, size), borderValue=grey)
    whole = view.xyxy * scale + np.tile(shift, 2)
    inner = np.clip(whole, 0, size)
    seen = ((inner[:, 2:] - inner[:, :2]) > LEAST_SIDE).all(1) & (area(inner) > LEAST_SHARE * area(whole))
    return View(pixels, inner[seen].astype(np.float32), view.class_id[seen])


def mirrored(view: View) -> View:
    width = view.pixels.shape[1]
    boxes = view.xyxy[:, [2, 1, 0, 3]] * np.array([-1, 1, -1, 1], np.float32)
    return View(view.pixels[:, ::-1], boxes + np.array([width, 0, width, 0], np.float32), view.class_id)


def recoloured(pixels: np.ndarray, most: tuple[float, float, float], rng: np.random.Generator) -> np.ndarray:
    """Hue, saturation and value times a factor of 1 - most .. 1 + most each."""
    hue, saturation, value = 1 + rng.uniform(-1, 1, 3) * most
    levels = np.arange(256)
    tables = (levels * hue % 180, np.clip(levels * saturation, 0, 255), np.clip(levels * value, 0, 255))
    channels = cv2.split(cv2.cvtColor(np.ascontiguousarray(pixels), cv2.COLOR_RGB2HSV))
    changed = [cv2.LUT(c, t.astype(np.uint8)) for c, t in zip(channels, tables, strict=True)]
    return cv2.cvtColor(cv2.merge(changed), cv2.COLOR_HSV2RGB)


@dataclass(frozen=True)
class TrainSet:
    """The batches of the detector, and the held-out photographs that tell how it is doing."""

    entries: list[Entry]
    pictures: Pictures
    stage: Stage
    learned: np.ndarray  # numbers of the entries that are learned from
    held_out: np.ndarray

    def photograph(self, number: int) -> View:
        """One, with its longer side of the pictures' size; crowds are no objects to learn."""
        entry, pixels = self.entries[number], self.pictures[number]
        scale = self.stage.sampling.size / max(pixels.shape[:2])
        width, height = (max(1, round(side * scale)) for side in pixels.shape[1::-1])
        if (width, height) != pixels.shape[1::-1]:
            how = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
            pixels = cv2.resize(pixels, (width, height), interpolation=how)
        boxes = entry.xyxy[~entry.crowd] * np.tile(np.array([width, height]) / entry.size, 2)
        return View(pixels, boxes.astype(np.float32), entry.class_id[~entry.crowd])

    def view(self, rng: np.random.Generator) -> View:
        sampling = self.stage.sampling
        if rng.random() < sampling.mosaic:
            four = [self.photograph(int(number)) for number in rng.choice(self.learned, 4)]
            picture = mosaic(four, sampling.size, rng)
        else:
            picture = self.photograph(int(rng.choice(self.learned)))
        picture = window(picture, sampling.size, sampling, rng)
        if rng.random() < 0.5:
            picture = mirrored(picture)
        return View(recoloured(picture.pixels, sampling.colour, rng), picture.xyxy, picture.class_id)

    def batch(self, seed: tuple[int, ...], count: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Inputs (n, 3, size, size) float32 and targets (see loss.loss); the same for the same seed."""
        rng = np.random.default_rng(seed)
        views = [self.view(rng) for _ in range(count)]
        rows = []
        for number, view in enumerate(views):
            centre, extent = (view.xyxy[:, :2] + view.xyxy[:, 2:]) / 2, view.xyxy[:, 2:] - view.xyxy[:, :2]
            label = np.stack([np.full(len(view.class_id), number), view.class_id], 1)
            rows.append(np.concatenate([label, centre, extent], 1, dtype=np.float32))
        pixels = torch.from_numpy(np.stack([view.pixels for view in views])).permute(0, 3, 1, 2)
        return normalised(pixels), {"objects": torch.from_numpy(np.concatenate(rows))}

    @torch.inference_mode()
    def watch(self, module: nn.Module) -> dict[str, float]:
        """AP of the held-out photographs, as `octavo evaluate` measures it."""
        entries = [self.entries[i] for i in self.held_out]
        if not objects.count(entries):
            return {}
        device = next(module.parameters()).device

        def detector(pixels: np.ndarray) -> tuple[np.ndarray, ...]:
            outputs = module(normalised(torch.from_numpy(pixels).to(device)))
            return tuple(output.float().cpu().numpy() for output in outputs)

        settings = Settings.of({}, **MEASURING)
        run = {"detector": detector}
        found = {entry.name: predict(images.read(entry.path), run, settings) for entry in entries}
        return {"ap": objects.measure(entries, found)["ap"]["all"]}


def normalised(pixels: Tensor) -> Tensor:
    """uint8 -> float32 / 255."""
    return pixels.float() / 255


def train_set(
    name: str,
    recipe: Recipe,
    data: Path,
    samples: Path,
    run: Mapping[str, Network],
    fingerprint: str,
    progress: Progress | None = None,
) -> TrainSet:
    """The photographs of a data set in COCO's layout, kept decoded in the folder `samples`.

    run and fingerprint, the networks before this one, are not looked at: there are none.
    """
    stage = recipe.stages[name]
    entries = read(data, "train")
    key = json.dumps([stage.sampling.size, fingerprint_of(entries)])
    folder = samples / f"pictures-{hashlib.sha256(key.encode()).hexdigest()[:12]}"
    pictures = keep([entry.path for entry in entries], stage.sampling.size, folder, progress)
    held_out = np.array([is_held_out(entry, stage.sampling.held_out) for entry in entries])
    return TrainSet(entries, pictures, stage, np.flatnonzero(~held_out), np.flatnonzero(held_out))


def calibration_batches(
    name: str, data: Path, run: Mapping[str, Network], settings: Settings, count: int, seed: int = 0
) -> Iterator[np.ndarray]:
    """What the detector is given of `count` training images: (1, 3, h, w) uint8 each."""
    entries = read(data, "train")
    for number in np.random.default_rng(seed).permutation(len(entries))[:count].tolist():
        yield letterbox(images.read(entries[number].path), settings.long_side).pixels
