"""How fast the machine multiplies matrices: what the model's operations are compared with.

The rate is that of PyTorch's own product of large square matrices, in the number format and precision of the
measurement, so a share of it (MFU) says how near the networks come to what the library can do here, on a CPU
too. The best round counts: the peak is a property of the machine, not of its load.
"""

from __future__ import annotations

import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import torch

from cosa_dist.benchmark.stopwatch import in_turn, synchroniser

SIDE_ON_CPU = 2048
SIDE_ON_GPU = 8192


def matrix_rate(
    device: torch.device, dtype: torch.dtype = torch.float32, side: int = 0, rounds: int = 8
) -> float:
    """Operations per second of a matrix product, the best of some rounds.

    Args:
        device: where to multiply.
        dtype: number format.
        side: rows and columns; 0 chooses by the device.
        rounds: products that count.
    """
    side = side or (SIDE_ON_GPU if device.type == "cuda" else SIDE_ON_CPU)
    left = torch.rand(side, side, device=device).to(dtype)
    right = torch.rand(side, side, device=device).to(dtype)
    result = torch.empty_like(left)
    seconds = in_turn(
        {"product": lambda: torch.mm(left, right, out=result)}, rounds, synchroniser(device), warm_up=2
    )
    return 2 * side**3 / min(seconds["product"])


def _busy_rate(threads: int, precision: str, seconds: float) -> float:
    """Mean rate of one process over some seconds; runs in a process of its own."""
    torch.set_num_threads(threads)
    torch.set_float32_matmul_precision(precision)
    side = SIDE_ON_CPU // 2
    left, right = torch.rand(side, side), torch.rand(side, side)
    torch.mm(left, right)
    products, started = 0, time.perf_counter()
    while time.perf_counter() - started < seconds:
        torch.mm(left, right)
        products += 1
    return products * 2 * side**3 / (time.perf_counter() - started)


def shared_rate(processes: int, threads: int, seconds: float = 2.0) -> float:
    """Mean rate of each of several CPU processes that multiply at the same time.

    Args:
        processes: how many.
        threads: of each.
        seconds: how long they multiply.
    """
    precision = torch.get_float32_matmul_precision()
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        list(pool.map(_busy_rate, [threads] * processes, [precision] * processes, [0.0] * processes))
        rates = list(
            pool.map(_busy_rate, [threads] * processes, [precision] * processes, [seconds] * processes)
        )
    return sum(rates) / len(rates)
