"""Reference operators against sums written out by hand, for what no small model of the parity tests uses."""

from __future__ import annotations

import math

import pytest
import torch

from subsecond.backends.torch import ops


def test_rotary_tables_by_hand_with_frequency_factors() -> None:
    cosines, sines = ops.rotary_tables(torch.tensor([0, 3]), (1.0, 0.1), 1.0, torch.tensor([1.0, 2.0]))
    assert cosines[0].tolist() == [1, 1] and sines[0].tolist() == [0, 0]
    assert cosines[1].tolist() == pytest.approx([math.cos(3), math.cos(0.15)])
    assert sines[1].tolist() == pytest.approx([math.sin(3), math.sin(0.15)])


def test_a_magnitude_multiplies_both_tables() -> None:
    plain, scaled = (ops.rotary_tables(torch.tensor([2]), (0.5,), magnitude) for magnitude in (1.0, 3.0))
    assert [float(table) for table in scaled] == pytest.approx([3 * float(table) for table in plain])


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


def test_a_window_ends_at_the_row_and_a_cap_bounds_scores() -> None:
    generator = torch.Generator().manual_seed(1)
    query, keys, values = (torch.randn(shape, generator=generator) for shape in ((1, 1, 4), (6, 1, 4), (6, 1, 4)))
    seen = ops.attention(query, keys, values, torch.tensor([4]), 2.0, window=3, softcap=0.7)
    scores = 0.7 * torch.tanh(query[0, 0] @ keys[2:5, 0].T * 2.0 / 0.7)
    torch.testing.assert_close(seen[0, 0], scores.softmax(dim=-1) @ values[2:5, 0])


def test_attention_in_both_directions_sees_all() -> None:
    query, keys = torch.zeros(2, 1, 4), torch.zeros(2, 1, 4)
    values = torch.tensor([[[1.0] * 4], [[3.0] * 4]])
    mixed = ops.attention(query, keys, values, torch.tensor([0, 1]), 1.0, is_causal=False)
    assert (mixed == 2).all()


@pytest.mark.parametrize("is_normalized", [True, False])
def test_experts_by_hand(is_normalized: bool) -> None:
    x = torch.tensor([[1.0, 2.0]])
    gate, up = torch.ones(3, 1, 2), torch.arange(1.0, 4.0).reshape(3, 1, 1).expand(3, 1, 2)
    down = torch.ones(3, 2, 1)
    router = torch.tensor([[0.0, 1.0, 1.0]]).log_softmax(dim=-1)
    silu = 3 * torch.sigmoid(torch.tensor(3.0))
    weight = 0.5 if is_normalized else math.e / (1 + 2 * math.e)
    expected = weight * silu * 3 * (2 + 3)
    y = ops.mixture_of_experts(x, router, gate, up, down, 2, is_normalized, "silu")
    torch.testing.assert_close(y, torch.full((1, 2), float(expected)))
