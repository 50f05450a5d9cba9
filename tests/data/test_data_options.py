"""conf/data: each option names a target that it fits, says what its keys mean, and builds."""

import itertools
import re
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from adamwprune import targets
from adamwprune.data.base import Data

OPTIONS = sorted((Path(__file__).parents[2] / "conf" / "data").glob("*.yaml"))
# These have tests of their own.
TEXTS = {"finewebedu", "openwebtext", "tinystories", "text", "debian_docs"}
NOT_HERE = {"mnist", "fashion_mnist", "cifar10", "cifar100", "imagenet", "images", *TEXTS}
SHAPES = {"images": {"num_classes", "channels", "image_size"}, "tokens": {"vocab_size", "block_size"}}


def node_of(option, **changes):
    root = OmegaConf.create({"seed": 0, "recipe": {"block_size": 64}, "data": OmegaConf.load(option)})
    return {**OmegaConf.to_container(root, resolve=True)["data"], **changes}


@pytest.mark.parametrize("option", OPTIONS, ids=lambda option: option.stem)
def test_option_fits_its_target(option):
    """Every key, type and range, and all required keys; a misspelt key is found, so the check works."""
    node = node_of(option)
    assert targets.problems(node, "data") == []
    assert targets.problems({**node, "chanels": 1}, "data")
    assert node.keys() == {"_target_", *targets.read_parameters(node["_target_"])}


@pytest.mark.parametrize("option", OPTIONS, ids=lambda option: option.stem)
def test_option_has_the_shape_keys_of_its_kind(option):
    """Models interpolate them, so an option has all of one kind and none of the other."""
    keys = node_of(option).keys() & set.union(*SHAPES.values())
    assert keys in SHAPES.values()


@pytest.mark.parametrize("option", OPTIONS, ids=lambda option: option.stem)
def test_option_explains_every_key(option):
    """It opens with a comment, and each block of keys stands below one; no line is longer than 110."""
    lines = option.read_text(encoding="utf-8").splitlines()
    assert lines[0].startswith("# ")
    assert max(map(len, lines)) <= 110
    for above, line in itertools.pairwise(lines):
        if re.match(r"[a-z_]+:", line):
            assert above, f"{option.name}: {line} has no comment"


@pytest.mark.parametrize("option", OPTIONS, ids=lambda option: option.stem)
def test_option_builds(option):
    """What ships or is made up: from the YAML alone; the rest has tests of its own."""
    if option.stem in NOT_HERE:
        pytest.skip("is not at hand")
    data = targets.build(node_of(option), "data")()
    assert isinstance(data, Data)
    assert data.name == option.stem
    assert re.fullmatch("[0-9a-f]{64}", data.fingerprint)
    assert min(len(data.train), len(data.val)) > 0


def test_checking_options_imports_no_torch():
    """So that --help, --cfg and a wrong key cost no 2 s; importing the package of data is free as well."""
    code = (
        "import sys, adamwprune.data, adamwprune.assets\n"
        "from adamwprune import targets\n"
        "assert targets.read_parameters('adamwprune.data.hub_text.hub_text')\n"
        "assert not {'torch', 'numpy', 'datasets', 'PIL', 'tiktoken'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_shipped_data_needs_no_hub_packages():
    """datasets and pillow are imported where a hub or image files are read, not before."""
    code = (
        "import sys\n"
        "from adamwprune.data import fashion_mnist, hub_text, mnist, synthetic, text\n"
        "text.shakespeare(vocab_size=50257, block_size=64, seed=0)\n"
        "assert not {'datasets', 'PIL', 'pyarrow', 'huggingface_hub'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
