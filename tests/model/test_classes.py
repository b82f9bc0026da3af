import pytest

from raystream.errors import ModelError, QueryError
from raystream.model import check_classes, class_names


def test_names_from_a_list_or_nothing():
    """A list is taken as it is; none stays none."""
    assert class_names(["b", "a"]) == ["b", "a"]
    assert class_names(None) is None


@pytest.mark.parametrize(
    ("name", "text"),
    [("c.txt", "cat\nhot dog\n\n"), ("c.txt", "\ufeffcat\r\n hot dog "), ("c.json", '["cat", "hot dog"]'), ("c", ' ["cat",\n"hot dog"]\n')],
)
def test_names_from_a_file(tmp_path, name, text):
    """A text file holds one name a line, a JSON file a list."""
    path = tmp_path / name
    path.write_text(text, encoding="utf-8", newline="")
    assert class_names(str(path)) == ["cat", "hot dog"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cat\ndog\ncat", "'cat' twice, at 0 and 2"),
        ("cat\n\ndog", "line 2 is empty"),
        ('["cat",', "line 1 isn't JSON"),
        ("[1, 2]", "something else than a list of names"),
    ],
)
def test_files_that_hold_no_names(tmp_path, text, message):
    """Repeated, empty and unreadable names are mistakes in the query."""
    path = tmp_path / "classes"
    path.write_text(text)
    with pytest.raises(QueryError, match=message):
        class_names(str(path))


def test_a_file_that_is_not_there(tmp_path):
    """A missing file is named."""
    with pytest.raises(QueryError, match=r"model\.classes .*gone\.txt can't be read: No such file"):
        class_names(str(tmp_path / "gone.txt"))


def test_repeated_names_in_a_list():
    """A list is checked like a file."""
    with pytest.raises(QueryError, match="'a' twice"):
        class_names(["a", "b", "a"])


def test_names_must_be_as_many_as_outputs():
    """The model's outputs and the names are counted against each other; without names all is well."""
    check_classes(None, 3)
    check_classes(["a", "b"], 2)
    with pytest.raises(ModelError, match="names 2 classes, but the model has 3 outputs"):
        check_classes(["a", "b"], 3)
