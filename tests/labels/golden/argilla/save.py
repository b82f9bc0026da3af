"""Saves the records of the Argilla dataset with their responses, for raystream labels, as labels.json."""

import json

import argilla as rg

dataset = rg.Argilla().datasets('raystream-round-1')
with open("labels.json", "w") as file:
    json.dump(dataset.records(with_responses=True).to_list(flatten=True), file, default=str)
