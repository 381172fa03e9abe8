"""What slim and RFB learn from: square windows of photographs, with what each prior has to say of them.

    photograph -> a window about one of its faces, at a drawn zoom -> mirrored or not -> other light
               -> a frame of MEAN (predict.framed) -> the targets of `loss.match`

What a window leaves the photograph by is filled with MEAN. Photographs are decoded once (octavo.data.pictures); a
batch depends on its seed only, so that training resumes exactly.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from octavo import images
from octavo.data.pictures import Pictures, keep
from octavo.data.pixels import normalise, relight
from octavo.data.split import fingerprint_of, is_held_out
from octavo.data.widerface import MIRRORED, Entry, read
from octavo.evaluate.events import by_event
from octavo.outputs import Detections

from .loss import Targets, match
from .predict import MEAN, MEASURING, Network, Settings, framed, predict, priors, resized
from .recipe import Recipe, Sampling, Stage

Progress = Callable[[int, int], None]  # done, of how many


@dataclass(frozen=True)
class View:
    """A square window of a photograph, scaled to (size, size, 3) uint8, and what is in it, in its pixels."""

    pixels: np.ndarray
    faces: np.ndarray  # (n, 4)
    points: np.ndarray  # (n, 5, 2), NaN where unknown
    unsure: np.ndarray  # (m, 4)


def look(image: np.ndarray, entry: Entry, size: int, sampling: Sampling, rng: np.random.Generator) -> View:
    """A window at a random zoom that holds the centre of a random face, half of the time its mirror image.

    entry's boxes are in pixels of `image`. A photograph without a valid face is looked at anywhere. Faces whose
    centre lies outside are left out, as unsure where they reach in: half a face is neither face nor background.
    """
    height, width = image.shape[:2]
    zoom = np.exp(rng.uniform(*np.log(sampling.zoom)))
    side = min(size / zoom, sampling.room * max(height, width))
    centres = (entry.xyxy[:, :2] + entry.xyxy[:, 2:]) / 2
    valid = np.flatnonzero(~entry.invalid)
    focus = centres[rng.choice(valid)] if len(valid) else rng.uniform(0, 1, 2) * (width, height)
    corner = np.array(
        [start(at, side, length, rng) for at, length in zip(focus, (width, height), strict=True)]
    )
    scale = size / side
    pixels = cut(image, corner, size, scale)
    boxes = ((entry.xyxy - np.tile(corner, 2)) * scale).astype(np.float32)
    points = ((entry.keypoints - corner) * scale).astype(np.float32)
    if rng.random() < 0.5:
        pixels = pixels[:, ::-1]
        boxes = mirror(boxes[:, [2, 1, 0, 3]].reshape(-1, 2, 2), size).reshape(-1, 4)
        points = mirror(points[:, MIRRORED], size)
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    inside = ((centres >= 0) & (centres <= size)).all(1)
    found = inside & ~entry.invalid
    return View(pixels, boxes[found], points[found], boxes[~found])


def mirror(points: np.ndarray, size: int) -> np.ndarray:
    """Points (..., 2) in the mirror image of a picture of this width."""
    return points * np.array([-1, 1], np.float32) + np.array([size, 0], np.float32)


def start(at: float, side: float, length: int, rng: np.random.Generator) -> float:
    """Where a window of this side begins along one axis of the photograph, so that it holds the place `at`.

    It stays inside a photograph it fits in; one it does not fit in lies inside it.
    """
    low, high = min(0.0, length - side), max(0.0, length - side)
    low, high = max(low, at - side), min(high, at)
    return float(rng.uniform(low, high)) if low < high else low


def cut(image: np.ndarray, corner: np.ndarray, size: int, scale: float) -> np.ndarray:
    """The window (size, size, 3) that begins at `corner`, with `scale` of its pixels to one of the image."""
    if scale < 1:  # averages first, so that nothing is skipped
        small = max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale))
        shrunk = cv2.resize(image, small, interpolation=cv2.INTER_AREA)
        image, corner, scale = shrunk, corner * scale, 1.0
    # Centres of pixels: x_out + .5 = (x_in + .5 - corner) scale.
    shift = (0.5 - corner) * scale - 0.5
    matrix = np.array([[scale, 0, shift[0]], [0, scale, shift[1]]])
    return cv2.warpAffine(
        image, matrix, (size, size), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT, borderValue=MEAN
    )


@dataclass(frozen=True)
class TrainSet:
    """The batches of the detector, and the held-out photographs that tell how it is doing."""

    entries: list[Entry]  # in pixels of the pictures
    pictures: Pictures
    stage: Stage
    learned: np.ndarray  # numbers of the entries that are learned from
    odds: np.ndarray  # of each of them
    held_out: np.ndarray

    def batch(self, seed: tuple[int, ...], count: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Inputs (n, 3, size + 2, size + 2) float32 and targets; the same for the same seed."""
        rng = np.random.default_rng(seed)
        sampling = self.stage.sampling
        size = int(rng.choice(sampling.sizes))
        chosen = rng.choice(self.learned, count, p=self.odds)
        views = [look(self.pictures[i], self.entries[i], size, sampling, rng) for i in chosen]
        places, rules = priors(size, size), self.stage.weights.matching
        targets = [match(places, view.faces, view.points, view.unsure, rules) for view in views]
        pixels = torch.from_numpy(np.stack([view.pixels for view in views])).permute(0, 3, 1, 2)
        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        return in_frame(relight(normalise(pixels), generator)), stacked(targets)

    @torch.inference_mode()
    def watch(self, module: nn.Module) -> dict[str, float]:
        """AP of the held-out photographs by event, as `octavo evaluate` measures it."""
        device = next(module.parameters()).device

        def detector(pixels: np.ndarray) -> tuple[np.ndarray, ...]:
            outputs = module(normalise(torch.from_numpy(pixels).to(device)))
            return tuple(output.float().cpu().numpy() for output in outputs)

        settings = Settings.of({}, **MEASURING)
        found: dict[str, Detections] = {}
        entries = [self.entries[i] for i in self.held_out]
        if not any((~entry.invalid).any() for entry in entries):
            return {}
        for number, entry in zip(self.held_out, entries, strict=True):
            found[entry.name] = predict(self.pictures[number], {"detector": detector}, settings)
        return {f"ap_{event}": ap for event, ap in by_event(entries, found).items()}


