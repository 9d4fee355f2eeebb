"""Measure both reading modes: `python -m cosa_dist.benchmark.reading_speed SHARDS [--images 512]`.

Training batches of one rank are made in this process, by `mapped` and by `streaming` reading, from the
local folder, from a plain HTTP server on loopback and from its cache, in turn, so that all meet the same
machine. Printed is the best round of each: images per second of this process's CPU time and of wall time.
"""

from __future__ import annotations

import argparse
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cosa_dist.config.errors import ConfigError
from cosa_dist.config.schema import DataConfig
from cosa_dist.data.reading.loader import TrainingLoader
from cosa_dist.data.reading.open import open_reading


@contextmanager
def file_server(folder: Path) -> Iterator[str]:
    """Serve a folder with `python -m http.server` in another process; gives its URL."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1", "-d", str(folder)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(100):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait()


def images_per_second(data: DataConfig, images: int, crop_size: int) -> tuple[float, float]:
    """Return images per second of CPU time (this process) and of wall time.

    Args:
        data: what to read, and how.
        images: how many.
        crop_size: side of the crops.

    Raises:
        ConfigError: fewer images than a batch has.
    """
    batch = 8
    if images < batch:
        raise ConfigError(f"--images {images}: give {batch} or more, a batch of the loader")
    split = open_reading(data, data.train_split)
    loader = TrainingLoader(
        split, crop_size=crop_size, seed=0, global_batch_size=batch, stop_step=images // batch
    )
    cpu, wall = time.process_time(), time.perf_counter()
    made = sum(len(batch.ids) for step in loader for batch in step)
    return made / (time.process_time() - cpu), made / (time.perf_counter() - wall)


def main() -> None:
    """Measure and print one line per way of reading."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("shards", type=Path)
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--crop-size", type=int, default=448)
    chosen = parser.parse_args()
    if min(chosen.images, chosen.rounds) < 1:
        parser.error("--images and --rounds must be 1 or more")
    with file_server(chosen.shards) as url, tempfile.TemporaryDirectory() as cache:
        local = str(chosen.shards)
        ways = {
            "mapped, local": DataConfig(shards=local),
            "streaming, local": DataConfig(shards=local, reading="streaming"),
            "streaming, HTTP": DataConfig(shards=url, reading="streaming"),
            "streaming, HTTP, cached": DataConfig(shards=url, reading="streaming", cache=cache),
        }
        results: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
        for _ in range(chosen.rounds):
            for way, data in ways.items():
                results[way].append(images_per_second(data, chosen.images, chosen.crop_size))
    base = max(results["mapped, local"])[0]
    for way, found in results.items():
        cpu, wall = max(found)
        print(f"{way:24s} {cpu:7.1f} images/CPU-s {wall:7.1f} images/s  {cpu / base:5.2f} of mapped")


if __name__ == "__main__":
    main()
