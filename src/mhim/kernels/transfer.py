"""From the host to a device, without waiting where that is safe."""

from __future__ import annotations

import torch
from torch import Tensor


def to_device(values: Tensor, device: torch.device) -> Tensor:
    """The values on the device.

    CUDA takes a copy of what lies in ordinary memory before it returns, and goes on by itself. MPS may read the
    memory later, when it has been freed; there the copy is waited for.
    """
    return values.to(device, non_blocking=device.type not in ("cpu", "mps"))
