"""The device that a command line names."""

from __future__ import annotations

import torch


def device_named(text: str) -> torch.device:
    """`auto` (a GPU if there is one), `cpu`, `cuda` or `cuda:1`.

    Raises:
        ValueError: no such device here.
    """
    if text == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(text)
    except RuntimeError:
        raise ValueError(f"--device {text}: give auto, cpu, cuda or cuda:1") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"--device {text}: this machine has {torch.cuda.device_count()} GPUs")
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"--device {text}: give auto, cpu, cuda or cuda:1")
    return device
