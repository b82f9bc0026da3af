"""What is written for tools, and what our fakes of their servers say, beside the vendors' own SDKs.

`make label-sdks` installs each in an environment of its own; the test of one that isn't there is skipped.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from argilla_fake import FakeArgilla
from cvat_fake import FakeCvat
from label_batches import batch_of
from label_queries import CLASSES, commit_query

import raystream
from raystream.labels.annotation import Annotation, parse
from raystream.labels.batch import Kind, read_batch
from raystream.labels.cvat import Cvat
from raystream.labels.server import Token
from raystream.labels.tools import TOOLS, looks_like
from raystream.lake.retry import Patience

SDKS = Path(raystream.__file__).parents[1] / ".label-sdks"
TEXTS = ("plain", '=1+1 <b>ünï</b> & "x"\r\n', "\u2028😀")

pytestmark = pytest.mark.slow


def run(sdk: str, folder: Path, *arguments: str, **environment: str) -> str:
    """Run Python with an SDK in a folder, and return what it prints."""
    python = SDKS / sdk / "bin" / "python"
    if not python.exists():
        pytest.skip("needs make label-sdks")
    clean = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    done = subprocess.run(
        [python, *arguments], capture_output=True, text=True, cwd=folder, env=clean | {"HOME": str(folder)} | environment
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def exported(tool: str, kind: Kind, folder: Path) -> list[str]:
    """Write a batch of three rows for a tool, its pictures beside, and return the ids as the tool has them."""
    batch = batch_of([7, -8, 9], pa.int64(), TEXTS if kind == "text" else None, kind=kind)
    for name, data in TOOLS[tool].write(batch).files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    for item in batch.items:
        if item.data is not None:
            (folder / "images").mkdir(exist_ok=True)
            (folder / "images" / batch.file_name(item)).write_bytes(item.data)
    return [item.id for item in batch.items]


def annotations(tool: str, file: Path) -> list[Annotation]:
    """Return what people did, of a file that is recognised as the tool's."""
    document = parse(file.name, file.read_bytes())
    assert looks_like(document, TOOLS.values()) is TOOLS[tool]
    return list(TOOLS[tool].annotations(document))


@pytest.fixture
def argilla() -> Iterator[FakeArgilla]:
    server = FakeArgilla().start()
    yield server
    server.stop()


@pytest.mark.parametrize("kind", ["text", "image"])
def test_argilla(kind: Kind, argilla: FakeArgilla, tmp_path: Path) -> None:
    """Its SDK makes the dataset and takes the records, twice without adding any; what save.py writes has each response's state."""
    ids = exported("argilla", kind, tmp_path)
    server = {"ARGILLA_API_URL": argilla.url, "ARGILLA_API_KEY": "key"}
    for _ in range(2):
        run("argilla", tmp_path, "load.py", **server)
    assert list(argilla.records) == ids
    assert argilla.dataset is not None
    assert argilla.dataset["name"] == "raystream-round-1"
    [question] = argilla.parts["questions"]
    assert [option["value"] for option in question["settings"]["options"]] == ["cat", "dog"]
    assert {name["name"] for name in argilla.parts["metadata-properties"]} >= {"raystream_id", "raystream_query", "raystream_rank"}
    for record, text in zip(argilla.records.values(), TEXTS, strict=True):
        shown = record["fields"][kind]
        assert shown == text if kind == "text" else shown.startswith("data:image/png;base64,")
        [suggestion] = record["suggestions"]
        assert (suggestion["value"], suggestion["score"]) == ("cat", 0.75)
    for id_, status in zip(ids, ("submitted", "discarded", "draft"), strict=True):
        argilla.respond(id_, "dog", status)
    run("argilla", tmp_path, "save.py", **server)
    found = annotations("argilla", tmp_path / "labels.json")
    assert [(each.id, each.state, each.raw, each.query, each.rank) for each in found] == [
        ("7", "labelled", "dog", "round-1", 0),
        ("-8", "skipped", None, "round-1", 1),
        ("9", "draft", "dog", "round-1", 2),
    ]
    assert {each.annotator for each in found} == {argilla.user}


_CVAT = """
import json, sys
from cvat_sdk.api_client import ApiClient, Configuration, models

url, token, sent = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
models.TaskWriteRequest(name=sent["task"]["name"], labels=[models.PatchedLabelRequest(**label) for label in sent["task"]["labels"]])
data = dict(sent["data"], sorting_method=models.SortingMethod(sent["data"]["sorting_method"]))
models.DataRequest(**data)
with ApiClient(Configuration(host=url, access_token=token)) as client:
    [task] = client.tasks_api.list(name=sent["task"]["name"])[0].results
    one = client.tasks_api.retrieve(task.id)[0]
    meta = client.tasks_api.retrieve_data_meta(task.id)[0]
    labels = client.labels_api.list(task_id=task.id)[0].results
    [job] = client.jobs_api.list(task_id=task.id)[0].results
    done = client.tasks_api.retrieve_annotations(task.id)[0]
    [request] = client.requests_api.list(task_id=task.id, action="create")[0].results
print(json.dumps({
    "size": one.size, "frames": [frame.name for frame in meta.frames], "deleted": meta.deleted_frames,
    "labels": {label.id: [label.name, str(label.type)] for label in labels}, "job": [job.start_frame, job.stop_frame, str(job.state)],
    "assignee": job.assignee.username, "tags": [[tag.frame, tag.label_id, tag.source] for tag in done.tags],
    "shapes": [[shape.frame, str(shape.type), shape.points] for shape in done.shapes], "request": str(request.status),
}))
"""


