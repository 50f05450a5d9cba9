"""`model.weights`: what loads exactly, what is refused, and that nothing in a file is executed."""

import hashlib
import io
import pickle

import pytest
import torch
from safetensors.torch import save_file

from adamwprune.errors import CheckpointError
from adamwprune.models.lenet import LeNet5
from adamwprune.models.resnet import resnet18
from adamwprune.training.checkpoint import model_weights
from tests.helpers import runs

SIZES = {"num_classes": 10, "in_channels": 3, "image_size": 32, "stem": "imagenet", "width": 2}
DIGITS = {"num_classes": 10, "in_channels": 1, "image_size": 28}


def network(seed: int = 0, **changes):
    torch.manual_seed(seed)
    model = resnet18(**{**SIZES, **changes})
    return model.eval()


def drawn():
    """A ResNet whose norms have statistics and scales, as a trained one has."""
    model = network()
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.is_floating_point() and tensor.dim() == 1:
            tensor.data.uniform_(0.5, 1.5)
    return model


def saved(file, state, **options):
    if file.suffix == ".safetensors":
        save_file(state, file)
    else:
        torch.save(state, file, **options)
    return str(file)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("w.safetensors", {}),
        ("w.pth", {}),
        ("w.pt", {"_use_new_zipfile_serialization": False}),  # before torch 1.6
        ("w.bin", {}),
    ],
)
def test_weights_load_to_the_bit(tmp_path, name, options):
    """Parameters and buffers, in each format; where they come from is kept for the run record."""
    source, images = drawn(), torch.randn(2, 3, 32, 32)
    file = saved(tmp_path / name, source.state_dict(), **options)
    target = network(seed=1, weights=file)
    assert not torch.equal(network(seed=1)(images), source(images))
    assert torch.equal(target(images), source(images))
    sha256 = hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()
    assert target.weights_file == {"path": file, "sha256": sha256}


