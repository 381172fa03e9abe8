"""Dead leaves against what is known of them: sizes of all scales, no preferred place, all values."""

from __future__ import annotations

import pytest
import torch

from octavo.quantize import synthetic


def test_the_same_for_the_same_seed() -> None:
    shape = (3, 3, 24, 32)
    pixels = synthetic.images(shape)
    assert (pixels.dtype, tuple(pixels.shape)) == (torch.uint8, shape)
    assert torch.equal(pixels, synthetic.images(shape))
    assert not torch.equal(pixels, synthetic.images(shape, seed=1))
    assert not torch.equal(pixels[0], pixels[1])


def test_channels_and_sizes_are_free() -> None:
    assert tuple(synthetic.images((2, 1, 7, 40)).shape) == (2, 1, 7, 40)


def test_all_values_everywhere() -> None:
    """Colours are uniform over 0 .. 255, in the middle and at the border alike."""
    pixels = synthetic.images((200, 1, 32, 32)).double()
    for part in (pixels, pixels[:, :, 16, 16], pixels[:, :, 0, 0]):
        assert float(part.mean()) == pytest.approx(127.5, abs=16)
        assert float(part.std()) == pytest.approx(256 / 12**0.5, rel=0.12)


def test_alike_at_every_scale() -> None:
    """Neighbours differ seldom, distant pixels more and more often: share of pairs with one colour."""
    pixels = synthetic.images((100, 1, 64, 64))
    same = [float((pixels[..., d:] == pixels[..., :-d]).double().mean()) for d in (1, 4, 16, 48)]
    assert same == sorted(same, reverse=True)
    assert same[0] > 0.7
    assert same[1] > 0.3
    assert 0.02 < same[2] < 0.3
    assert same[3] < 0.1
