"""`--format huggingface`: transformers loads it, and computes what the run's model computes."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from adamwprune import run_directory
from adamwprune.command_line import exit_codes
from adamwprune.export.__main__ import main
from adamwprune.models.gpt2 import GPT2
from tests.export.networks import make_run

SIZES = {"vocab_size": 50, "block_size": 16, "n_layer": 2, "n_head": 2, "n_embd": 32, "dropout": 0.1}


def export(*arguments):
    """The exit code of the command."""
    try:
        with exit_codes():
            main([str(argument) for argument in arguments])
    except SystemExit as left:
        return left.code
    return 0


def pruned_run(folder, *, data=None, target="adamwprune.models.gpt2.GPT2", **changes):
    """A run of a GPT-2 that has zeros, padding and a file of weights that is gone."""
    sizes = {**SIZES, **changes}
    model = GPT2(**sizes).eval()
    for parameter in model.transformer.h.parameters():
        parameter.data.add_(torch.randn_like(parameter), alpha=0.02)
        parameter.data.masked_fill_(torch.rand(parameter.shape) < 0.5, 0.0)
    run = make_run(folder, model, 7)
    record = run_directory.read_json(run / run_directory.RECORD)
    record["config"] = {
        "model": {"_target_": target, **sizes, "weights": "gone.safetensors"},
        "data": data or {},
    }
    run_directory.write_json(run / run_directory.RECORD, record)
    return run, model


@pytest.mark.parametrize("changes", [{"pad_vocab_to_multiple_of": 64}, {"bias": False}], ids=str)
def test_transformers_loads_it_and_gives_our_logits(tmp_path, changes, capsys):
    """from_pretrained reads the folder alone; 1e-5 as for weights that were copied by hand."""
    transformers = pytest.importorskip("transformers")
    run, model = pruned_run(tmp_path / "run", **changes)
    assert export(run, "--format", "huggingface") == 0
    folder = run / "export" / "step_00000007" / "huggingface"
    assert {path.name for path in folder.iterdir()} == {"model.safetensors", "config.json"}
    assert str(folder) in capsys.readouterr().out
    theirs, report = transformers.GPT2LMHeadModel.from_pretrained(folder, output_loading_info=True)
    assert not any(report[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert theirs.dtype is torch.float32
    assert theirs.config.attn_pdrop == theirs.config.resid_pdrop == theirs.config.embd_pdrop == 0.1
    tokens = torch.randint(50, (2, 16))
    with torch.no_grad():
        expected = model(tokens)
        torch.testing.assert_close(theirs.eval()(tokens).logits, expected, rtol=0, atol=1e-5)
    zeros = sum(int((parameter == 0).sum()) for parameter in theirs.transformer.h.parameters())
    assert zeros >= sum(int((parameter == 0).sum()) for parameter in model.transformer.h.parameters())
    # The way back: a GPT2 that begins with the exported file.
    again = GPT2(**{**SIZES, "dropout": 0.0}, weights=str(folder / "model.safetensors")).eval()
    torch.testing.assert_close(again(tokens), expected, rtol=0, atol=1e-5)


def test_a_wrong_layout_would_be_noticed(tmp_path):
    """Control: with a square matrix not transposed transformers loads without a word, to other logits."""
    transformers = pytest.importorskip("transformers")
    run, model = pruned_run(tmp_path / "run")
    assert export(run, "--format", "huggingface") == 0
    file = run / "export" / "step_00000007" / "huggingface" / "model.safetensors"
    weights = load_file(file)
    name = "transformer.h.0.attn.c_proj.weight"
    weights[name] = weights[name].t().contiguous()
    save_file(weights, file, metadata={"format": "pt"})
    theirs = transformers.GPT2LMHeadModel.from_pretrained(file.parent).eval()
    tokens = torch.randint(50, (2, 16))
    with torch.no_grad():
        assert (theirs(tokens).logits - model(tokens)).abs().max() > 1e-3


def test_the_vocabulary_of_gpt2_ends_texts_with_50256(tmp_path):
    """So that generate() stops there; another vocabulary has no such token."""
    for vocab_size, token in ((50257, 50256), (50, None)):
        run, _ = pruned_run(tmp_path / str(vocab_size), vocab_size=vocab_size, n_embd=2)
        assert export(run, "--format", "huggingface", "--output", tmp_path / f"o{vocab_size}") == 0
        config = json.loads((tmp_path / f"o{vocab_size}" / "config.json").read_text())
        assert config["eos_token_id"] == config["bos_token_id"] == token


def test_exporting_again_writes_the_same_bytes_and_never_others(tmp_path, capsys):
    """As for every format."""
    run, _ = pruned_run(tmp_path / "run")
    out = tmp_path / "out"
    assert export(run, "--format", "huggingface", "--output", out) == 0
    first = {path.name: path.read_bytes() for path in out.iterdir()}
    assert export(run, "--format", "huggingface", "--output", out) == 0
    assert {path.name: path.read_bytes() for path in out.iterdir()} == first
    other, _ = pruned_run(tmp_path / "other")
    assert export(other, "--format", "huggingface", "--output", out) == 2
    assert "another file of this name is there" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in out.iterdir()} == first


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": {"remap_vocab": True}}, "data.remap_vocab=true, so no tokenizer fits"),
        (
            {"target": "adamwprune.models.lenet.LeNet5"},
            "is for GPT-2, this run trained adamwprune.models.lenet",
        ),
        ({"target": "my.own.GPT2"}, "is for GPT-2, this run trained my.own.GPT2; use --format dense"),
    ],
)
def test_what_transformers_would_not_be_is_refused(tmp_path, capsys, changes, message):
    """Exit code 2, one line, nothing written."""
    run, _ = pruned_run(tmp_path / "run", **changes)
    assert export(run, "--format", "huggingface") == 2
    assert message in capsys.readouterr().err
    assert not (run / "export").exists()
