"""Sums and concatenations over real processes, with uneven shares."""

from __future__ import annotations

from pathlib import Path

import torch

from cosa_dist.collective import concatenate_over_ranks, rank, sum_over_ranks, together, world_size
from tests.support.ranks import run_ranks


def test_without_a_process_group_everything_is_the_identity():
    tensor = torch.tensor([1.0, 2.0])
    assert sum_over_ranks(tensor) is tensor
    assert concatenate_over_ranks(tensor) is tensor
    assert (rank(), world_size()) == (0, 1)


def _work(index: int, folder: str) -> None:
    mine = torch.full((index, 2), float(index))
    kept = mine.clone()
    result = {
        "sum": sum_over_ranks(torch.tensor([index, 1])),
        "rows": concatenate_over_ranks(mine),
        "unchanged": torch.equal(mine, kept),
        "rank": (rank(), world_size()),
    }
    for failing in (None, 1):
        try:
            with together():
                if index == failing:
                    raise ValueError("a picture")
            result[f"failing {failing}"] = "went on"
        except (ValueError, RuntimeError) as error:
            result[f"failing {failing}"] = str(error)
    torch.save(result, Path(folder) / f"{index}.pt")


def test_three_ranks_with_uneven_shares(tmp_path):
    run_ranks(_work, 3, str(tmp_path))
    for index in range(3):
        result = torch.load(tmp_path / f"{index}.pt", weights_only=True)
        assert result["sum"].tolist() == [3, 3]
        assert result["rows"].tolist() == [[1.0, 1.0], [2.0, 2.0], [2.0, 2.0]]
        assert result["unchanged"]
        assert result["rank"] == (index, 3)
        assert result["failing None"] == "went on"
        assert result["failing 1"] == ("a picture" if index == 1 else "worker 1: ValueError: a picture")
