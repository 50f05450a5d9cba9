"""The loss that is trained on."""

import pytest
import torch

from adamwprune.training.evaluation import cross_entropy


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_label_smoothing_is_a_mixture_of_the_target_and_all_classes(smoothing):
    torch.manual_seed(0)
    logits, targets = torch.randn(2, 5, 7, dtype=torch.float64), torch.randint(7, (2, 5))
    surprise = logits.exp().sum(-1, keepdim=True).log() - logits
    of_target = surprise.gather(-1, targets[..., None]).mean()
    expected = (1 - smoothing) * of_target + smoothing * surprise.mean()
    torch.testing.assert_close(cross_entropy(logits, targets, smoothing=smoothing), expected)
    assert smoothing == 0.0 or not torch.isclose(expected, of_target, rtol=1e-3)
