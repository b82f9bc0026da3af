"""Some seventy whole queries over every strategy, model kind and constraint, and what each of them chooses.

Run before a change and after it, to see that nothing else is chosen:

    python benchmarks/corpus.py --out before.json
    python benchmarks/corpus.py --against before.json

A query's record holds its rows in order, their gains and distances to nine digits, and its certificate. Queries that end in an
error are recorded by exit code and message, so that a refusal that changes shows as well.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ.setdefault("RAY_AUTH_MODE", "disabled")

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

import raystream as rs
from raystream.errors import RaystreamError

DIMENSION, CLASSES, MEMBERS = 8, 4, 5
SMALL, LARGE = 1_200, 40_000
"""Rows of the two pools; the larger one is past a block of 16,384 rows."""

NETS = """
import torch
from torch import nn

def net(d=8, c=4, hidden=16):
    return nn.Sequential(nn.Linear(d, hidden), nn.ReLU(), nn.Dropout(0.2), nn.Linear(hidden, c))

def regressor(d=8):
    return nn.Sequential(nn.Linear(d, 16), nn.Tanh(), nn.Dropout(0.2), nn.Linear(16, 1))

class Ruled:
    def predict(self, x):
        return x[0][:, :4]
"""

STRATEGIES = (
    "badge", "batch_bald", "cluster_margin", "combine", "core_set", "diverse", "facility_location", "k_center_two_round", "k_means",
    "k_means_pp", "lcmd", "power", "prob_cover", "random", "softmax", "softrank", "top_k", "typiclust", "u_herding",
)  # fmt: skip


def vectors(values: np.ndarray) -> pa.Array:
    """(n, d) as a fixed-size list column of float32."""
    kind = pa.list_(pa.field("item", pa.float32(), nullable=False), values.shape[1])
    return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1).astype(np.float32)), type=kind)


def table(rows: int, start: int, seed: int) -> pa.Table:
    """Ids, inputs in clusters, groups, costs, log-probabilities and repeats (every eleventh row is its predecessor)."""
    rng = np.random.default_rng([seed, start])
    centres = np.random.default_rng(seed).standard_normal((12, DIMENSION)) * 2
    x = centres[rng.integers(0, 12, rows)] + rng.standard_normal((rows, DIMENSION)) * rng.choice([0.2, 1.0], (rows, 1))
    x[10::11] = x[9::11][: len(x[10::11])]
    logits = rng.standard_normal((rows, CLASSES)) * 2
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    members = np.log(rng.dirichlet(np.ones(CLASSES), (rows, MEMBERS)))
    return pa.table(
        {
            "rid": [f"r{start + i:06d}" for i in range(rows)],
            "number": np.arange(start, start + rows),
            "x": vectors(x),
            "logits": vectors(logits),
            "p": vectors(p),
            "members": pa.array(members.astype(np.float32).tolist(), pa.list_(pa.list_(pa.float32()))) if rows < LARGE else pa.nulls(rows),
            "country": rng.choice(["DE", "FR", "US"], rows),
            "minutes": rng.integers(1, 9, rows).astype(np.float32),
            "label": rng.integers(0, CLASSES, rows),
        }
    )


def lay_out(folder: Path) -> None:
    """Write the pools, the labels and the models."""
    (folder / "corpus_nets.py").write_text(NETS)
    for file in range(4):
        part = folder / "pool" / f"year={2020 + file}"
        part.mkdir(parents=True)
        pq.write_table(table(SMALL // 4, SMALL // 4 * file, 1), part / "part.parquet", row_group_size=64)
    pq.write_table(table(LARGE, 0, 2), folder / "large.parquet", row_group_size=9_000)
    pq.write_table(table(LARGE, 0, 2).slice(0, 1_000).select(["rid", "label"]), folder / "labels.parquet")
    pq.write_table(table(SMALL // 4, 0, 1).slice(0, 60), folder / "few.parquet")
    pq.write_table(table(90, 900_000, 3), folder / "outside.parquet")
    sys.path.insert(0, str(folder))
    _save_models(folder)


def _save_models(folder: Path) -> None:
    import skops.io
    import torch
    from corpus_nets import net  # type: ignore[import-not-found]
    from safetensors.torch import save_file
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.linear_model import LogisticRegression

    for seed in range(2):
        torch.manual_seed(seed)
        model = net().eval()
        save_file(model.state_dict(), folder / f"net{seed}.safetensors")
    example = (torch.zeros(2, DIMENSION),)
    batch = torch.export.Dim("batch", min=1, max=65536)
    torch.export.save(torch.export.export(model, example, dynamic_shapes=({0: batch},)), folder / "net.pt2")
    torch.jit.script(model).save(folder / "net.pt")
    torch.onnx.export(model, example, folder / "net.onnx", dynamic_shapes=({0: batch},), dynamo=True, verbose=False)
    some = table(SMALL // 4, 0, 1)
    x, y = np.stack(some.column("x").to_pylist()), some.column("label").to_numpy()
    skops.io.dump(RandomForestClassifier(12, max_depth=4, random_state=0).fit(x, y), folder / "forest.skops")
    skops.io.dump(LogisticRegression().fit(x, y), folder / "logistic.skops")


def corpus() -> dict[str, dict[str, Any]]:
    """The queries by name, as changes to a first one over the small pool."""
    torch_model = {"source": "corpus_nets:net", "weights": "net0.safetensors", "batch_size": 32}
    columns = {"kind": "columns", "probabilities": "p", "embedding": "x"}
    dropout = {"score": "bald", "mc_samples": 4}
    found: dict[str, dict[str, Any]] = {}
    for name in STRATEGIES:
        select: dict[str, Any] = {"strategy": name, "budget": 20}
        acquire = dropout if name == "batch_bald" else {}
        found[f"strategy {name}"] = {"select": select, "acquire": acquire}
        found[f"labelled {name}"] = {"select": select, "acquire": acquire, "pool": {"labelled": "few.parquet"}}
        if name != "batch_bald":
            found[f"large {name}"] = {"select": select | {"budget": 40}, "pool": {"uri": "large.parquet"}, "model": columns}
    for kind, source in (("export", "net.pt2"), ("torchscript", "net.pt"), ("onnx", "net.onnx"), ("sklearn", "forest.skops")):
        found[f"kind {kind}"] = {"model": {"kind": kind, "source": source, "batch_size": 32}, "select": {"strategy": "top_k"}}
    found["kind sklearn members"] = {"model": {"kind": "sklearn", "source": "forest.skops"}, "acquire": {"score": "bald"},
                                     "select": {"strategy": "top_k"}}  # fmt: skip
    found["kind python"] = {"model": {"kind": "python", "source": "corpus_nets:Ruled"}, "select": {"strategy": "top_k"}}
    found["kind committee"] = {"model": torch_model | {"weights": ["net0.safetensors", "net1.safetensors"]}, "acquire": {"score": "bald"}}
    found["kind columns logits"] = {"model": {"kind": "columns", "logits": "logits", "embedding": "x"}}
    found["kind columns samples"] = {"model": {"kind": "columns", "samples": "members", "embedding": "x"}, "acquire": {"score": "bald"}}
    for score in ("entropy", "least_confidence", "ratio", "energy", "egl", "badge_norm"):
        found[f"score {score}"] = {"acquire": {"score": score}, "select": {"strategy": "top_k"}}
    for score in ("consensus_entropy", "vote_entropy", "variation_ratio", "mean_std", "variance"):
        found[f"score {score}"] = {"acquire": {"score": score, "mc_samples": 4}, "select": {"strategy": "top_k"}}
    found["score epig"] = {"acquire": {"score": "epig", "mc_samples": 4, "targets": "few.parquet"}, "select": {"strategy": "top_k"}}
    found["task regression"] = {"model": {"source": "corpus_nets:regressor", "task": "regression"},
                                "acquire": {"score": "variance", "mc_samples": 4}, "select": {"strategy": "lcmd"}}  # fmt: skip
    for name in ("core_set", "k_means", "badge", "power"):
        quotas = [{"by": "country", "max": 9}, {"by": "country", "value": "DE", "min": 8}, {"by": "prediction", "max": 12}]
        found[f"quotas {name}"] = {"select": {"strategy": name, "quotas": quotas}}
        found[f"cost {name}"] = {"select": {"strategy": name, "cost": {"column": "minutes", "budget": 50}}}
        found[f"share {name}"] = {"select": {"strategy": name, "random_share": 0.25}}
        found[f"must {name}"] = {"select": {"strategy": name, "must_include": ["r001100", "r000003"], "exclude": ["r000004"]}}
        found[f"near {name}"] = {"select": {"strategy": name, "near_duplicates": 0.97}}
    found["core_set weighted"] = {"select": {"strategy": "core_set", "weight": 1.0}}
    found["core_set cosine"] = {"select": {"strategy": "core_set", "metric": "cosine", "candidates": "all"}}
    found["core_set outliers"] = {"select": {"strategy": "core_set", "args": {"outliers": 3}}}
    found["combine similar"] = {"select": {"strategy": "combine", "terms": {"similarity": 1, "distance": 1},
                                           "similar_to": ["r000007", "r000009"]}}  # fmt: skip
    found["filters"] = {"pool": {"uri": "large.parquet", "filters": [["number", ">=", 10_040]], "labelled": "labels.parquet"},
                        "model": columns}  # fmt: skip
    found["labelled outside"] = {"pool": {"labelled": "outside.parquet"}, "select": {"strategy": "core_set", "candidates": "all"}}
    found["integer ids"] = {"pool": {"id": "number"}}
    found["no ids"] = {"pool": {"id": None}}
    found["temperature"] = {"pool": {"label": "label"}, "model": torch_model | {"temperature": "few.parquet"}}
    found["refused: no column"] = {"pool": {"inputs": ["y"]}}
    found["refused: a budget of money"] = {"select": {"cost": {"column": "nothing", "budget": 1}}}
    return {name: _query(torch_model, changes) for name, changes in found.items()}


def _query(model: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    spec: dict[str, Any] = {
        "pool": {"uri": "pool", "id": "rid", "inputs": ["x"]} | changes.get("pool", {}),
        "model": changes.get("model", model),
        "acquire": changes.get("acquire", {}),
        "select": {"budget": 16} | changes.get("select", {}),
        "cluster": {"address": "in_process"},
        "store": {"uri": "runs"},
    }
    if spec["model"].get("kind") == "columns":
        spec["pool"].pop("inputs")
    return spec


def record(spec: dict[str, Any]) -> dict[str, Any]:
    """What a query chooses, or how it is refused."""
    try:
        result = rs.run(rs.Query(**spec))
    except RaystreamError as error:
        return {"exit": error.exit_code, "message": str(error).replace(str(Path.cwd()), "")}
    chosen = result.selection
    certificate = result.manifest.certificate
    return {
        "rows": [str(value) for value in chosen.column(spec["pool"]["id"] or "row").to_pylist()],
        "gain": _digits(chosen.column("gain").to_pylist()),
        "distance": _digits(chosen.column("distance").to_pylist()),
        "certificate": None if certificate is None else _digits([certificate.radius, certificate.lower_bound]),
    }


def _digits(values: list[float | None]) -> list[str | None]:
    return [None if value is None else f"{value:.9g}" for value in values]


def differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """A line for each query that isn't as before."""
    lines = []
    for name in sorted({*before, *now}):
        old, new = before.get(name), now.get(name)
        if old is None or new is None:
            lines.append(f"{name}: {'new' if old is None else 'gone'}")
        elif old != new:
            parts = [part for part in {**old, **new} if old.get(part) != new.get(part)]
            same = len(set(old.get("rows", ())) & set(new.get("rows", ())))
            lines.append(f"{name}: {', '.join(parts)} differ; {same} of {len(old.get('rows', ()))} rows are the same")
    return lines


def main() -> None:
    """Run the corpus; write it, or compare it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="where to write what was chosen")
    parser.add_argument("--against", type=Path, help="an earlier --out to compare with")
    arguments = parser.parse_args()
    out = arguments.out.absolute() if arguments.out else None
    before = json.loads(arguments.against.read_text()) if arguments.against else None
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        lay_out(Path(folder))
        found = {}
        for name, spec in corpus().items():
            found[name] = record(spec)
            print(f"{name}: {found[name].get('message') or len(found[name]['rows'])}", file=sys.stderr, flush=True)
        os.chdir("/")
    if out:
        out.write_text(json.dumps(found, indent=1))
    changed = differences(before, found) if before is not None else []
    for line in changed:
        print(line)
    print(json.dumps({"queries": len(found), "compared": before is not None, "changed": len(changed)}))
    sys.exit(1 if changed else 0)


if __name__ == "__main__":
    main()
