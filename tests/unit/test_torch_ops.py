"""Reference operators against sums written out by hand, for what no small model of the parity tests uses."""

from __future__ import annotations

import math

import pytest
import torch

from subsecond.backends.torch import ops


def test_rotary_tables_by_hand_with_frequency_factors() -> None:
    cosines, sines = ops.rotary_tables(torch.tensor([0, 3]), 100.0, 4, torch.tensor([1.0, 2.0]))
    assert cosines[0].tolist() == [1, 1] and sines[0].tolist() == [0, 0]
    assert cosines[1].tolist() == pytest.approx([math.cos(3), math.cos(0.15)])
    assert sines[1].tolist() == pytest.approx([math.sin(3), math.sin(0.15)])


@pytest.mark.parametrize(("pairing", "order"), [("interleaved", [0, 1, 2, 3]), ("half", [0, 2, 1, 3])])
def test_rope_rotates_the_first_channels_and_leaves_the_rest(pairing: str, order: list[int]) -> None:
    quarter, half = (0.0, 1.0), (-1.0, 0.0)  # cosine and sine
    cosines, sines = torch.tensor([[quarter[0], half[0]]]), torch.tensor([[quarter[1], half[1]]])
    x = torch.zeros(1, 2, 6)
    x[0, :, :4] = torch.tensor([[1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0]]).T[order].T
    x[0, :, 4:] = 9
    assert pairing in ("interleaved", "half")
    rotated = ops.rope(x, cosines, sines, "half" if pairing == "half" else "interleaved")
    expected = torch.tensor([[-2.0, 1.0, -3.0, -4.0], [-6.0, 5.0, -7.0, -8.0]])
    assert rotated[0, :, :4][:, order].tolist() == expected.tolist()
    assert (rotated[0, :, 4:] == 9).all()


def test_attention_sees_nothing_after_its_own_position() -> None:
    generator = torch.Generator().manual_seed(0)
    query, keys, values = (torch.randn(shape, generator=generator) for shape in ((2, 4, 8), (5, 2, 8), (5, 2, 8)))
    positions = torch.tensor([1, 2])
    before = ops.attention(query, keys, values, positions, 0.5)
    keys[3:], values[3:] = 1e9, 1e9
    assert torch.equal(ops.attention(query, keys, values, positions, 0.5), before)
    for head in range(4):
        weights = (query[0, head] @ keys[:2, head // 2].T * 0.5).softmax(dim=-1)
        torch.testing.assert_close(before[0, head], weights @ values[:2, head // 2])


def test_rms_norm_of_narrow_values_is_computed_wide() -> None:
    x = torch.full((1, 4096), 300.0, dtype=torch.float16)  # its square does not fit
    normed = ops.rms_norm(x, torch.full((4096,), 2.0, dtype=torch.float16), 1e-5)
    assert normed.dtype == torch.float16
    assert (normed == 2).all()