def in_frame(x: Tensor) -> Tensor:
    """Normalised images (n, 3, s, s) in the frame that predict.framed gives them, (n, 3, s + 2, s + 2)."""
    colour = normalise(torch.tensor(MEAN)).reshape(1, 3, 1, 1)
    count, channels, height, width = x.shape
    inside = x.new_empty((count, channels, height + 2, width + 2))
    for edge in (inside[:, :, :: height + 1], inside[:, :, :, :: width + 1]):
        edge.copy_(colour.expand_as(edge))
    inside[:, :, 1:-1, 1:-1] = x
    return inside


def stacked(targets: list[Targets]) -> dict[str, Tensor]:
    return {
        name: torch.from_numpy(np.stack([getattr(one, name) for one in targets]))
        for name in ("kind", "box", "landmarks")
    }


def train_set(
    name: str,
    recipe: Recipe,
    data: Path,
    samples: Path,
    run: Mapping[str, Network],
    fingerprint: str,
    progress: Progress | None = None,
) -> TrainSet:
    """The photographs of a data set in WIDER FACE layout, kept decoded in the folder `samples`.

    run and fingerprint, the networks before this one, are not looked at: there are none.
    """
    stage = recipe.stages[name]
    sampling = stage.sampling
    entries = read(data, "train")
    key = json.dumps([sampling.longest, fingerprint_of(entries)])
    folder = samples / f"pictures-{hashlib.sha256(key.encode()).hexdigest()[:12]}"
    pictures = keep([entry.path for entry in entries], sampling.longest, folder, progress)
    entries = [scaled(entry, scale) for entry, scale in zip(entries, pictures.scales, strict=True)]
    held_out = np.array([is_held_out(entry, sampling.held_out) for entry in entries])
    learned = np.flatnonzero(~held_out)
    odds = np.array([sampling.repeat.get(entries[i].event, 1) for i in learned], float)
    return TrainSet(entries, pictures, stage, learned, odds / odds.sum(), np.flatnonzero(held_out))


def scaled(entry: Entry, scale: float) -> Entry:
    """The entry of a photograph that was scaled."""
    return replace(entry, xyxy=entry.xyxy * scale, keypoints=entry.keypoints * scale)


def calibration_batches(
    name: str, data: Path, run: Mapping[str, Network], settings: Settings, count: int, seed: int = 0
) -> Iterator[np.ndarray]:
    """What the detector is given of `count` training images: (1, 3, h + 2, w + 2) uint8 each."""
    entries = read(data, "train")
    for number in np.random.default_rng(seed).permutation(len(entries))[:count].tolist():
        yield framed(resized(images.read(entries[number].path), settings.long_side)[0])
