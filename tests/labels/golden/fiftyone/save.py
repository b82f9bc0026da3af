"""Saves the labels of the FiftyOne dataset 'raystream-round-1' as labels.jsonl, for raystream labels. Run it in this folder."""

import json

import fiftyone as fo

with open("labels.jsonl", "w") as file:
    for sample in fo.load_dataset('raystream-round-1'):
        label = sample["ground_truth"] if sample.has_field("ground_truth") else None
        if label is None and not sample.tags:
            continue
        row = {key: sample[key] for key in ("raystream_id", "raystream_query", "raystream_rank")}
        row |= {"_cls": "Sample", "tags": sample.tags, "ground_truth": None if label is None else label.to_dict()}
        row["last_modified_at"] = sample.last_modified_at.isoformat()
        file.write(json.dumps(row, default=str) + "\n")
