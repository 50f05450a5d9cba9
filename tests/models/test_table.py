"""`python -m adamwprune.models`: counts that the papers and profilers give."""

import pytest
import torch

from adamwprune.composition import CONF_DIR
from adamwprune.models import __main__ as table
from adamwprune.models.gpt2 import GPT2


def test_the_operations_of_gpt2_are_those_of_its_formula():
    """Counted in matrix products and attention, against (2 N + 4 L C T), N with biases and norms: 0.1 %."""
    row = table.describe(["model=gpt2"])
    with torch.device("meta"):
        model = GPT2(vocab_size=50257, block_size=1024, n_layer=12, n_head=12, n_embd=768, dropout=0.0)
    assert row.flops == pytest.approx(model.flops_per_token() / 3, rel=1e-3)
    assert (row.parameters, row.prunable) == (124_439_808, 12 * 12 * 768**2)
    assert row.cells()[3:] == ["0.2848", "token", "1024", "finewebedu"]


@pytest.mark.slow
def test_the_operations_of_resnets_are_the_published_ones():
    """1.8 and 4.1 billion multiplications with additions at 224 pixels (torchvision's), 2 FLOPs each."""
    for model, gflops in (("resnet18", 3.63), ("resnet50", 8.18)):
        row = table.describe([f"model={model}", "data=imagenet", "model.stem=imagenet"])
        assert row.flops / 1e9 == pytest.approx(gflops, abs=0.01)


@pytest.mark.slow
def test_the_documented_table_is_the_printed_one(capsys):
    """docs/models.md holds the output as it is."""
    table.main([])
    page = (CONF_DIR.parent / "docs" / "models.md").read_text()
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) > len(list((CONF_DIR / "model").glob("*.yaml")))
    assert [line for line in printed if line not in page] == []
