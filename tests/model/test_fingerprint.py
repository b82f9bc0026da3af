import importlib
import sys

import pytest

from raystream.errors import ModelError, QueryError
from raystream.model import fingerprint
from raystream.query import Model


@pytest.fixture
def package(write_module, tmp_path):
    """A package with a network, a sibling and a data file, and weights."""
    write_module("my_nets/__init__.py", "raise RuntimeError('never imported')")
    write_module("my_nets/deep/net.py", "class Net: ...")
    write_module("my_nets/deep/layers.py", "width = 3")
    write_module("my_nets/notes.txt", "one")
    weights = tmp_path / "w.safetensors"
    weights.write_bytes(b"one")
    return Model(source="my_nets.deep.net:Net", args={"a": 1, "b": [1, 2]}, weights=str(weights))


def changed(spec, **update):
    return Model(**{**spec.model_dump(include=spec.model_fields_set), **update})


def test_the_same_model_has_the_same_fingerprint(package):
    """It is a sha256 in hex, doesn't depend on the order of args, and needs no import of the source."""
    assert fingerprint(package) == fingerprint(changed(package, args={"b": [1, 2], "a": 1}))
    assert len(fingerprint(package)) == 64
    assert "my_nets" not in sys.modules


def test_what_changes_outputs_changes_it(package, write_module, tmp_path):
    """Other weights, args, source, version, or any Python file of the package: each makes another fingerprint."""
    (tmp_path / "other.safetensors").write_bytes(b"two")
    seen = [
        fingerprint(package),
        fingerprint(changed(package, args={"a": 2, "b": [1, 2]})),
        fingerprint(changed(package, args={})),
        fingerprint(changed(package, version="2")),
        fingerprint(changed(package, source="my_nets.deep.net:Other")),
        fingerprint(changed(package, weights=str(tmp_path / "other.safetensors"))),
        fingerprint(changed(package, weights=None)),
    ]
    sibling = write_module("my_nets/deep/layers.py", "width = 4")
    seen.append(fingerprint(package))
    sibling.rename(sibling.with_name("parts.py"))
    seen.append(fingerprint(package))
    write_module("my_nets/new.py", "")
    seen.append(fingerprint(package))
    assert len(set(seen)) == len(seen)


def test_what_stands_elsewhere_in_the_key_leaves_it(package, write_module, tmp_path):
    """Batch size, precision, temperature, embedding, device, names of classes, the weights' path and other files don't count."""
    before = fingerprint(package)
    (tmp_path / "moved.safetensors").write_bytes(b"one")
    options = {"batch_size": 7, "precision": "float16", "temperature": 2.0, "embedding": "x", "device": "cpu", "classes": ["a"]}
    for key, value in {**options, "weights": str(tmp_path / "moved.safetensors")}.items():
        assert fingerprint(changed(package, **{key: value})) == before, key
    write_module("my_nets/notes.txt", "two")
    write_module("my_nets/__pycache__/net.py", "compiled")
    write_module("my_nets/.venv/thing.py", "not a package")
    write_module("elsewhere.py", "")
    assert fingerprint(package) == before


def test_a_module_of_one_file(write_module):
    """Of a module that is a single file that file alone counts."""
    write_module("one_net.py", "Net = 1")
    spec = Model(source="one_net:Net")
    before = fingerprint(spec)
    write_module("neighbour.py", "")
    assert fingerprint(spec) == before
    write_module("one_net.py", "Net = 2")
    assert fingerprint(spec) != before


def test_what_a_single_file_imports_beside_it_counts(write_module):
    """Modules and packages of its folder, through each other and wherever the import stands; what isn't imported doesn't."""
    spec = Model(source="one_net:Net")
    write_module("one_net.py", "import os, layers\ndef Net():\n    from blocks.deep import x")
    parts = ["layers.py", "blocks/__init__.py", "blocks/deep.py", "blocks/other.py", "further.py"]
    texts = ["from further import width", "", "x = 1", "", "import one_net, missing\nwidth = 3"]
    for part, text in zip(parts, texts, strict=True):
        write_module(part, text)
    write_module("neighbour.py", "")
    seen = [fingerprint(spec)]
    write_module("neighbour.py", "changed = 1")
    assert fingerprint(spec) == seen[0]
    for part in parts:
        write_module(part, "changed = 1\n" + texts[parts.index(part)])
        seen.append(fingerprint(spec))
    write_module("further.py", "this is no Python")
    seen.append(fingerprint(spec))
    write_module("missing.py", "")
    assert fingerprint(spec) == seen[-1]
    assert len(set(seen)) == len(seen)


