"""What a reader learns from: rendered lines, their ink drawn once and kept, printed anew in each batch.

    a line of text, a font -> ink, 32 pixels high (octavo.data.render) -> a batch of lines of about one width
    -> paper, colours, flaws -> normalised pixels; the numbers of the characters

A batch depends on its seed only, so that training resumes exactly.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from octavo import images
from octavo.data import render, vietnamese
from octavo.data.pixels import normalise
from octavo.data.split import is_held_out
from octavo.data.textlines import read
from octavo.evaluate.text import counts
from octavo.folder import staged

from .predict import HEIGHT, STEP, WIDEST, Network, Settings, fitted, pieces, read_lines
from .recipe import Recipe, Sampling, Stage
from .vocabulary import CHARACTERS, END, PADDING, START, encode

Progress = Callable[[int, int], None]
CHUNK = 250  # lines that one process renders at a time


class Lines:
    """Rendered lines on disk. lines[i]: ink (32, w) uint8, mapped into memory; texts[i]; widths[i]."""

    def __init__(self, folder: Path) -> None:
        self.widths = np.load(folder / "widths.npy")
        self.starts = np.concatenate([[0], np.cumsum(self.widths)])
        self.columns = np.memmap(folder / "ink.bin", np.uint8, "r").reshape(-1, HEIGHT)
        self.texts: list[str] = json.loads((folder / "texts.json").read_text(encoding="utf-8"))

    def __len__(self) -> int:
        return len(self.widths)

    def __getitem__(self, number: int) -> np.ndarray:
        return self.columns[self.starts[number] : self.starts[number + 1]].T


def keep(
    count: int,
    faces: Sequence[Sequence[Path]],
    seed: int,
    folder: Path,
    longest: int = WIDEST,
    progress: Progress | None = None,
) -> Lines:
    """`count` lines, each of a random family of `faces` and a random font of it; made if `folder` isn't there yet."""
    if not (folder / "texts.json").is_file():
        chunks = [range(start, min(start + CHUNK, count)) for start in range(0, count, CHUNK)]
        widths, texts = [], []
        context = multiprocessing.get_context("spawn")  # the caller has threads
        with (
            staged(folder) as temporary,
            (temporary / "ink.bin").open("wb") as file,
            ProcessPoolExecutor(min(len(chunks), os.cpu_count() or 1), context) as pool,
        ):
            for done, drawn in enumerate(
                pool.map(partial(rendered, faces, seed, longest=longest), chunks), 1
            ):
                for ink, text in drawn:
                    file.write(ink.T.tobytes())
                    widths.append(ink.shape[1])
                    texts.append(text)
                if progress:
                    progress(min(done * CHUNK, count), count)
            np.save(temporary / "widths.npy", np.array(widths, np.int64))
            (temporary / "texts.json").write_text(json.dumps(texts, ensure_ascii=False), encoding="utf-8")
    return Lines(folder)


def rendered(
    faces: Sequence[Sequence[Path]], seed: int, numbers: range, longest: int = WIDEST
) -> list[tuple[np.ndarray, str]]:
    """Ink, at most `longest` wide, and text of the lines of these numbers, each the same wherever it is made."""
    made = []
    for number in numbers:
        rng = np.random.default_rng((seed, number))
        family = faces[int(rng.integers(len(faces)))]
        text = vietnamese.line(rng, CHARACTERS)
        made.append(render.draw(text, family[int(rng.integers(len(family)))], HEIGHT, rng, longest))
    return made


def printed(faces: Sequence[Sequence[Path]], seed: int, numbers: range) -> Iterator[tuple[np.ndarray, str]]:
    """Pictures (32, w, 3) uint8 and texts of such lines, each printed in its own way, as the number has it."""
    for number, (ink, text) in zip(numbers, rendered(faces, seed, numbers), strict=True):
        yield pages([ink], np.random.default_rng((seed, number)))[0][:, : ink.shape[1]], text


