import pickle
import zipfile

import pytest
import torch

from raystream.errors import ModelError
from raystream.model.weights import contents, find_file, find_folder, what_file


def test_files_are_told_apart_by_what_they_hold(tmp_path):
    """A name says nothing: archives, checkpoints, pickles and others are told by their content."""
    torch.save({"a": torch.ones(2)}, tmp_path / "a.pt2")
    (tmp_path / "b.skops").write_bytes(pickle.dumps({"a": 1}))
    (tmp_path / "c.onnx").write_bytes(b"")
    (tmp_path / "d.joblib").write_bytes(b"x\x9c")
    (tmp_path / "e.pt").write_bytes(b"PK\x03\x04 and then nothing")
    (tmp_path / "f.pt").write_bytes(b"\x08\x07")
    with zipfile.ZipFile(tmp_path / "g.pt2", "w") as archive:
        archive.writestr("photos/cat.jpg", b"")
    found = [what_file(path) for path in sorted(tmp_path.iterdir())]
    assert found == [
        "a torch checkpoint", "a pickle", "an empty file", "a pickle", "a zip file that is cut short", "something else", "a zip file",
    ]  # fmt: skip


def test_a_wrong_file_is_named_with_what_was_expected(tmp_path):
    """Each message says the path, what it is, what was expected and what to do."""
    torch.save({}, tmp_path / "a.pt")
    with pytest.raises(ModelError, match=r"a\.pt is a torch checkpoint, expected a TorchScript archive; do so"):
        find_file(str(tmp_path / "a.pt"), "a TorchScript archive", "do so")
    with pytest.raises(ModelError, match=r"is a folder, expected a skops file"):
        find_file(str(tmp_path), "a skops file", "do so")
    with pytest.raises(ModelError, match=r"gone is not there, expected a skops file"):
        find_file(str(tmp_path / "gone"), "a skops file", "do so")
    for path, what in ((tmp_path / "a.pt", "is a file"), (tmp_path / "gone", "is not there"), (tmp_path, "holds no config.json")):
        with pytest.raises(ModelError, match=f"{what}, expected .*; do so"):
            find_folder(str(path), "config.json", "do so")


def test_a_folders_files_in_a_fixed_order(tmp_path):
    """All files at any depth, by names relative to the folder, without those that start with a dot."""
    for name in ("b.json", "a/z.bin", "a/.cache/x", ".git/y", ".gitattributes"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    assert [name for name, _ in contents(str(tmp_path))] == ["a/z.bin", "b.json"]
    with pytest.raises(ModelError, match=r"is not there"):
        list(contents(str(tmp_path / "gone")))


def test_weights_beside_an_onnx_model_belong_to_it(tmp_path):
    """The files that its tensors are kept in are found, also under long names, and files of that folder that it doesn't name are not."""
    onnx = pytest.importorskip("onnx")
    names = ["weights.bin", "w" * 200 + ".data"]
    tensors = []
    for i, name in enumerate(names):
        tensor = onnx.numpy_helper.from_array(torch.ones(3).numpy(), f"w{i}")
        tensor.data_location = onnx.TensorProto.EXTERNAL
        tensor.ClearField("raw_data")
        tensor.external_data.add(key="location", value=name)
        tensor.external_data.add(key="length", value="12")
        tensors.append(tensor)
        (tmp_path / name).write_bytes(b"0" * 12)
    (tmp_path / "other.bin").write_bytes(b"1")
    graph = onnx.helper.make_graph([], "g", [], [], tensors)
    (tmp_path / "m.onnx").write_bytes(onnx.helper.make_model(graph).SerializeToString())
    assert [name for name, _ in contents(str(tmp_path / "m.onnx"))] == ["", *sorted(names)]
