"""Number format of the forward pass: fp32, or bf16 and fp16 by autocast; fp16 with loss scaling.

Parameters, gradients and optimizer states stay fp32, so that a running mean at .999 works.
"""

from contextlib import AbstractContextManager

import torch

from adamwprune.config import Precision

FORMATS = {Precision.fp32: torch.float32, Precision.bf16: torch.bfloat16, Precision.fp16: torch.float16}


def choose(precision: Precision, device_type: str) -> Precision:
    """`precision`, or what `auto` means on this device: bf16 on CUDA that has it, else fp32."""
    if precision is not Precision.auto:
        return precision
    has_bf16 = device_type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return Precision.bf16 if has_bf16 else Precision.fp32


class Autocast:
    """The autocast context and the gradient scaler that go with one format on one device."""

    def __init__(self, precision: Precision, device_type: str) -> None:
        self.precision = precision
        self._device_type = device_type
        self.scaler = torch.amp.GradScaler(device_type, enabled=precision is Precision.fp16)

    def __call__(self) -> AbstractContextManager[None]:
        """The context in which the model and its loss run."""
        enabled = self.precision is not Precision.fp32
        return torch.autocast(self._device_type, dtype=FORMATS[self.precision], enabled=enabled)
