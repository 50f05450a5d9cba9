"""GPT-2 as Hugging Face's transformers loads it: model.safetensors and config.json in one folder.

    RUN/export/step_00001000/huggingface/    for GPT2LMHeadModel.from_pretrained(FOLDER)

No tokenizer is written: GPT-2's own fits, wherever it comes from. Where the run renumbered its
vocabulary none does, so that is refused.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from adamwprune.errors import ConfigError
from adamwprune.export.files import DENSE, Export, write
from adamwprune.export.inference import without_weights
from adamwprune.export.run import Source
from adamwprune.models.gpt2 import GPT2
from adamwprune.models.hugging_face import config_json, to_hugging_face
from adamwprune.run_directory import write_json
from adamwprune.targets import build
from adamwprune.training.checkpoint import load_weights_


def export_hugging_face(source: Source, folder: Path) -> dict[str, Any]:
    """Write both files into `folder`; their config.json. Padding of the vocabulary is left out.

    Raises:
        ConfigError: the run is not of a GPT-2, or renumbered its tokens, or other files are there.
        DiskError: the file system refuses.
    """
    config = source.record["config"]
    check_supported(config)
    model = build(without_weights(config["model"]), "model")()
    load_weights_(model, source.weights)
    weights = to_hugging_face(model)
    facts = {key: str(value) for key, value in source.counts().items()}
    write(Export(DENSE, weights, facts=facts), folder / "model.safetensors", weights=weights)
    write_json(folder / "config.json", described := config_json(model))
    return described


def check_supported(config: Mapping[str, Any]) -> None:
    """Refuse what transformers' GPT2LMHeadModel, or its tokenizer, would not be.

    Raises:
        ConfigError: with what to do instead.
    """
    target = config["model"]["_target_"]
    if target != f"{GPT2.__module__}.{GPT2.__name__}":
        raise ConfigError(
            f"--format huggingface: is for GPT-2, this run trained {target}; use --format {DENSE}, a "
            "safetensors file under the model's own names (a ResNet's are torchvision's)"
        )
    if config["data"].get("remap_vocab"):
        raise ConfigError(
            f"--format huggingface: this run has data.remap_vocab=true, so no tokenizer fits its ids; train "
            f"with data.remap_vocab=false data.vocab_size=50257, or use --format {DENSE}"
        )
