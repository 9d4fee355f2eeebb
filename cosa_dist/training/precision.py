"""Which number format the networks compute in, and Accelerate set up for it."""

from __future__ import annotations

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs


def resolve_precision(setting: str, device_type: str) -> str:
    """Turn `auto|fp32|bf16` into Accelerate's `no` or `bf16`; `auto` is bf16 on GPUs that have it."""
    gpu = device_type == "cuda"
    # Older GPUs only emulate bf16, slower than float32.
    has_bf16 = not gpu or torch.cuda.is_bf16_supported(including_emulation=False)
    if setting == "bf16" and not has_bf16:
        raise ValueError("training.precision bf16: this GPU has no bf16; use fp32")
    return "bf16" if setting == "bf16" or (setting == "auto" and gpu and has_bf16) else "no"


def autocast(setting: str, device: torch.device) -> torch.autocast:
    """The context in which a trained network runs outside training, in the format of its run's setting."""
    enabled = resolve_precision(setting, device.type) == "bf16"
    return torch.autocast(device.type, torch.bfloat16, enabled=enabled)


def make_accelerator(precision: str, world_size: int, cpu: bool) -> Accelerator:
    """Return an Accelerator of the precision `auto`, `fp32` or `bf16` that has seen all ranks."""
    accelerator = Accelerator(
        cpu=cpu,
        mixed_precision=resolve_precision(precision, "cpu" if cpu else "cuda"),
        # The loss warm-up leaves the decoder without gradients; a view saves a copy of all gradients.
        kwargs_handlers=[
            DistributedDataParallelKwargs(find_unused_parameters=True, gradient_as_bucket_view=True)
        ],
    )
    # On the CPU Accelerate ignores a running process group unless told so: every rank would train alone.
    if accelerator.num_processes != world_size:
        raise RuntimeError(f"Accelerate sees {accelerator.num_processes} processes, the run has {world_size}")
    return accelerator
