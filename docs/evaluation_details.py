"""What each detail of an evaluation is worth on one trained network: the table of docs/evaluation.md.

    python docs/evaluation_details.py outputs/runs/NAME --rows details.jsonl [--only "one view" toco]

Each evaluation is one line of the file of rows as soon as it is finished; started again, those that are there
are not made again. Sizes are relative to the run's own, as a repository's is to its training crop. The table
has the difference of each to the first row, in points of mIoU.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FIRST = "cosa"
TOCO = "--evaluation.protocol toco --evaluation.geometry longer_side --evaluation.size {toco}"
"""its own size is VOC's longer side of 500, beside a crop of 448"""
DETAILS = {
    FIRST: "",
    "one view": "--evaluation.protocol one_view",
    "one scale + mirror": "--evaluation.scales [1.0]",
    "no mirror": "--evaluation.flip false",
    "views from the original": "--evaluation.views_from original",
    "longer side 1.2 crops, aspect kept": "--evaluation.geometry longer_side --evaluation.size {longer}",
    "mean of logits": "--evaluation.merging mean",
    "maximum over scales": "--evaluation.merging maximum",
    "merged at the image's size": "--evaluation.merge_at image",
    "merged at the network's grid": "--evaluation.merge_at grid",
    "toco": TOCO,
    "seco, more": "--evaluation.protocol seco",
    "excel": "--evaluation.protocol excel",
    "weclip": "--evaluation.protocol weclip --evaluation.size {weclip}",
    "cosa + CRF": "--crf",
    "excel + CRF": "--evaluation.protocol excel --crf",
    "weclip + CRF": "--evaluation.protocol weclip --evaluation.size {weclip} --crf",
    "seco + CRF": "--evaluation.protocol seco --crf",
    "more + CRF": "--evaluation.protocol more --crf",
    "toco + CRF": TOCO + " --crf",
}
"""options by row; WeCLIP's longer side of 512 is beside a crop of 320"""


def evaluated(run: Path, size: int, name: str, network: str) -> dict[str, object]:
    """The row of one evaluation, by jobs/evaluate.py in a process of its own."""
    sizes = {"toco": size * 500 // 448, "weclip": size * 512 // 320, "longer": size * 6 // 5}
    words = DETAILS[name].format(**sizes).split()
    with tempfile.TemporaryDirectory() as out:
        job = ["jobs/evaluate.py", str(run.resolve()), "--network", network, "--out", out, *words]
        subprocess.run([sys.executable, *job], cwd=ROOT, check=True)
        (path,) = Path(out).glob("evaluation_*.json")
        report = json.loads(path.read_text(encoding="utf-8"))
    measurement = "unfiltered_crf" if "--crf" in words else "unfiltered"
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return {
        "name": name,
        "options": " ".join(words),
        "miou": report["scores"][measurement]["miou"],
        "words": report["settings"]["words"],
        "images": report["images"],
        "run": run.name,
        "network": network,
        "commit": commit.stdout.strip(),
    }


def table(rows: dict[str, dict[str, object]]) -> str:
    """Markdown table of the rows that are there, in their order above."""
    first = float(str(rows[FIRST]["miou"]))
    lines = ["| evaluation | mIoU | beside `cosa` |", "|---|---|---|"]
    for name in (name for name in DETAILS if name in rows):
        miou = float(str(rows[name]["miou"]))
        lines.append(f"| {name} | {miou:.2f} | {'' if name == FIRST else f'{miou - first:+.2f}'} |")
    return "\n".join(lines)


def main() -> None:
    """Make the evaluations that are missing, row by row, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("run", type=Path, help="run folder")
    parser.add_argument("--rows", type=Path, required=True, help="file of rows, one line each")
    parser.add_argument("--only", nargs="*", choices=list(DETAILS), help="these rows (default: all)")
    parser.add_argument("--network", default="online", help="network of the run")
    asked = parser.parse_args()
    lines = asked.rows.read_text(encoding="utf-8").splitlines() if asked.rows.exists() else []
    rows = {str(row["name"]): row for row in map(json.loads, lines)}
    size = json.loads((asked.run / f"report_{asked.network}.json").read_text(encoding="utf-8"))["settings"][
        "size"
    ]
    for name in DETAILS if asked.only is None else asked.only:
        if name not in rows:
            rows[name] = evaluated(asked.run, size, name, asked.network)
            with asked.rows.open("a", encoding="utf-8") as file:
                file.write(json.dumps(rows[name]) + "\n")
    if FIRST in rows:
        print(table(rows))


if __name__ == "__main__":
    main()