def test_an_installed_file_stands_alone(write_module, tmp_path, monkeypatch):
    """Beside it lies everything that is installed, and a version of which tells more."""
    write_module("site-packages/lone_net.py", "import lone_friend")
    write_module("site-packages/lone_friend.py", "a = 1")
    monkeypatch.syspath_prepend(tmp_path / "code" / "site-packages")
    before = fingerprint(Model(source="lone_net:Net"))
    write_module("site-packages/lone_friend.py", "a = 2")
    assert fingerprint(Model(source="lone_net:Net")) == before


def test_links_to_folders_are_followed(package, write_module, tmp_path):
    """Code behind a link counts, and links that lead in circles end."""
    before = fingerprint(package)
    shared = write_module("shared/parts.py", "width = 3")
    folder = tmp_path / "code" / "my_nets"
    (folder / "linked").symlink_to(shared.parent)
    seen = [before, fingerprint(package)]
    shared.write_text("width = 4")
    seen.append(fingerprint(package))
    assert len(set(seen)) == 3
    (folder / "self").symlink_to(folder)
    (folder / "up").symlink_to(tmp_path / "code")
    assert fingerprint(package) == seen[-1]
    (folder / "deep" / "sideways").symlink_to(shared.parent)
    (shared.parent / "back").symlink_to(folder / "deep")
    assert fingerprint(package) == fingerprint(package) != seen[-1]


def test_a_folder_without_init_is_a_package(write_module):
    """A namespace package counts with all its files."""
    write_module("space/net.py", "Net = 1")
    before = fingerprint(Model(source="space.net:Net"))
    write_module("space/other.py", "")
    assert fingerprint(Model(source="space.net:Net")) != before


@pytest.mark.parametrize("source", ["math:sin", "sys:exit", "_json:scanstring", "os:path"])
def test_modules_without_source_have_one_too(source):
    """Compiled and built-in modules are known by their file or their version."""
    assert fingerprint(Model(source=source)) == fingerprint(Model(source=source))


def test_columns_are_known_by_their_names():
    """For kind columns the kind and the names count, and which is which."""
    specs = [{"logits": "a"}, {"probabilities": "a"}, {"embedding": "a"}]
    specs += [{"logits": "a", "embedding": "b"}, {"logits": "b", "embedding": "a"}]
    assert len({fingerprint(Model(kind="columns", **spec)) for spec in specs}) == len(specs)
    assert fingerprint(Model(kind="columns", logits="a", batch_size=3)) == fingerprint(Model(kind="columns", logits="a"))


@pytest.mark.parametrize(
    ("spec", "error", "message"),
    [
        ({"source": "no_such_module_here.deep:Net"}, ModelError, "there is no module 'no_such_module_here'"),
        ({"source": "math:sin", "weights": "/nowhere/w.pt"}, ModelError, "model.weights /nowhere/w.pt can't be read: No such file"),
        ({"source": "math:sin", "args": {"a": {1, 2}}}, QueryError, "model.args can't be written as JSON"),
        ({"source": "math"}, QueryError, "expected an import path"),
    ],
)
def test_what_is_missing_is_named(spec, error, message):
    """A missing module or file, and args that aren't data, are errors that say so."""
    with pytest.raises(error, match=message):
        fingerprint(Model(**spec))


def test_a_folder_that_is_listed_twice_counts_once(write_module, tmp_path, monkeypatch):
    """A package without __init__ is the same however often its parent stands in sys.path, as in a worker it may."""
    write_module("loose_nets/net.py", "class Net: ...")
    once = fingerprint(Model(source="loose_nets.net:Net"))
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path / "code"), str(tmp_path / "code")])
    importlib.invalidate_caches()
    assert fingerprint(Model(source="loose_nets.net:Net")) == once
