"""The numbers of a run have not changed."""

import numpy as np
import torch

from tests.golden.curve import COLUMNS, curve, read


def test_the_golden_curve_is_repeated():
    """Relative and absolute 1e-3: other processors add in another order; a changed formula moves more.

    Sparsity is counted, so it must be equal.
    """
    threads = torch.get_num_threads()
    now, kept = curve(), read()
    torch.set_num_threads(threads)
    for name in COLUMNS:
        tolerance = 0 if name in ("step", "sparsity/global") else 1e-3
        values = [[row[name] for row in rows] for rows in (now, kept)]
        np.testing.assert_allclose(*values, rtol=tolerance, atol=tolerance, err_msg=name)


def test_another_weight_decay_would_be_noticed(monkeypatch):
    """Control: another weight decay leaves the tolerance within the first rows."""
    from tests.golden import curve as golden

    slower = (*golden.IMAGES, "recipe.weight_decay=0.1")
    monkeypatch.setattr(golden, "IMAGES", slower)
    losses = [row["train/loss"] for row in curve()][:8]
    kept = [row["train/loss"] for row in read()][:8]
    assert not np.allclose(losses, kept, rtol=1e-3, atol=1e-3)