def split_fonts(folder: Path, held_out: tuple[str, ...]) -> tuple[list[list[Path]], list[list[Path]]]:
    """Families of fonts below a folder that have all characters: those to learn from, and those held out.

    held_out: how the names of the families begin that are.
    """
    learned: list[list[Path]] = []
    kept: list[list[Path]] = []
    for name, paths in render.families(render.fonts(folder, CHARACTERS)).items():
        (kept if name.startswith(held_out) else learned).append(paths)
    if not learned or not kept:
        raise ValueError(
            f"of the fonts in {folder} that have all Vietnamese characters {len(learned)} families are to learn from "
            f"and {len(kept)} to be held out ({', '.join(held_out)}): both are needed. Debian has many, such as "
            "fonts-dejavu and fonts-roboto-unhinted; sampling.held_out_fonts says which are held out"
        )
    return learned, kept


def padded(width: int) -> int:
    return -(-width // STEP) * STEP


def pages(inks: Sequence[np.ndarray], rng: np.random.Generator) -> np.ndarray:
    """Pictures (n, 32, W, 3) uint8 of inks (32, w), their last column repeated as predict.fitted does."""
    wide = padded(max(ink.shape[1] for ink in inks))
    page = render.print_on_paper(
        np.stack([np.pad(ink, ((0, 0), (0, wide - ink.shape[1]))) for ink in inks]), rng
    )
    for picture, ink in zip(page, inks, strict=True):
        width = ink.shape[1]
        picture[:, width:] = picture[:, width - 1 : width]
    return page


def numbered(texts: Sequence[str]) -> tuple[Tensor, Tensor]:
    """What the decoder is told (n, L), from the start on, and what it should say next (n, L)."""
    rows = [encode(text) for text in texts]
    length = max(map(len, rows)) + 1
    told = torch.full((len(rows), length), PADDING)
    following = torch.full((len(rows), length), PADDING)
    for i, row in enumerate(rows):
        told[i, : len(row) + 1] = torch.tensor([START, *row])
        following[i, : len(row) + 1] = torch.tensor([*row, END])
    return told, following


@dataclass(frozen=True)
class TrainSet:
    """The batches of a reader, and the lines of unseen fonts that tell how it is doing.

    lines    rendered ones, learned from; `order` is that of their widths
    real     lines of the data set, fitted, and their texts, in the order of their widths
    """

    lines: Lines
    order: np.ndarray
    real: list[tuple[np.ndarray, str]]
    held_out: Lines
    stage: Stage

    def batch(self, seed: tuple[int, ...], count: int) -> tuple[tuple[Tensor, Tensor], dict[str, Tensor]]:
        """((pixels (n, 3, 32, W), numbers (n, L)), {"next": (n, L)}), the same for the same seed.

        n is such that there are about as many pixels as in `count` lines of sampling.width. Lines of a batch are
        neighbours by width, so that little is padded.
        """
        rng = np.random.default_rng(seed)
        # Without the rank: at each step all processes get lines of about one width, so that none waits for another.
        common = np.random.default_rng((seed[0], seed[-1]))
        sampling = self.stage.sampling
        real, place = self.real and common.random() < sampling.real, common.random()
        if real:
            widths = np.array([picture.shape[1] for picture, _ in self.real])
            chosen = neighbours(widths, WIDEST, count * sampling.width, place, rng)
            pictures = [self.real[i][0] for i in chosen]
            wide = max(picture.shape[1] for picture in pictures)
            pixels = np.stack(
                [np.pad(p, ((0, 0), (0, wide - p.shape[1]), (0, 0)), mode="edge") for p in pictures]
            )
            texts = [self.real[i][1] for i in chosen]
        else:
            widths, widest = self.lines.widths[self.order], self.widest(seed[-1])
            near = neighbours(widths, widest, count * sampling.width, place, rng)
            numbers = self.order[near]
            texts = [self.lines.texts[i] for i in numbers]
            pixels = pages([self.lines[i] for i in numbers], rng)
        told, following = numbered(texts)
        return (normalise(torch.from_numpy(pixels).permute(0, 3, 1, 2)), told), {"next": following}

    def widest(self, step: int) -> float:
        """Lines get longer over the first steps: attention finds its way on short ones."""
        schedule, sampling = self.stage.schedule, self.stage.sampling
        share = step / (sampling.growing * schedule.epochs * schedule.steps + 1)
        return sampling.first + (sampling.widest - sampling.first) * min(1.0, share)

    @torch.inference_mode()
    def watch(self, module: nn.Module) -> dict[str, float]:
        """Exact matches and character error rate of the held-out lines, the same pages each time."""
        inks = [self.held_out[i] for i in range(len(self.held_out))]
        page = [pages([ink], np.random.default_rng(i))[0] for i, ink in enumerate(inks)]
        found = read_lines(page, in_torch(module), Settings())
        of_all = counts((text, one.text) for text, one in zip(self.held_out.texts, found, strict=True))
        return {"exact": of_all.exact / of_all.lines, "cer": of_all.cer or 0.0}


def neighbours(
    widths: np.ndarray, widest: float, pixels: int, place: float, rng: np.random.Generator
) -> np.ndarray:
    """Numbers of sorted widths that lie near to one another, at most `widest`, so many that they have these columns.

    place: which widths, from 0, the first, to 1, the last. They are drawn from twice as many and more, so that a batch
    is not always the same, and processes at one place get different ones.
    """
    there = max(1, int(np.searchsorted(widths, widest, "right")))
    middle = min(int(place * there), there - 1)
    count = max(8, pixels // padded(int(widths[middle])))
    more = max(2 * count, len(widths) // 200)
    start = max(0, min(middle - more // 2, there - more))
    window = np.arange(start, min(len(widths), start + more))
    return rng.choice(window, min(count, len(window)), replace=False)


def in_torch(reader: Any) -> dict[str, Network]:
    """A Reader's three networks as functions of arrays, as predict.py calls them."""
    device = next(reader.parameters()).device

    def call(module: nn.Module, *arrays: np.ndarray) -> tuple[np.ndarray, ...]:
        inputs = [torch.from_numpy(np.ascontiguousarray(a)).to(device) for a in arrays]
        outputs = module(*(normalise(x) if x.dtype == torch.uint8 else x for x in inputs))
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        return tuple(output.float().cpu().numpy() for output in outputs)

    return {name: partial(call, getattr(reader, name)) for name in ("cnn", "encoder", "decoder")}


def train_set(
    name: str,
    recipe: Recipe,
    data: Path,
    samples: Path,
    run: Mapping[str, Network],
    fingerprint: str,
    progress: Progress | None = None,
) -> TrainSet:
    """Lines rendered into the folder `samples`, of fonts that are learned from and of fonts that are held out.

    Besides, lines of the data set that are no wider than the network reads. ValueError where one of its texts has a
    character that the vocabulary lacks. run and fingerprint, the networks before this one, are not looked at.
    """
    stage = recipe.stages[name]
    sampling, seed = stage.sampling, stage.schedule.seed
    learned, kept = split_fonts(Path(sampling.fonts), sampling.held_out_fonts)

    def made(faces: list[list[Path]], count: int, seed: int, longest: int) -> Lines:
        key = json.dumps([[[str(path) for path in family] for family in faces], count, seed, longest])
        folder = samples / f"lines-{hashlib.sha256(key.encode()).hexdigest()[:12]}"
        return keep(count, faces, seed, folder, longest, progress)

    real = real_lines(data, sampling) if sampling.real else []
    lines = made(learned, sampling.synthetic, seed, sampling.widest)
    order = np.argsort(lines.widths, kind="stable")
    return TrainSet(lines, order, real, made(kept, sampling.watched, seed + 1, WIDEST), stage)


def real_lines(data: Path, sampling: Sampling) -> list[tuple[np.ndarray, str]]:
    """The data set's training lines that the network can see in one look, fitted, with their texts; by width."""
    entries = [entry for entry in read(data, "train") if not is_held_out(entry, sampling.held_out)]
    for entry in entries:
        try:
            encode(entry.text)
        except ValueError as error:
            raise ValueError(f"{entry.name} of {data}: {error}") from None
    pictures = ((images.read(entry.path), entry.text) for entry in entries)
    found = [(fitted(picture), text) for picture, text in pictures if len(pieces(picture)) == 1]
    return sorted(found, key=lambda line: line[0].shape[1])


def calibration_batches(
    name: str, data: Path, run: Mapping[str, Network], settings: Settings, count: int, seed: int = 0
) -> Iterator[np.ndarray]:
    """What the CNN is given of `count` training lines, piece by piece: (1, 3, 32, W) uint8."""
    entries = read(data, "train")
    for number in np.random.default_rng(seed).permutation(len(entries))[:count].tolist():
        for piece, _ in pieces(images.read(entries[number].path)):
            yield np.ascontiguousarray(fitted(piece).transpose(2, 0, 1)[None])
