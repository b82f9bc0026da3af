import pytest

from raystream.errors import ModelError
from raystream.model.source import optional


def test_a_package_that_is_not_installed():
    """The extra that installs it is named."""
    with pytest.raises(ModelError, match=r"model.kind onnx needs no_such_runtime, which is not installed; pip install 'raystream\[onnx\]'"):
        optional("no_such_runtime.inner", "onnx", "onnx")


def test_a_package_whose_import_fails(write_module):
    """A broken package is not called missing: its own reason stands in the message."""
    write_module("broken_one.py", "import no_such_dependency")
    write_module("broken_two.py", "raise ImportError('built for another torch\\nand more')")
    with pytest.raises(ModelError, match=r"needs broken_one, whose import failed: No module named 'no_such_dependency'"):
        optional("broken_one", "onnx", "onnx")
    with pytest.raises(ModelError, match=r"needs broken_two, whose import failed: built for another torch; reinstall"):
        optional("broken_two", "onnx", "onnx")


def test_a_package_that_is_there():
    """The module asked for is returned."""
    assert optional("json.decoder", "onnx", "onnx").JSONDecodeError