def test_cvat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is sent are requests of its SDK's models; what our fake answers, the SDK reads as the same."""
    fake = FakeCvat()
    fake.start()
    try:
        monkeypatch.chdir(tmp_path)
        result = commit_query(tmp_path, pa.array(range(20)), 4)
        batch = read_batch(result, CLASSES, "image")
        Cvat(fake.url, Token(fake.token), Patience(60.0, pause=lambda seconds: None)).push(batch, result.store)
        task = fake.tasks[1]
        task["assignee"] = {"id": 3, "username": "anna", "url": "http://127.0.0.1/api/users/3"}
        label = fake.labels[1][0]["id"]
        task["tags"] = [{"id": 1, "frame": 0, "label_id": label, "source": "manual", "attributes": []}]
        shape = {"type": "rectangle", "points": [0.5, 1.0, 2.0, 3.0], "rotation": 0.0, "occluded": False, "z_order": 0}
        task["shapes"] = [{"id": 2, "frame": 1, "label_id": label, "source": "auto", "attributes": [], **shape}]
        task["deleted"] = [2]
        names = [batch.file_name(item) for item in batch.items]
        sent = {"task": fake.sent["/api/tasks"], "data": fake.sent["/api/tasks/1/data/"]}
        assert sent["data"]["upload_file_order"] == names
        read = json.loads(run("cvat-sdk", tmp_path, "-c", _CVAT, fake.url, fake.token, json.dumps(sent)))
    finally:
        fake.stop()
    assert read == {
        "size": 4,
        "frames": names,
        "deleted": [2],
        "labels": {str(each["id"]): [each["name"], "tag"] for each in fake.labels[1]},
        "job": [0, 3, "new"],
        "assignee": "anna",
        "tags": [[0, label, "manual"]],
        "shapes": [[1, "rectangle", [0.5, 1.0, 2.0, 3.0]]],
        "request": "finished",
    }


_LABELBOX = """
import json, os, sys
from labelbox.data.annotation_types import ClassificationAnnotation, ClassificationAnswer, GenericDataRowData, Label, Radio
from labelbox.data.serialization import NDJsonConverter
from labelbox.schema.annotation_import import MALPredictionImport
from labelbox.schema.internal.descriptor_file_creator import DescriptorFileCreator

class Uploads:
    def upload_file(self, path):
        assert os.path.isfile(path)
        return "https://uploads/" + path

rows = DescriptorFileCreator(Uploads())._prepare_items_for_upload(json.load(open("data_rows.json")))
lines = [json.loads(line) for line in open("predictions.ndjson")]
MALPredictionImport._validate_data_rows(lines)
theirs = []
for line in lines:
    answer = ClassificationAnswer(name=line["answer"]["name"], confidence=line["answer"]["confidence"])
    annotation = ClassificationAnnotation(name=line["name"], value=Radio(answer=answer))
    label = Label(data=GenericDataRowData(global_key=line["dataRow"]["globalKey"]), annotations=[annotation])
    theirs += NDJsonConverter.serialize([label])
print(json.dumps({"rows": rows, "lines": lines, "theirs": theirs}))
"""


@pytest.mark.parametrize("kind", ["text", "image"])
def test_labelbox(kind: Kind, tmp_path: Path) -> None:
    """Its SDK takes the data rows, uploading pictures, and writes the same predictions itself."""
    ids = exported("labelbox", kind, tmp_path)
    read: dict[str, Any] = json.loads(run("labelbox", tmp_path, "-c", _LABELBOX))
    rows = {row["global_key"]: row["row_data"] for row in read["rows"]}
    assert sorted(rows) == sorted(ids)
    if kind == "text":
        assert [rows[id_] for id_ in ids] == list(TEXTS)
    else:
        assert all(row.startswith("https://uploads/images/") for row in rows.values())
    assert read["lines"] == [{key: value for key, value in line.items() if key != "uuid"} for line in read["theirs"]]


