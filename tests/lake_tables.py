"""Iceberg and Delta tables with deletes, as other engines write them; pyiceberg and deltalake themselves don't write these."""

from __future__ import annotations

import base64
import json
import struct
import uuid
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

_MAGIC = 1681511377
_B85 = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz!#$%&()*+-;<=>?@^_`{|}~"
_Z85 = b"0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.-:+=^!/*?&<>()[]{}@%$#"


def bitmap(positions: Sequence[int]) -> bytes:
    """A deletion vector: the magic number, then a 64-bit roaring bitmap with one array container; positions below 65,536."""
    values = sorted(positions)
    header = struct.pack("<IIHHI", 12346, 1, 0, len(values) - 1, 16)
    return struct.pack("<IQI", _MAGIC, 1, 0) + header + struct.pack(f"<{len(values)}H", *values)


def z85(data: bytes) -> str:
    """ZeroMQ's base 85, padded to whole groups of four bytes."""
    return base64.b85encode(data + b"\0" * (-len(data) % 4)).translate(bytes.maketrans(_B85, _Z85)).decode()


def delta_log(folder: Path) -> list[dict[str, Any]]:
    """All actions of a Delta table's log, in order."""
    files = sorted((folder / "_delta_log").glob("*.json"))
    return [json.loads(line) for file in files for line in file.read_text().splitlines() if line]


def delete_in_delta(folder: Path, add: dict[str, Any], positions: Sequence[int]) -> None:
    """Commit a version that gives one data file, as its `add` action names it, an inline deletion vector."""
    data = bitmap(positions)
    vector = {"storageType": "i", "pathOrInlineDv": z85(data), "sizeInBytes": len(data), "cardinality": len(positions)}
    features = ["deletionVectors"]
    protocol = {"minReaderVersion": 3, "minWriterVersion": 7, "readerFeatures": features, "writerFeatures": features}
    actions = [
        {"protocol": protocol},
        {"remove": {"path": add["path"], "deletionTimestamp": 1, "dataChange": True}},
        {"add": add | {"deletionVector": vector}},
        {"commitInfo": {"timestamp": 1}},
    ]
    version = len(list((folder / "_delta_log").glob("*.json")))
    (folder / "_delta_log" / f"{version:020}.json").write_text("\n".join(map(json.dumps, actions)))


def delete_in_iceberg(table: Any, deletes: Mapping[str, Sequence[int]], form: str = "PARQUET", equality: Sequence[int] = ()) -> None:
    """Commit a snapshot with one delete file: positions by data file, or with `equality` field ids, equality deletes."""
    from pyiceberg.manifest import DataFile, DataFileContent, FileFormat, ManifestContent, ManifestEntry, ManifestEntryStatus
    from pyiceberg.manifest import ManifestWriterV2 as Writer
    from pyiceberg.table.snapshots import Operation
    from pyiceberg.table.update.snapshot import _FastAppendFiles
    from pyiceberg.typedef import Record

    path = Path(table.location().removeprefix("file://")) / "data" / f"deletes-{uuid.uuid4().hex}.{form.lower()}"
    if form == "PUFFIN":
        _write_puffin(path, deletes)
    else:
        pairs = [(file, position) for file, positions in deletes.items() for position in sorted(positions)]
        id_ = {"file_path": b"2147483546", "pos": b"2147483545"}
        fields = [("file_path", pa.string()), ("pos", pa.int64())]
        schema = pa.schema([pa.field(n, t, False, metadata={b"PARQUET:field_id": id_[n]}) for n, t in fields])
        pq.write_table(pa.table([[p for p, _ in pairs], [p for _, p in pairs]], schema=schema), path)
    content = DataFileContent.EQUALITY_DELETES if equality else DataFileContent.POSITION_DELETES
    file = DataFile.from_args(
        content=content,
        file_path=f"file://{path}",
        file_format=FileFormat[form],
        partition=Record(),
        record_count=sum(map(len, deletes.values())),
        file_size_in_bytes=path.stat().st_size,
        equality_ids=list(equality) or None,
    )

    class DeleteManifest(Writer):
        def content(self) -> ManifestContent:
            return ManifestContent.DELETES

        @property
        def _meta(self) -> dict[str, str]:
            return {**super()._meta, "content": "deletes"}

    class Deletes(_FastAppendFiles):
        def _manifests(self) -> list[Any]:
            output, snapshot = self.new_manifest_output(), self._snapshot_id
            with DeleteManifest(table.spec(), table.schema(), output, snapshot, self._compression) as writer:
                writer.add_entry(ManifestEntry.from_args(status=ManifestEntryStatus.ADDED, snapshot_id=snapshot, data_file=file))
            return [writer.to_manifest_file(), *self._existing_manifests()]

    with table.transaction() as transaction:
        Deletes(Operation.OVERWRITE, transaction, table.io).commit()
    table.refresh()


def _write_puffin(path: Path, deletes: Mapping[str, Sequence[int]]) -> None:
    content, blobs = b"PFA1", []
    for file, positions in deletes.items():
        data = bitmap(positions)
        blob = struct.pack(">I", len(data)) + data + struct.pack(">I", zlib.crc32(data))
        properties = {"referenced-data-file": file, "cardinality": str(len(positions))}
        place = {"offset": len(content), "length": len(blob), "snapshot-id": -1, "sequence-number": -1}
        blobs.append({"type": "deletion-vector-v1", "fields": [2147483546], "properties": properties, **place})
        content += blob
    footer = json.dumps({"blobs": blobs}).encode()
    path.write_bytes(content + b"PFA1" + footer + struct.pack("<i", len(footer)) + bytes(4) + b"PFA1")
