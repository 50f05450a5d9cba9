"""`python -m adamwprune.export`: from a run's checkpoint to files that give the same network."""

import json
import subprocess
import sys

import pytest
import torch

from adamwprune.command_line import exit_codes
from adamwprune.composition import CONF_DIR
from adamwprune.export.__main__ import FORMATS, main
from adamwprune.export.encodings import ENCODINGS
from adamwprune.export.files import DENSE, equal, load
from adamwprune.training.checkpoint import load_weights_, model_weights
from tests.export.networks import MODELS, inputs_of, make_model, make_run
from tests.helpers import runs


def export(*arguments):
    """The exit code of the command."""
    try:
        with exit_codes():
            main([str(argument) for argument in arguments])
    except SystemExit as left:
        return left.code
    return 0


def files(run, step):
    return {path.name: path for path in (run / "export" / f"step_{step:08d}").iterdir()}


# ------------------------------------------------------------------------------ reload (A14)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.inference_mode()
def test_reload_gives_the_same_logits(tmp_path, name, dtype):
    """Of each format, bit for bit: tied embeddings, convolutions, batch norms and their counters."""
    model = make_model(name, "2:4", dtype)
    model.to(memory_format=torch.channels_last if "resnet" in name else torch.contiguous_format)
    run = make_run(tmp_path / "run", model, 7)
    inputs = inputs_of(model)
    inputs = inputs if inputs.dtype is torch.int64 else inputs.to(dtype)
    expected = model(inputs)
    assert export(run) == 0
    exported = [path for file, path in files(run, 7).items() if file.endswith(".safetensors")]
    assert {path.stem for path in exported} >= {"dense", "bitmask", "2-4"}
    for path in exported:
        weights = load(path)
        assert equal(weights, model_weights(model))
        other = MODELS[name]().to(dtype).eval()
        other.to(memory_format=torch.channels_last if "resnet" in name else torch.contiguous_format)
        assert not torch.equal(other(inputs), expected)  # the control: it is another network before
        load_weights_(other, weights)
        assert torch.equal(other(inputs), expected)
        state = {n: t for n, t in other.state_dict().items() if n != "lm_head.weight"}  # tied
        assert equal(state, weights)


def test_csr_gives_the_same_weights(tmp_path):
    """CSR needs more zeros than the 2:4 pattern has."""
    model = make_model("gpt2", 0.9)
    run = make_run(tmp_path / "run", model, 7)
    assert export(run, "--format", "csr") == 0
    assert files(run, 7).keys() == {"csr.safetensors"}
    assert equal(load(files(run, 7)["csr.safetensors"]), model_weights(model))


# ----------------------------------------------------------------------------- what is written


def test_a_bitmask_file_is_smaller_by_the_sparsity(tmp_path, capsys):
    """LeNet-5 Caffe at 90 %, 98 % of it prunable: about a tenth and a bit per weight; printed as measured."""
    run = make_run(tmp_path / "run", make_model("lenet5-caffe"), 7)
    assert export(run) == 0
    sizes = {name: path.stat().st_size for name, path in files(run, 7).items()}
    assert 0.13 < sizes["bitmask.safetensors"] / sizes["dense.safetensors"] < 0.16
    assert 0.2 < sizes["csr.safetensors"] / sizes["dense.safetensors"] < 0.24
    printed = capsys.readouterr().out
    assert all(f"{sizes[f'{name}.safetensors']:,}" in printed for name in ("dense", "bitmask", "csr"))
    assert "2-4.safetensors" not in sizes
    line = next(line for line in printed.splitlines() if line.startswith("2:4"))
    assert "groups of 4 have 3 or more non-zeros" in line


def test_non_zeros_are_counted(tmp_path):
    """dense.json against the network."""
    model = make_model("resnet18")
    run = make_run(tmp_path / "run", model, 7)
    assert export(run, "--format", "dense") == 0
    content = json.loads(files(run, 7)["dense.json"].read_text())
    weights = model_weights(model)
    assert {name: entry["nonzero"] for name, entry in content["tensors"].items()} == {
        name: int((tensor != 0).sum()) for name, tensor in weights.items()
    }
    assert content["entries"] == sum(tensor.numel() for tensor in weights.values())
    assert content["sparsity"] == pytest.approx(0.9, abs=0.01)
    assert (content["step"], content["run_id"]) == (7, "0123456789ab")


def test_a_dense_run_is_exported_dense(tmp_path, capsys):
    """Nothing becomes smaller: said, not written; asked for by name, exit 2."""
    run = make_run(tmp_path / "run", make_model("lenet5", 0.0), 7)
    assert export(run) == 0
    assert files(run, 7).keys() == {"dense.safetensors", "dense.json"}
    assert "would replace" in capsys.readouterr().out
    assert export(run, "--format", "bitmask") == 2
    assert "makes no tensor smaller" in capsys.readouterr().err