_FIFTYONE = """
import json
import mongomock, mongoengine.connection, pymongo

class Client(mongomock.MongoClient):
    def __init__(self, *arguments, appname=None, **options):
        super().__init__(*arguments, **options)

pymongo.MongoClient = mongoengine.connection.MongoClient = Client  # FiftyOne asks for a server when it is imported
import fiftyone as fo

class Dataset:
    def __init__(self, name, persistent):
        assert persistent

    def merge_samples(self, samples, key_field):
        assert key_field == "raystream_id"
        Dataset.samples = samples

fo.Dataset, fo.dataset_exists = Dataset, lambda name: False
exec(compile(open("load.py").read(), "load.py", "exec"), {"__file__": "load.py"})
assert all((sample.prediction.label, sample.prediction.confidence) == ("cat", 0.75) for sample in Dataset.samples)
one, two, three = Dataset.samples
one["ground_truth"] = fo.Classification(label="dog")
two.tags.append("skipped")
three["ground_truth"] = fo.Classifications(classifications=[fo.Classification(label="dog"), fo.Classification(label="cat")])
print(json.dumps({"samples": [sample.to_dict() for sample in Dataset.samples]}, default=str))
"""


def test_fiftyone(tmp_path: Path) -> None:
    """load.py makes samples of its SDK's classes; their own JSON comes back as labels. This needs no database."""
    exported("fiftyone", "image", tmp_path)
    no_server = {"FIFTYONE_DATABASE_URI": "mongodb://127.0.0.1:1", "FIFTYONE_DATABASE_VALIDATION": "false", "FIFTYONE_DO_NOT_TRACK": "true"}
    (tmp_path / "samples.json").write_text(run("fiftyone", tmp_path, "-c", _FIFTYONE, **no_server))
    found = annotations("fiftyone", tmp_path / "samples.json")
    assert [(each.id, each.state, each.raw, each.query, each.rank) for each in found] == [
        ("7", "labelled", "dog", "round-1", 0),
        ("-8", "skipped", None, "round-1", 1),
        ("9", "labelled", ["dog", "cat"], "round-1", 2),
    ]


@pytest.fixture
def database(tmp_path: Path) -> Iterator[str]:
    """The URI of a database of the test's own, run by what FiftyOne's own wheel of it brings."""
    mongod = next((SDKS / "fiftyone").glob("lib/*/site-packages/fiftyone/db/bin/mongod"), None)
    if mongod is None or subprocess.run([mongod, "--version"], capture_output=True).returncode:
        pytest.skip("needs make label-sdks, and a machine that its database runs on")
    (tmp_path / "db").mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            [mongod, "--dbpath", tmp_path / "db", "--bind_ip", "127.0.0.1", "--port", str(port), "--nounixsocket"], stdout=log, stderr=log
        )
    try:
        for _ in range(600):
            assert process.poll() is None, (tmp_path / "log").read_text()[-2000:]
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                threading.Event().wait(0.1)
        yield f"mongodb://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(60)


_LABEL_IN_FIFTYONE = """
import fiftyone as fo

dataset = fo.load_dataset("raystream-round-1")
for sample, label, tags in zip(dataset.sort_by("raystream_rank"), ("dog", None, "cat"), ([], ["skipped"], ["rejected"])):
    sample["ground_truth"] = None if label is None else fo.Classification(label=label)
    sample.tags += tags
    sample.save()
"""
_COUNT_IN_FIFTYONE = """
import json
import fiftyone as fo

dataset = fo.load_dataset("raystream-round-1")
rows = dataset.sort_by("raystream_rank")
print(json.dumps([[s.raystream_id, s.prediction.label, s.ground_truth.label if s.has_field("ground_truth") and s.ground_truth else None,
                   s.tags] for s in rows]))
"""


def test_fiftyone_merges(tmp_path: Path, database: str) -> None:
    """In a real database: loaded twice there is each row once; a third time, labels stay; what save.py writes is what people said."""
    folder = tmp_path / "export"
    folder.mkdir()
    ids = exported("fiftyone", "image", folder)
    server = {"FIFTYONE_DATABASE_URI": database, "FIFTYONE_DATABASE_VALIDATION": "false", "FIFTYONE_DO_NOT_TRACK": "true"}

    def there() -> Any:
        return json.loads(run("fiftyone", folder, "-c", _COUNT_IN_FIFTYONE, **server).splitlines()[-1])

    for _ in range(2):
        run("fiftyone", folder, "load.py", **server)
    assert there() == [[id_, "cat", None, []] for id_ in ids]
    run("fiftyone", folder, "-c", _LABEL_IN_FIFTYONE, **server)
    run("fiftyone", folder, "load.py", **server)
    assert there() == [[ids[0], "cat", "dog", []], [ids[1], "cat", None, ["skipped"]], [ids[2], "cat", "cat", ["rejected"]]]
    run("fiftyone", folder, "save.py", **server)
    found = annotations("fiftyone", folder / "labels.jsonl")
    assert [(each.id, each.state, each.raw, each.query, each.rank) for each in found] == [
        ("7", "labelled", "dog", "round-1", 0),
        ("-8", "skipped", None, "round-1", 1),
        ("9", "rejected", None, "round-1", 2),
    ]
    assert all(each.labelled_at is not None for each in found)