def test_files_without_the_counters_of_batch_norm_load(tmp_path):
    """torchvision's files are of before torch 0.4.1, which introduced them. Anything else may not lack."""
    source = drawn()
    state = source.state_dict()
    older = {name: tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")}
    target = network(seed=1, weights=saved(tmp_path / "w.pth", older))
    assert torch.equal(target.layer1[0].bn1.running_var, source.layer1[0].bn1.running_var)
    assert target.bn1.num_batches_tracked == 0
    del older["bn1.running_mean"]
    with pytest.raises(CheckpointError, match=r"bn1\.running_mean is missing"):
        network(weights=saved(tmp_path / "w.pth", older))


def test_half_precision_loads_and_what_would_be_rounded_does_not(tmp_path):
    """float16 and bfloat16 are float32 values; float64 and integers are not."""
    state = LeNet5(**DIGITS).state_dict()
    for dtype in (torch.float16, torch.bfloat16):
        file = saved(tmp_path / "w.safetensors", {name: t.to(dtype) for name, t in state.items()})
        loaded = LeNet5(**DIGITS, weights=file)
        assert torch.equal(loaded.fc1.weight, state["fc1.weight"].to(dtype).float())
    for dtype in (torch.float64, torch.int8):
        file = saved(tmp_path / "w.safetensors", {name: t.to(dtype) for name, t in state.items()})
        for device in ("cpu", "meta"):
            with torch.device(device), pytest.raises(CheckpointError, match="cannot hold exactly"):
                LeNet5(**DIGITS, weights=file)


# ---------------------------------------------------------------------------- the header alone


@pytest.mark.parametrize("name", ["w.safetensors", "w.pth"])
def test_on_meta_names_and_shapes_are_compared(tmp_path, name):
    """The same line as in a real load, and no memory for the weights."""
    file = saved(tmp_path / name, network().state_dict())
    with torch.device("meta"):
        model = network(weights=file)
    assert all(parameter.is_meta for parameter in model.parameters())
    assert not hasattr(model, "weights_file")
    lines = []
    for device in ("meta", "cpu"):
        with torch.device(device), pytest.raises(CheckpointError) as refused:
            network(weights=file, num_classes=7)
        lines.append(str(refused.value))
    assert lines[0] == lines[1]
    assert "fc.weight has shape (10, 16), the model needs (7, 16) (1 of 2 problems);" in lines[0]


def test_on_meta_no_weight_is_read(tmp_path, monkeypatch):
    """So that 500 MB are not read twice."""
    from adamwprune.models import weights

    file = saved(tmp_path / "w.safetensors", network().state_dict())
    read = []

    class Stream:
        def __init__(self, stream):
            self.stream = stream

        def __getattr__(self, name):
            read.append(name)
            return getattr(self.stream, name)

    class Opened:
        def __init__(self, *arguments, **options):
            self.context = original(*arguments, **options)

        def __enter__(self):
            return Stream(self.context.__enter__())

        def __exit__(self, *error):
            return self.context.__exit__(*error)

    original = weights.safe_open
    monkeypatch.setattr(weights, "safe_open", Opened)
    with torch.device("meta"):
        network(weights=file)
    assert set(read) == {"keys", "get_slice"}
    network(weights=file)
    assert "get_tensor" in read  # the control


# ------------------------------------------------------------------------------------ refusals


class Opens:
    """A pickle that opens a file when it is loaded."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return open, (self.file, "w")


def test_code_in_a_file_is_refused_and_not_run(tmp_path):
    """The control loads the same bytes as Python's pickle does: the file appears."""
    touched = str(tmp_path / "touched")
    torch.save({"conv1.weight": Opens(touched)}, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match="not readable as tensors without running code"):
        LeNet5(**DIGITS, weights=str(tmp_path / "w.pth"))
    assert not (tmp_path / "touched").exists()
    pickle.load(io.BytesIO(pickle.dumps(Opens(touched)))).close()
    assert (tmp_path / "touched").exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.safetensors", None, "there is no such file"),
        ("w.npz", b"", r"must end in \.safetensors, \.pth, \.pt or \.bin"),
        ("w.safetensors", b"no header", "damaged, or no safetensors file"),
        ("w.pth", b"no header", "not readable as tensors"),
        ("folder.pth", "folder", "is a folder; give the file of weights in it"),
        ("w.pt", [torch.ones(2)], "must hold a dictionary from names to tensors"),
        ("w.bin", {"state_dict": {"fc.weight": torch.ones(2)}}, "must hold a dictionary"),
        ("w.pth", {"fc.weight": torch.ones(2)}, "is missing .* weights of another model"),
    ],
)
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_refusals_are_one_line(tmp_path, device, name, content, message):
    """With the key and the path."""
    file = tmp_path / name
    if content == "folder":
        file.mkdir()
    elif isinstance(content, bytes):
        file.write_bytes(content)
    elif content is not None:
        torch.save(content, file)
    with torch.device(device), pytest.raises(CheckpointError, match=message) as refused:
        LeNet5(**DIGITS, weights=str(file))
    assert str(refused.value).startswith(f"model.weights={file}: ")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_truncated_file_is_refused(tmp_path, device):
    """By its header: the preflight sees it."""
    file = tmp_path / "w.safetensors"
    save_file(LeNet5(**DIGITS).state_dict(), file)
    file.write_bytes(file.read_bytes()[:-4])
    with torch.device(device), pytest.raises(CheckpointError, match="damaged"):
        LeNet5(**DIGITS, weights=str(file))


# ----------------------------------------------------------------------------------------- runs


def test_a_run_begins_with_the_weights_and_says_so(tmp_path):
    """Its record has path and hash; the weights are those of the file at step 0."""
    from adamwprune.distributed import joined
    from adamwprune.preflight import check_weights
    from adamwprune.training.build import build_training, describe

    source = LeNet5(**DIGITS)
    file = saved(tmp_path / "w.safetensors", model_weights(source))
    config = runs.configure(*runs.IMAGES, f"model.weights='{file}'")
    check_weights(config)
    with joined("cpu", 60.0) as ranks:
        training = build_training(config, ranks)
    assert all(torch.equal(t, source.state_dict()[n]) for n, t in training.model.state_dict().items())
    assert describe(training)["initial_weights"]["path"] == file
    with pytest.raises(
        CheckpointError, match=r"^model\.weights=\S*other\.safetensors: there is no such file$"
    ):
        check_weights(runs.configure(*runs.IMAGES, f"model.weights='{tmp_path}/other.safetensors'"))


def test_a_run_that_goes_on_needs_the_file_no_more(tmp_path):
    """Its checkpoint has the weights. Control: one without a checkpoint begins anew, and needs it."""
    from adamwprune.preflight import check_weights
    from adamwprune.training.build import model_node

    file = tmp_path / "gone.safetensors"
    overrides = (*runs.IMAGES, f"model.weights='{file}'", f"resume='{tmp_path}'")
    with pytest.raises(CheckpointError, match="no such file"):
        check_weights(runs.configure(*overrides))
    (tmp_path / "checkpoints" / "step_00000004").mkdir(parents=True)
    config = runs.configure(*overrides)
    check_weights(config)
    assert model_node(config) == {**config.model, "weights": None}
