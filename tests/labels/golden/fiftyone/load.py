"""Merges this folder into the FiftyOne dataset 'raystream-round-1'. Run it in the folder; running it twice adds nothing."""

import json
from pathlib import Path

import fiftyone as fo

here = Path(__file__).resolve().parent
dataset = fo.load_dataset('raystream-round-1') if fo.dataset_exists('raystream-round-1') else fo.Dataset('raystream-round-1', persistent=True)
samples = []
for line in (here / "samples.jsonl").open():
    row = json.loads(line)
    prediction = row.pop("prediction")
    sample = fo.Sample(filepath=str(here / row.pop("filepath")), **row)
    if prediction is not None:
        sample["prediction"] = fo.Classification(label=prediction, confidence=row["raystream_confidence"])
    samples.append(sample)
dataset.merge_samples(samples, key_field="raystream_id")
