#!/usr/bin/env bash
# datumaro 1.13.12: the void pixels (255) of PASCAL VOC masks are imported as objects of a class named "ignored", the
# last of 22 labels. Exported again, the void border is a COCO category with annotations of its own, or value 21 in
# Cityscapes' labelIds; background is COCO category 1, so every class id is one higher than in VOC; every object made
# from a mask is a crowd (`iscrowd: 1`), which COCO's evaluation leaves out; and VOC's own layout gets RGB masks
# instead of palette images whose values are the class ids.
# What we do: background, "ignored" and the like are no classes; masks with colours are refused with the way to mend
# them; ingest says how many annotations are crowds.
# Seen: objects cow 100 and ignored 44 pixels; COCO categories 22, (category, iscrowd) (11, 1) and (22, 1), cow is 10 in
# VOC; labelIds 0, 10, 21; VOC again: RGB
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT; cd "$folder"
python3 -m venv v && v/bin/pip -q --disable-pip-version-check install datumaro==1.13.12 2>/dev/null
v/bin/python -W ignore - <<'PY'
import json
import os
import numpy as np
from PIL import Image
import datumaro

def colour(index):
    channels = [0, 0, 0]
    for level in range(8):
        for channel in range(3):
            channels[channel] |= (index >> (3 * level + channel) & 1) << (7 - level)
    return channels

for name in ("JPEGImages", "SegmentationClass", "SegmentationObject", "ImageSets/Segmentation"):
    os.makedirs(f"voc/{name}")
open("voc/ImageSets/Segmentation/train.txt", "w").write("p\n")
Image.new("RGB", (32, 24), (9, 9, 9)).save("voc/JPEGImages/p.jpg")
ids = np.zeros((24, 32), np.uint8)
ids[3:15, 3:15] = 255
ids[4:14, 4:14] = 10  # cow
for kind, values in (("Class", ids), ("Object", np.where(ids == 10, 1, ids).astype(np.uint8))):
    mask = Image.fromarray(values).convert("P")
    mask.putpalette(sum(map(colour, range(256)), []))
    mask.putdata(values.ravel().tolist())
    mask.save(f"voc/Segmentation{kind}/p.png")

data = datumaro.Dataset.import_from("voc", "voc_segmentation")
labels = data.categories()[datumaro.AnnotationType.label]
objects = {labels[found.label].name: int(found.image.sum()) for item in data for found in item.annotations}
for kind in ("coco_instances", "cityscapes", "voc_segmentation"):
    data.export(kind, kind)
content = json.load(open("coco_instances/annotations/instances_train.json"))
crowds = sorted((found["category_id"], found["iscrowd"]) for found in content["annotations"])
first = content["categories"][0]["name"]
cityscapes = np.unique(np.asarray(Image.open("cityscapes/gtFine/train/p_gtFine_labelIds.png"))).tolist()
mode = Image.open("voc_segmentation/SegmentationClass/p.png").mode
print(objects, len(content["categories"]), first, crowds, cityscapes, mode)
assert objects == {"cow": 100, "ignored": 44}, objects
assert (len(content["categories"]), first, crowds) == (22, "background", [(11, 1), (22, 1)])
assert (cityscapes, mode) == ([0, 10, 21], "RGB")
PY
