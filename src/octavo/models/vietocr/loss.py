"""What a reader learns: each next character, and, besides, what stands at each place.

loss = next + w_places · places

next    cross-entropy of the next character given the right ones before it, labels smoothed
places  connectionist temporal classification (Graves et al. 2006) of the encoder's memory: it needs no alignment,
        so the encoder learns to read before attention has found its way. Left out where there are no places.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from .recipe import Weights
from .vocabulary import PADDING, SPECIAL


def loss(outputs: tuple[Tensor, ...], targets: dict[str, Tensor], weights: Weights) -> dict[str, Tensor]:
    """The weighted parts of the loss; their sum is minimised.

    outputs  logits (n, L, 233) and perhaps those of the places (n, T, 233)
    targets  "next" (n, L) int64: the text, its end, then padding
    """
    logits, *places = (output.float() for output in outputs)
    following = targets["next"]
    parts = {
        "next": F.cross_entropy(
            logits.flatten(0, 1), following.flatten(), ignore_index=PADDING, label_smoothing=weights.smoothing
        )
    }
    if places and weights.places:
        parts["places"] = weights.places * places_loss(places[0], following)
    return parts


def places_loss(logits: Tensor, following: Tensor) -> Tensor:
    """CTC of logits (n, T, 233), where padding stands for "nothing here", to the characters of `following`."""
    characters = following >= SPECIAL
    lengths = characters.sum(1)
    log_p = F.log_softmax(logits, 2).transpose(0, 1)
    places = torch.full((len(logits),), logits.shape[1], dtype=torch.long)
    text = following.masked_fill(~characters, SPECIAL)
    losses = F.ctc_loss(log_p, text, places, lengths, PADDING, reduction="none", zero_infinity=True)
    return (losses / lengths.clamp(min=1)).mean()
