"""What people have (VOC, COCO, folders, tables, Hugging Face data sets) as records."""
