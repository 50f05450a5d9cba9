"""Tiny runs in which every part of the state matters: models, optimizers and prunings, each with each.

Sixty steps over several epochs: rows, evaluations and mask updates at odd intervals, a sparsity ramp
over the middle half, batches that accumulate, dropout, augmentation, two loader threads, an average of the
weights, a reset of SPAM's moments.
"""

from tests.helpers.runs import IMAGES, TOKENS

STEPS = 60
BUSY = (
    f"trainer.max_steps={STEPS}",
    "trainer.log_every=3",
    "trainer.eval_every=7",
    "lr_schedule.warmup_steps=3",
    "hardware.micro_batch_size=8",
    "hardware.threads=1",
)
MODELS = {
    "lenet5": (*IMAGES, *BUSY),
    "resnet18": (
        *IMAGES,
        *BUSY,
        "model=resnet18",
        "model.width=4",
        "data.image_size=12",
        "hardware.micro_batch_size=16",
    ),
    "gpt2-nano": (*TOKENS, *BUSY, "data.num_tokens=3000", "hardware.micro_batch_size=4"),
    "lenet5_caffe": (
        *IMAGES,
        *BUSY,
        "model=lenet5_caffe",
        "data.crop_padding=2",
        "data.horizontal_flip=0.5",
        "data.cutout=5",
        "hardware.num_workers=2",
        "trainer.ema_decay=0.9",
        "trainer.label_smoothing=0.1",
    ),
}
OPTIMIZERS = {
    "sgd": ("optimizer=sgd",),
    "adam": ("optimizer=adam",),
    "adamw": ("optimizer=adamw",),
    # Moments are reset at 31, in the ramp. A criterion that reads them needs 3 / (1 - .9) steps before.
    "adamwspam": (
        "optimizer=adamwspam",
        "optimizer.betas=[0.9,0.9]",
        "optimizer.reset_every=31",
        "optimizer.warmup_steps=4",
    ),
}
PRUNINGS = {
    "none": (),
    "magnitude": ("pruning=magnitude", "pruning.update_every=2"),
    "movement": ("pruning=movement", "pruning/mode=ste", "pruning.update_every=2"),
    "state": ("pruning=state", "pruning.update_every=2", "pruning/scope=global"),
}


def overrides_of(model: str, optimizer: str, pruning: str) -> tuple[str, ...]:
    """The overrides of a combination, each key once: the last one counts."""
    every = (*MODELS[model], *OPTIMIZERS[optimizer], *PRUNINGS[pruning])
    return tuple({override.partition("=")[0]: override for override in every}.values())


def can_train(optimizer: str, pruning: str) -> bool:
    """Whether there is such a run: pruning by the second moment is refused (exit 2) where SGD keeps none."""
    return (optimizer, pruning) != ("sgd", "state")
