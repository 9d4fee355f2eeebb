"""Every source by its name: what turns folders, lists, tables and datasets into records for the ingest."""

from __future__ import annotations

from cosa_dist.data.source_coco import annotated_info, coco_annotated, coco_records, coco_source
from cosa_dist.data.source_folder import folder_source
from cosa_dist.data.source_hf import HfColumns, hf_source
from cosa_dist.data.source_record import Entry, Rejection, SourceRecord
from cosa_dist.data.source_synthetic import synthetic_info, synthetic_records
from cosa_dist.data.source_table import Columns, table_source
from cosa_dist.data.source_voc import voc_records, voc_source

__all__ = [
    "Columns",
    "Entry",
    "HfColumns",
    "Rejection",
    "SourceRecord",
    "annotated_info",
    "coco_annotated",
    "coco_records",
    "coco_source",
    "folder_source",
    "hf_source",
    "synthetic_info",
    "synthetic_records",
    "table_source",
    "voc_records",
    "voc_source",
]
