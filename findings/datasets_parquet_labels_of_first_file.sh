#!/usr/bin/env bash
# datasets 5.2.0, pyarrow 26.0.1: two Parquet files of one split whose ClassLabel columns list the same classes in
# another order are read with the names of the first file for all rows, without an error or a warning: a row that its
# own file calls "cat" comes out as "dog". Streaming does the same. `concatenate_datasets` refuses the same two files.
# What we do: such files are refused, as what they are.
# Seen: names ['cat', 'dog', 'owl'], rows [('cat', 'cat'), ('dog', 'dog'), ('dog', 'cat'), ('owl', 'dog')] (read, meant)
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT; cd "$folder"
python3 -m venv v && v/bin/pip -q --disable-pip-version-check install datasets==5.2.0 pyarrow==26.0.1 2>/dev/null
HF_HUB_OFFLINE=1 v/bin/python - <<'PY'
from datasets import ClassLabel, Dataset, Features, Value, concatenate_datasets, disable_progress_bars, load_dataset

disable_progress_bars()
files = []
for number, (names, ids) in enumerate(((["cat", "dog", "owl"], [0, 1]), (["owl", "cat", "dog"], [1, 2]))):
    features = Features({"label": ClassLabel(names=names), "meant": Value("string")})
    rows = {"label": ids, "meant": [names[i] for i in ids]}
    Dataset.from_dict(rows, features=features).to_parquet(f"{number}.parquet")
    files.append(f"{number}.parquet")
expected = [("cat", "cat"), ("dog", "dog"), ("dog", "cat"), ("owl", "dog")]
for streaming in (False, True):
    read = load_dataset("parquet", data_files=files, split="train", cache_dir="cache", streaming=streaming)
    names = read.features["label"]
    rows = [(names.int2str(row["label"]), row["meant"]) for row in read]
    print("streaming" if streaming else "mapped", names.names, rows)
    assert rows == expected, rows
try:
    concatenate_datasets([Dataset.from_parquet(file, cache_dir="cache") for file in files])
except ValueError as error:
    print("concatenate_datasets:", str(error)[:40])
else:
    raise AssertionError("concatenate_datasets takes them now")
PY
