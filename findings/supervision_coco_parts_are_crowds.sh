#!/usr/bin/env bash
# supervision 0.31.2: `DetectionDataset.as_coco` marks one ordinary object as a crowd (`iscrowd: 1`, run-length code)
# as soon as its mask has a hole or two parts, which occlusion makes common. COCO's own evaluation, and every reader
# that ignores crowds, then leaves the object out.
# What we do: crowds become ignored pixels, and ingest says how many annotations are crowds.
# Seen: iscrowd one part 0, two parts 1, with a hole 1
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT; cd "$folder"
python3 -m venv v && v/bin/pip -q --disable-pip-version-check install supervision==0.31.2 2>/dev/null
v/bin/python -W ignore - <<'PY'
import json
import numpy as np
import supervision as sv
from PIL import Image

masks = {name: np.zeros((1, 40, 40), dtype=bool) for name in ("one part", "two parts", "with a hole")}
masks["one part"][0, 5:35, 5:35] = True
masks["two parts"][0, 2:12, 2:12] = masks["two parts"][0, 20:35, 20:35] = True
masks["with a hole"][0, 5:35, 5:35] = True
masks["with a hole"][0, 15:25, 15:25] = False
objects = {}
for name, mask in masks.items():
    Image.new("RGB", (40, 40)).save(f"{name}.png")
    objects[f"{name}.png"] = sv.Detections(xyxy=sv.mask_to_xyxy(mask), mask=mask, class_id=np.array([0]))
sv.DetectionDataset(["cat"], list(objects), objects).as_coco(annotations_path="coco.json")
content = json.load(open("coco.json"))
names = {image["id"]: image["file_name"].removesuffix(".png") for image in content["images"]}
crowds = {names[found["image_id"]]: found["iscrowd"] for found in content["annotations"]}
print("iscrowd", crowds)
assert crowds == {"one part": 0, "two parts": 1, "with a hole": 1}, crowds
PY
