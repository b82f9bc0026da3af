"""Decoding images: what raystream's reader hands to a model, beside a hand-written loop of Pillow in as many threads.

    python benchmarks/images.py                     600 photographs of 500 x 375, five rounds, two threads
    python benchmarks/images.py --rows 200 --rounds 3

Both read the same Parquet file of JPEG bytes, scale the short side to 224, cut out the centre, normalise and give float32 batches of
64 to nobody. The loop: `Image.open`, `convert`, `resize`, `crop`, NumPy arithmetic, `ThreadPoolExecutor.map`. Contenders take turns
within a round. Prints a table, then one JSON line.
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.environment import environment
from raystream.pool import Column, ReadSpec, Unit, list_files
from raystream.pool.images import Decoding, installed_decoder
from raystream.query import Preprocess
from raystream.scoring.batch_reader import BatchReader

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SIDE, BATCH = 224, 64


def photographs(rows: int, path: Path) -> None:
    """JPEG files of smooth surfaces, edges and grain, about as large as photographs of that size."""
    rng = np.random.default_rng(0)
    files = []
    for _ in range(rows):
        coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize((500, 375), Image.Resampling.BICUBIC)
        grain = np.asarray(coarse, dtype=np.int16) + rng.integers(-12, 13, (375, 500, 1))
        buffer = io.BytesIO()
        Image.fromarray(grain.clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=90)
        files.append(buffer.getvalue())
    pq.write_table(pa.table({"image": pa.array(files, pa.binary())}), path, row_group_size=200)


def by_hand(path: Path, threads: int) -> int:
    """The loop that somebody would write; how many rows it gave."""
    mean, std = np.array(MEAN, np.float32), np.array(STD, np.float32)

    def one(data: bytes) -> np.ndarray:
        image = Image.open(io.BytesIO(data)).convert("RGB")
        scale = SIDE / min(image.size)
        image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BILINEAR)
        left, top = (image.width - SIDE) // 2, (image.height - SIDE) // 2
        pixels = np.asarray(image.crop((left, top, left + SIDE, top + SIDE)), dtype=np.float32) / 255
        return ((pixels - mean) / std).transpose(2, 0, 1)

    rows = 0
    with ThreadPoolExecutor(threads) as pool:
        for batch in pq.ParquetFile(path).iter_batches(BATCH):
            rows += len(np.stack(list(pool.map(one, batch.column(0).to_pylist()))))
    return rows


def by_feed(path: Path, threads: int, decoder: str) -> int:
    """raystream's; how many rows it gave."""
    metadata = pq.read_metadata(path)
    [file] = list_files([str(path)])
    unit = Unit(file, tuple(range(metadata.num_row_groups)), 0, metadata.num_rows, 0)
    settings = Preprocess(size=(SIDE, SIDE), mean=MEAN, std=STD)
    column = Column("image", settings.shape, "float32", image=Decoding(settings, decoder))  # type: ignore[arg-type]
    with BatchReader(unit, ReadSpec(None, pa.string(), (column,)), BATCH, pin=False, threads=threads) as reader:
        return sum(len(chunk) for chunk in reader)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=600)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "images.parquet"
        photographs(options.rows, path)
        contenders: dict[str, Callable[[], int]] = {"loop": lambda: by_hand(path, options.threads)}
        for decoder in sorted({"pillow", installed_decoder()}):
            contenders[f"raystream, {decoder}"] = lambda decoder=decoder: by_feed(path, options.threads, decoder)  # type: ignore[misc]
        seconds: dict[str, list[float]] = {name: [] for name in contenders}
        for turn in range(options.rounds + 1):
            for name, run in contenders.items():
                began = time.perf_counter()
                assert run() == options.rows
                if turn:  # the first warms up
                    seconds[name].append(time.perf_counter() - began)
        rates = {name: round(options.rows / statistics.median(times), 1) for name, times in seconds.items()}
        size = path.stat().st_size // options.rows
    for name, rate in rates.items():
        print(f"{name:24} {rate:8.1f} images/s   {rate / rates['loop']:.2f} x the loop")
    result = {
        "rows": options.rows,
        "threads": options.threads,
        "rounds": options.rounds,
        "bytes_per_image": size,
        "images_per_second": rates,
    }
    print(json.dumps({"benchmark": "images", **result, "environment": environment()}))


if __name__ == "__main__":
    main()
