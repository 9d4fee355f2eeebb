"""Images with tags: from source folders to shards, and from shards to the batches of a run.

`ingest` turns a source (VOC devkit, COCO mask folders, generated pictures) into Arrow shards;
`shards` opens them; `order` says which record comes when; `views` makes the weak and the strong
view; `loader` puts these together as `Batch` for training and `EvalSample` for evaluation.
"""
