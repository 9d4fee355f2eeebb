"""Hard splits against a loop over all cuts of the raw values."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from cosa_dist.assignment.mixture import best_split, split_likelihoods

CENTRES = (torch.arange(40) + 0.5).double() / 40


def loop_likelihoods(counts, smallest, regularisation=1e-6):
    values = np.repeat(CENTRES.numpy(), counts.numpy())
    result = []
    for cut in range(len(CENTRES) - 1):
        border = (CENTRES[cut] + CENTRES[cut + 1]).item() / 2
        total = 0.0
        for part in (values[values < border], values[values >= border]):
            if len(part) <= smallest * len(values):
                total = -math.inf
                break
            share, variance = len(part) / len(values), part.var() + regularisation
            total += share * (math.log(share) - 0.5 * math.log(variance) - 0.5)
        result.append(total)
    return torch.tensor(result).double()


def counts_of(seed=0):
    generator = np.random.default_rng(seed)
    values = np.concatenate([generator.normal(0.3, 0.08, 400), generator.normal(0.75, 0.1, 250)])
    return torch.from_numpy(np.histogram(values, np.linspace(0, 1, 41))[0])


def test_every_cut_equals_the_loop():
    counts = counts_of()
    likelihood, moments = split_likelihoods(counts, CENTRES, smallest=0.02)
    torch.testing.assert_close(likelihood, loop_likelihoods(counts, 0.02), rtol=1e-6, atol=1e-6)
    assert moments[20, 0, 0].item() == pytest.approx(counts[:21].sum().item() / counts.sum().item())


def test_the_best_cut_lies_between_the_hills_for_several_histograms_at_once():
    both = torch.stack([counts_of(0), counts_of(1)])
    cut, usable, parts = best_split(both, CENTRES)
    for row in range(2):
        assert cut[row] == loop_likelihoods(both[row], 0.02).argmax()
        assert 0.45 < CENTRES[cut[row]] < 0.6
    assert usable.all()
    torch.testing.assert_close(parts.mean, torch.tensor([[0.3, 0.75]] * 2).double(), atol=0.03, rtol=0)


def test_a_narrow_spike_is_no_part():
    values = np.random.default_rng(0).normal(0.4, 0.1, 600)
    counts = torch.from_numpy(np.histogram(values, np.linspace(0, 1, 41))[0])
    counts[39] = 8  # fewer than 2 per cent in one bin: without a limit its likelihood wins
    total = counts.sum()
    unlimited = split_likelihoods(counts, CENTRES, smallest=0.0, regularisation=1e-30)[0].argmax()
    assert counts[unlimited + 1 :].sum() == 8
    assert counts[best_split(counts, CENTRES)[0] + 1 :].sum() > 0.02 * total


@pytest.mark.parametrize("counts", [torch.zeros(40), torch.eye(40)[5] * 9])
def test_one_bin_cannot_be_split(counts):
    assert not best_split(counts, CENTRES)[1]
