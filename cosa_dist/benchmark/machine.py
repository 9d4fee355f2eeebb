"""A described machine: what a plan assumes of nodes, workers, arithmetic, memory and network."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError

from cosa_dist.config.errors import ConfigError, describe, nearest
from cosa_dist.config.loading import read_yaml
from cosa_dist.config.method import Fraction, NonNegative, Positive, Section
from cosa_dist.config.paths import place
from cosa_dist.config.schema import Count


class Machine(Section):
    """One kind of node, a number of them, and what connects them."""

    name: str = "unnamed"
    """for the table"""
    nodes: Count = 1
    """most nodes"""
    gpus_per_node: Count = 1
    """GPUs of a node (on a machine without any: worker processes)"""
    fp32_tflops: Positive = 20.0
    """peak of one GPU's float32 matrix products at the precision in use, 10^12 operations per second"""
    bf16_tflops: NonNegative = 0.0
    """peak in bf16 (0: the GPU has none)"""
    mfu: Annotated[float, Field(gt=0, le=1)] = 0.35
    """share of the peak that the networks reach"""
    warmup_mfu: Annotated[float, Field(ge=0, le=1)] = 0.0
    """the same in the loss warm-up (0: as in co-training)"""
    memory_gb: NonNegative = 0.0
    """memory of one GPU in GB (0: not checked)"""
    bandwidth_gbs: Positive = 20.0
    """GB/s that one GPU sends to another of its node"""
    node_bandwidth_gbs: Positive = 10.0
    """GB/s that a node sends to another, shared by its GPUs' one ring"""
    latency_us: NonNegative = 20.0
    """microseconds of one message"""
    overlap: Fraction = 0.0
    """share of the exchange of gradients that hides behind the backward pass"""


KNOWN_MACHINES: dict[str, dict[str, Any]] = {
    "rtx3090": {"fp32_tflops": 35.6, "bf16_tflops": 71.0, "memory_gb": 24, "bandwidth_gbs": 10},
    "a100": {"fp32_tflops": 19.5, "bf16_tflops": 312.0, "memory_gb": 80, "bandwidth_gbs": 250},
    "h100": {"fp32_tflops": 67.0, "bf16_tflops": 989.0, "memory_gb": 80, "bandwidth_gbs": 400},
}
"""Data sheets' dense peaks and memory; bandwidths are round numbers of PCIe 4 and of NVLink."""
THIS = "this"


def build_machine(values: dict[str, Any], source: str) -> Machine:
    """Validate a description.

    Raises:
        ConfigError: naming every wrong key or value.
    """
    try:
        return Machine.model_validate(values)
    except ValidationError as error:
        lines = describe(error, Machine.model_fields)
        raise ConfigError("\n".join(f"{source}: {line}" for line in lines)) from None


def read_machine(name_or_file: str, changes: dict[str, Any]) -> Machine:
    """A known GPU by name, or a YAML file, with some fields changed.

    Args:
        name_or_file: a key of `KNOWN_MACHINES`, or a file.
        changes: fields that win over the description.

    Raises:
        ConfigError: no such name or file, or a wrong field.
    """
    if name_or_file in KNOWN_MACHINES:
        values = {"name": name_or_file, **KNOWN_MACHINES[name_or_file]}
    elif name_or_file.endswith((".yaml", ".yml")):
        values = {"name": Path(name_or_file).stem, **read_yaml(place(name_or_file))}
    else:
        names = [*KNOWN_MACHINES, THIS]
        raise ConfigError(
            f"--machine {name_or_file}: no such machine{nearest(name_or_file, names)}; give one of "
            f"{', '.join(names)} or a YAML file"
        )
    return build_machine({**values, **changes}, f"machine {name_or_file}")
