"""What MTCNN learns (Zhang et al. 2016, section II-B): is it a face, where is its box, where are its points.

    loss = face + w_box * box + w_landmarks * landmarks

    face       cross-entropy (or focal loss) of positives and negatives; only the hardest share of the batch
               counts (online hard example mining), the rest has no gradient
    box        corner offsets of positives and part faces
    landmarks  ten coordinates where they are known
    teacher    the logit of "is it a face?" of other networks, where there are some to learn from (Ba and Caruana 2014)

The paper's box and landmark losses are Euclidean. Here they are smooth L1: its gradient does not vanish for
small errors, which decide whether a 15 pixel face reaches IoU .5.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from .recipe import Weights

NEGATIVE, POSITIVE, PART, LANDMARK = 0, 1, 2, 3  # kinds of samples; a landmark face teaches only its points


def loss(outputs: tuple[Tensor, ...], targets: dict[str, Tensor], weights: Weights) -> dict[str, Tensor]:
    """The weighted parts of the loss; their sum is minimised.

    outputs  face (n, 2, ...), box (n, 4, ...)[, landmarks (n, 10)], as the networks give them for one window
    targets  kind (n,) int64, box (n, 4), landmarks (n, 10) with NaN where unknown
    """
    face, box = outputs[0].flatten(1), outputs[1].flatten(1)
    kind = targets["kind"]
    parts = {
        "face": face_loss(face, kind, weights),
        "box": weights.box
        * mean_over(
            F.smooth_l1_loss(box, targets["box"], reduction="none", beta=weights.beta).sum(1),
            (kind == POSITIVE) | (kind == PART),
        ),
    }
    if len(outputs) > 2:
        known = ~targets["landmarks"].isnan().any(dim=1)
        points = targets["landmarks"].nan_to_num()
        error = F.smooth_l1_loss(outputs[2], points, reduction="none", beta=weights.beta).sum(1)
        parts["landmarks"] = weights.landmarks * mean_over(error, known)
    if "teacher" in targets:
        theirs = targets["teacher"][0].flatten(1)
        parts["teacher"] = weights.teacher * F.smooth_l1_loss(_logit(face), _logit(theirs))
    return parts


def _logit(face: Tensor) -> Tensor:
    return (face[:, 1] - face[:, 0]).float()


def face_loss(face: Tensor, kind: Tensor, weights: Weights) -> Tensor:
    """Cross-entropy over the hardest share of positives and negatives; times (1 - p)^focal where focal > 0."""
    positive = kind == POSITIVE
    judged = positive | (kind == NEGATIVE)
    losses = F.cross_entropy(face.float(), positive.long(), reduction="none")
    if weights.focal:
        losses = losses * (1 - torch.exp(-losses)) ** weights.focal
    losses = torch.where(positive, losses * weights.positive, losses)
    # Part and landmark faces have no class: they must not be among the hardest.
    losses = torch.where(judged, losses, losses.new_full((), -1.0))
    count = (judged.sum() * weights.hardest).long().clamp(min=1)
    ranked = losses.sort(descending=True).values
    counted = torch.arange(len(ranked), device=ranked.device) < count
    return (ranked.clamp(min=0) * counted).sum() / count


def mean_over(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of the masked values; 0 where there are none."""
    return (values * mask).sum() / mask.sum().clamp(min=1)