def test_again_is_the_same(tmp_path):
    """An export is a function of its checkpoint: a second one changes nothing."""
    run = make_run(tmp_path / "run", make_model("lenet5"), 7)
    assert export(run) == 0
    before = {name: path.read_bytes() for name, path in files(run, 7).items()}
    assert export(run) == 0
    assert {name: path.read_bytes() for name, path in files(run, 7).items()} == before


def test_a_trained_run_has_the_zeros_of_its_summary(tmp_path):
    """What training counted, the export counts: a real run, pruned by state."""
    run = runs.run(tmp_path / "run", *runs.IMAGES, *runs.BUSY, "optimizer=adamwprune", "trainer.max_steps=8")
    assert export(run, "--format", "dense") == 0
    content = json.loads(files(run, 8)["dense.json"].read_text())
    summary = runs.summary(run)
    assert content["sparsity"] == summary["sparsity"]["achieved"]
    assert (content["nonzero"], content["entries"]) == (
        summary["parameters"]["nonzero"],
        summary["parameters"]["total"],
    )


# --------------------------------------------------------------------------- which checkpoint


def test_the_newest_whole_checkpoint_is_taken(tmp_path):
    """Checksums are verified: a damaged newest one is passed over, and refused where it is asked for."""
    run = make_run(tmp_path / "run", make_model("lenet5"), 7, 9)
    assert export(run, "--format", "dense") == 0
    assert (run / "export" / "step_00000009").exists()
    damaged = run / "checkpoints" / "step_00000009" / "model.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"\1")
    assert export(run, "--format", "dense", "--output", tmp_path / "out") == 0
    assert json.loads((tmp_path / "out" / "dense.json").read_text())["step"] == 7
    assert export(run, "--checkpoint", 9) == 5
    assert export(run, "--checkpoint", 7) == 0


def test_output_keeps_what_is_there(tmp_path, capsys):
    """Another checkpoint's files in the same folder are not replaced: exit 2, one line."""
    run = make_run(tmp_path / "run", make_model("lenet5"), 7, 9)
    assert export(run, "--format", "dense", "--output", tmp_path / "out", "--checkpoint", 7) == 0
    assert export(run, "--format", "dense", "--output", tmp_path / "out") == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert json.loads((tmp_path / "out" / "dense.json").read_text())["step"] == 7


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["nowhere"], 5, "no such folder"),
        ([".", "--format", "zip"], 2, "invalid choice: 'zip'"),
        ([".", "--checkpoint", "last"], 2, "invalid int"),
        ([], 2, "required: RUN"),
        (["empty"], 5, "no run there"),
        (["sweep"], 5, "one by one"),
        (["run"], 5, "no valid checkpoint"),
        (["run", "--checkpoint", "3"], 5, "has the steps none"),
    ],
)
def test_errors_are_one_line_with_their_code(tmp_path, monkeypatch, capsys, arguments, code, words):
    """Nothing is written by any of them."""
    make_run(tmp_path / "run", make_model("lenet5"))
    for name in ("empty", "sweep"):
        (tmp_path / name).mkdir()
    (tmp_path / "sweep" / "sweep.jsonl").write_text("")
    monkeypatch.chdir(tmp_path)
    assert export(*arguments) == code
    error = capsys.readouterr().err
    assert error.startswith(f"error[{code}]: ")
    assert error.count("\n") == 1
    assert words in error
    assert not list(tmp_path.glob("**/export"))


def test_formats_of_the_command_line_are_those_there_are():
    """Named twice, since the command line is checked before torch is imported."""
    assert (DENSE, *ENCODINGS) == FORMATS


@pytest.mark.parametrize(
    ("arguments", "code"), [(["--help"], 0), (["nowhere"], 5), (["--format", "zip", "."], 2)]
)
def test_a_command_line_is_checked_without_torch(arguments, code):
    """Whether torch is imported is asked of the process at its end."""
    script = (
        "import atexit, runpy, sys\n"
        "atexit.register(lambda: print('torch' in sys.modules))\n"
        "runpy.run_module('adamwprune.export', run_name='__main__', alter_sys=True)\n"
    )
    command = [sys.executable, "-c", script, *arguments]
    done = subprocess.run(command, cwd=CONF_DIR.parent, capture_output=True, text=True, timeout=60)
    assert done.returncode == code, done.stderr
    assert done.stdout.strip().splitlines()[-1] == "False"
