"""VietOCR: a convolutional network looks along the line, a sequence model writes what it saw, character by character.

    cnn       pixels (n, 3, 32, W)                 -> features (n, T, 256), from left to right
    encoder   features                             -> state, the memory that the decoder looks at[, places]
    decoder   number (n,), state, *memory          -> logits (n, 233) of the next character, state

Three networks, so that each can be quantized in its own way and run from its own file: the CNN is nearly all of the
arithmetic and sees pixels; the decoder runs once for each character of the line. What `encoder` returns first is
the decoder's `state`, which each step replaces; the memory stays the same for the whole line. The small one's encoder
also says by itself what stands at each place, logits (n, T, 233): a second opinion (predict.py).

    vietocr-seq2seq      VGG19 with batch normalisation (Simonyan & Zisserman 2014, arXiv 1409.1556) whose pooling
                         keeps the width, a GRU in both directions, and a GRU with additive attention (Bahdanau
                         et al. 2014, arXiv 1409.0473)
    vietocr-transformer  the same features, six layers of a transformer on each side (Vaswani et al. 2017,
                         arXiv 1706.03762)
    vietocr-small        the first with a fifteenth of the arithmetic: what two cores can train

The first two are VietOCR's (github.com/pbcquoc/vietocr), whose weights `import_weights` reads. They want pixels x / 255
of RGB (`import_info`); what is trained here has (x - 128) / 128.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from octavo.data.pickles import check_fit, read_state

from .recipe import Stage
from .vocabulary import SIZE

VGG19 = (2, 64), (2, 128), (4, 256), (4, 512), (4, 512)  # convolutions of a block, and their channels
POOLS = (2, 2), (2, 2), (2, 1), (2, 1), (1, 1)  # height, width, after each block
SMALL = (32, 48, 96, 192)  # channels of the stem and the three blocks
FEATURES = 256
HIDDEN = {"vietocr-seq2seq": 256, "vietocr-small": 128}
LAYERS, HEADS, WIDE = 6, 8, 2048  # of the transformer
LONGEST = 1024  # places and characters that it can count
DROPOUT = 0.1


# ---- pixels -> features


class Vgg(nn.Module):
    """(n, 3, 32, W) -> (n, W / 2, 256): two features for each four columns, from the upper and the lower half."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inputs = 3
        for (count, channels), pool in zip(VGG19, POOLS, strict=True):
            for _ in range(count):
                # The published convolutions have biases in spite of their normalisation.
                layers += [nn.Conv2d(inputs, channels, 3, padding=1), nn.BatchNorm2d(channels), nn.ReLU()]
                inputs = channels
            layers.append(nn.AvgPool2d(pool) if pool != (1, 1) else nn.Identity())
        self.features = nn.Sequential(*layers)
        self.dropout = nn.Dropout(DROPOUT)
        self.reduce = nn.Conv2d(512, FEATURES, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.reduce(self.dropout(self.features(x)))
        return x.permute(0, 3, 2, 1).flatten(1, 2)  # (n, c, 2, W/4) -> (n, W/4 · 2, c)


def normalised(inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> list[nn.Module]:
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
    return [conv, nn.BatchNorm2d(outputs), nn.ReLU()]


class SmallCnn(nn.Module):
    """(n, 3, 32, W) -> (n, W / 4, 256)."""

    def __init__(self) -> None:
        super().__init__()
        stem, *blocks = SMALL
        layers = normalised(3, stem, kernel=5, stride=2)
        for inputs, outputs, pool in zip(SMALL, blocks, ((2, 2), (2, 1), (2, 1)), strict=False):
            layers += [*normalised(inputs, outputs), *normalised(outputs, outputs), nn.MaxPool2d(pool)]
        self.features = nn.Sequential(*layers)
        self.dropout = nn.Dropout(DROPOUT)
        self.reduce = nn.Conv2d(blocks[-1], FEATURES, (2, 1))  # the two rows that are left

    def forward(self, x: Tensor) -> Tensor:
        x = self.reduce(self.dropout(self.features(x)))
        return x.squeeze(2).transpose(1, 2)


# ---- features -> text, by recurrent networks


class RecurrentEncoder(nn.Module):
    """features (n, T, 256) -> state (n, h), memory (n, T, 2 h), keys (n, T, h)[, places (n, T, 233)].

    Attention compares a query with a key for each place, w · tanh(q(state) + k(memory)): the keys are the same for
    all characters of a line, so they are made here and not at each step.
    """

    def __init__(self, hidden: int, places: bool) -> None:
        super().__init__()
        self.gru = nn.GRU(FEATURES, hidden, bidirectional=True, batch_first=True)
        self.bridge = nn.Linear(2 * hidden, hidden)
        self.keys = nn.Linear(2 * hidden, hidden)
        self.places = nn.Linear(2 * hidden, SIZE) if places else None
        self.dropout = nn.Dropout(DROPOUT)
        self.width = 2 * hidden

    def forward(self, features: Tensor) -> tuple[Tensor, ...]:
        memory, last = self.gru(self.dropout(features))
        state = torch.tanh(self.bridge(torch.cat([last[0], last[1]], 1)))
        found = state, memory, self.keys(memory)
        return found if self.places is None else (*found, self.places(memory))


class RecurrentDecoder(nn.Module):
    """number (n,), state (n, h), memory (n, T, 2 h), keys (n, T, h) -> logits (n, 233), state (n, h)."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(SIZE, hidden)
        self.query = nn.Linear(hidden, hidden, bias=False)
        self.score = nn.Linear(hidden, 1, bias=False)
        self.gru = nn.GRUCell(3 * hidden, hidden)
        self.out = nn.Linear(4 * hidden, SIZE)
        self.dropout = nn.Dropout(DROPOUT)

    def forward(self, number: Tensor, state: Tensor, memory: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
        embedded = self.dropout(self.embedding(number))
        scores = self.score(torch.tanh(self.query(state).unsqueeze(1) + keys))  # (n, T, 1)
        seen = (torch.softmax(scores, 1).transpose(1, 2) @ memory).squeeze(1)  # (n, 2 h)
        state = self.gru(torch.cat([embedded, seen], 1), state)
        return self.out(torch.cat([state, seen, embedded], 1)), state


# ---- features -> text, by a transformer


def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Of each query (n, t, d) the values (n, T, d) of the keys (n, T, d) that resemble it, in HEADS parts of d."""
    q, k, v = (x.unflatten(2, (HEADS, -1)).transpose(1, 2) for x in (query, key, value))
    likeness = q @ k.transpose(2, 3) / math.sqrt(q.shape[3])
    return (torch.softmax(likeness, 3) @ v).transpose(1, 2).flatten(2)


def places(longest: int, width: int) -> Tensor:
    """Sines and cosines (longest, width) that tell one place from another: Vaswani et al. 2017, 3.5."""
    angle = torch.arange(longest)[:, None] * torch.exp(
        torch.arange(0, width, 2) * (-math.log(10000.0) / width)
    )
    return torch.stack([angle.sin(), angle.cos()], 2).flatten(1)


class Layer(nn.Module):
    """What both sides' layers share: attention to their own kind, then two linear layers, each added and normalised."""

    def __init__(self) -> None:
        super().__init__()
        self.own = nn.Linear(FEATURES, 3 * FEATURES)  # query, key, value
        self.own_out = nn.Linear(FEATURES, FEATURES)
        self.own_norm = nn.LayerNorm(FEATURES)
        self.wide = nn.Linear(FEATURES, WIDE)
        self.narrow = nn.Linear(WIDE, FEATURES)
        self.norm = nn.LayerNorm(FEATURES)
        self.dropout = nn.Dropout(DROPOUT)

    def think(self, x: Tensor) -> Tensor:
        return self.norm(x + self.dropout(self.narrow(self.dropout(torch.relu(self.wide(x))))))


class EncoderLayer(Layer):
    """(n, T, 256) -> the same."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.own_norm(x + self.dropout(self.own_out(attend(*self.own(x).chunk(3, 2)))))
        return self.think(x)


class DecoderLayer(Layer):
    """One step: x (n, 1, 256), past (n, t, 512), memory (n, T, 512) -> x, past (n, t + 1, 512): keys and values."""

    def __init__(self) -> None:
        super().__init__()
        self.query = nn.Linear(FEATURES, FEATURES)
        self.query_out = nn.Linear(FEATURES, FEATURES)
        self.query_norm = nn.LayerNorm(FEATURES)

    def forward(self, x: Tensor, past: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        query, new = self.own(x).split([FEATURES, 2 * FEATURES], 2)
        past = torch.cat([past, new], 1)
        x = self.own_norm(x + self.dropout(self.own_out(attend(query, *past.chunk(2, 2)))))
        x = self.query_norm(x + self.dropout(self.query_out(attend(self.query(x), *memory.chunk(2, 2)))))
        return self.think(x), past


class TransformerEncoder(nn.Module):
    """features (n, T, 256) -> state (n, 0, 6 · 512), memory (n, T, 6 · 512).

    memory has the keys and values that the decoder's six layers ask, state those of the characters written: none.
    """

    positions: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("positions", places(LONGEST, FEATURES), persistent=False)
        self.layers = nn.ModuleList(EncoderLayer() for _ in range(LAYERS))
        self.norm = nn.LayerNorm(FEATURES)
        self.asked = nn.ModuleList(nn.Linear(FEATURES, 2 * FEATURES) for _ in range(LAYERS))
        self.dropout = nn.Dropout(DROPOUT)
        self.width = LAYERS * 2 * FEATURES

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        x = self.dropout(features * math.sqrt(FEATURES) + self.positions[: features.shape[1]])
        for layer in self.layers:
            x = layer(x)
        x = self.norm(x)
        memory = torch.cat([asked(x) for asked in self.asked], 2)
        return memory[:, :0], memory


class TransformerDecoder(nn.Module):
    """number (n,), state (n, t, 6 · 512), memory (n, T, 6 · 512) -> logits (n, 233), state (n, t + 1, 6 · 512)."""

    positions: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("positions", places(LONGEST, FEATURES), persistent=False)
        self.embedding = nn.Embedding(SIZE, FEATURES)
        self.layers = nn.ModuleList(DecoderLayer() for _ in range(LAYERS))
        self.norm = nn.LayerNorm(FEATURES)
        self.out = nn.Linear(FEATURES, SIZE)
        self.dropout = nn.Dropout(DROPOUT)

    def forward(self, number: Tensor, state: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        place = self.positions[: state.shape[1] + 1][-1:]
        x = self.dropout(self.embedding(number).unsqueeze(1) * math.sqrt(FEATURES) + place)
        states = []
        for layer, past, seen in zip(
            self.layers, state.chunk(LAYERS, 2), memory.chunk(LAYERS, 2), strict=True
        ):
            x, past = layer(x, past, seen)
            states.append(past)
        return self.out(self.norm(x))[:, 0], torch.cat(states, 2)


# ---- what the verbs ask for


def build(variant: str) -> dict[str, nn.Module]:
    """The three networks of a variant, with fresh weights."""
    small = variant == "vietocr-small"
    cnn = SmallCnn() if small else Vgg()
    if variant == "vietocr-transformer":
        return {"cnn": cnn, "encoder": TransformerEncoder(), "decoder": TransformerDecoder()}
    hidden = HIDDEN[variant]
    return {
        "cnn": cnn,
        "encoder": RecurrentEncoder(hidden, places=small),  # the published weights have none
        "decoder": RecurrentDecoder(hidden),
    }


class Reader(nn.Module):
    """The three networks while they learn together, each next character from the right ones before it.

    (pixels (n, 3, 32, W), numbers (n, L)) -> logits (n, L, 233) and, for the places of the encoder's memory, logits
    (n, T, 233) of what stands there (see loss.py). Where the encoder doesn't say them, a layer of the training's own
    does, which is no part of the model.
    """

    def __init__(self, cnn: nn.Module, encoder: Any, decoder: nn.Module) -> None:
        super().__init__()
        self.cnn, self.encoder, self.decoder = cnn, encoder, decoder
        self.places: nn.Module | None = None if says_places(encoder) else nn.Linear(encoder.width, SIZE)

    def forward(self, inputs: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
        pixels, numbers = inputs
        state, *memory = (x.float() for x in self.encoder(self.cnn(pixels)))
        said = [memory.pop()] if says_places(self.encoder) else []
        with torch.autocast(
            pixels.device.type, enabled=False
        ):  # a chain of many small steps gains nothing from it
            logits = []
            for number in numbers.unbind(1):
                one, state = self.decoder(number, state, *memory)
                logits.append(one)
            if self.places is not None:
                said = [self.places(memory[0])]
            return (torch.stack(logits, 1), *said)


def says_places(encoder: nn.Module) -> bool:
    """Whether the last that an encoder says is what stands at each place."""
    return getattr(encoder, "places", None) is not None


def joined(modules: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
    """What is trained, by the names of the recipe's stages: one Reader around the three networks."""
    return {"reader": Reader(**modules)}


def finish(module: nn.Module, stage: Stage) -> None:
    """Nothing is to be done: what is trained is what is used."""


def resume(module: Reader, stage: Stage) -> None:
    """What was trained before has no need of places of the training's own, and fresh ones would only disturb it."""
    module.places = None


# ---- published weights

PIXELS = {"color": "RGB", "offset": 0.0, "scale": 1 / 255}


def import_info(source: Path) -> dict[str, Any]:
    """What model.json says of published weights besides: they want pixels from 0 to 1."""
    return {"preprocessing": PIXELS}


def import_weights(source: Path) -> dict[str, dict[str, Tensor]]:
    """Read VietOCR's vgg_seq2seq.pth or vgg_transformer.pth for `build`; every tensor must be used and be given.

    The file is read with the restricted unpickler. Raises ValueError for a missing file, a pickle that is no plain
    state dict, or tensors that don't fit, such as those of another vocabulary.
    """
    theirs = read_state(source, "the published weights are one, vgg_seq2seq.pth or vgg_transformer.pth")
    transformer = any(".self_attn." in key for key in theirs)
    theirs = {key.removeprefix("module."): value for key, value in theirs.items()}
    theirs.pop("transformer.pos_enc.pe", None)  # sines: made anew
    split = _split_transformer if transformer else _split_recurrent
    ours: dict[str, dict[str, Tensor]] = {"cnn": {}, "encoder": {}, "decoder": {}}
    for key, tensor in theirs.items():
        for name, value in split(key, tensor).items():
            network, _, rest = name.partition(".")
            ours.setdefault(network, {})[rest] = value
    variant = "vietocr-transformer" if transformer else "vietocr-seq2seq"
    for name, module in build(variant).items():
        check_fit(ours[name], module, source, f"{name} of {variant}")
    if unknown := sorted(ours.keys() - {"cnn", "encoder", "decoder"}):
        raise ValueError(f"{source} does not fit {variant}: unknown {', '.join(unknown)}")
    return ours


def _of_cnn(key: str) -> str:
    return key.replace("cnn.model.", "cnn.").replace("last_conv_1x1", "reduce")


RECURRENT = {
    "transformer.encoder.rnn.": "encoder.gru.",
    "transformer.encoder.fc.": "encoder.bridge.",
    "transformer.decoder.attention.v.": "decoder.score.",
    "transformer.decoder.embedding.": "decoder.embedding.",
    "transformer.decoder.rnn.": "decoder.gru.",
    "transformer.decoder.fc_out.": "decoder.out.",
}


def _split_recurrent(key: str, tensor: Tensor) -> dict[str, Tensor]:
    """A published tensor by our names. Their attention reads [state, memory] at once: query and key are its halves.

    Likewise their last layer reads [state, seen, embedded], as ours does.
    """
    if key == "transformer.decoder.attention.attn.weight":
        hidden = len(tensor)
        return {"decoder.query.weight": tensor[:, :hidden], "encoder.keys.weight": tensor[:, hidden:]}
    if key == "transformer.decoder.attention.attn.bias":
        return {"encoder.keys.bias": tensor}
    for theirs, ours in RECURRENT.items():
        if key.startswith(theirs):
            name = ours + key.removeprefix(theirs)
            # Their decoder is a GRU of one layer that makes one step, ours a cell.
            return {name.removesuffix("_l0") if ours == "decoder.gru." else name: tensor}
    return {_of_cnn(key): tensor}


TRANSFORMER = {
    "self_attn.in_proj_": "own.",
    "self_attn.out_proj.": "own_out.",
    "multihead_attn.out_proj.": "query_out.",
    "linear1.": "wide.",
    "linear2.": "narrow.",
}
NORMS = {"encoder": ("own_norm", "norm"), "decoder": ("own_norm", "query_norm", "norm")}


def _split_transformer(key: str, tensor: Tensor) -> dict[str, Tensor]:
    """A published tensor by our names; the keys and values asked of the memory are the encoder's here."""
    if not key.startswith("transformer.transformer."):
        key = key.replace("transformer.embed_tgt.", "decoder.embedding.").replace(
            "transformer.fc.", "decoder.out."
        )
        return {_of_cnn(key): tensor}
    key = key.removeprefix("transformer.transformer.")
    side, _, rest = key.partition(".")
    if not rest.startswith("layers."):
        return {key: tensor}  # the norm at the end
    _, number, rest = rest.split(".", 2)
    if rest.startswith("multihead_attn.in_proj_"):
        kind = rest.removeprefix("multihead_attn.in_proj_")
        query, asked = tensor[:FEATURES], tensor[FEATURES:]
        return {f"decoder.layers.{number}.query.{kind}": query, f"encoder.asked.{number}.{kind}": asked}
    if rest.startswith("norm"):
        place, _, kind = rest.removeprefix("norm").partition(".")
        return {f"{side}.layers.{number}.{NORMS[side][int(place) - 1]}.{kind}": tensor}
    for theirs, ours in TRANSFORMER.items():
        rest = rest.replace(theirs, ours)
    return {f"{side}.layers.{number}.{rest}": tensor}
