import warnings
from pathlib import Path

import pytest
import torch

from raystream.errors import ModelError
from raystream.model import load
from raystream.model.promise import Promise
from raystream.model.signature import Input, Outputs, Signature, check_forward, in_order
from raystream.query import Model

ROWS = Input("rows", torch.float32, ("n", 6))
IDS = Input("ids", torch.int64, (None, None))


def test_inputs_take_the_models_dtypes():
    """Floating numbers and integers change their width; open lengths may be any."""
    got = Signature([ROWS, IDS], "m").fit((torch.ones(3, 6, dtype=torch.float16), torch.ones(3, 9, dtype=torch.uint8)))
    assert [value.dtype for value in got] == [torch.float32, torch.int64]


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ([torch.ones(3, 7)], r"m: input rows float32 \(n, 6\) got float32 \(3, 7\)"),
        ([torch.ones(3, 6, 1)], r"got float32 \(3, 6, 1\)"),
        ([torch.ones(3, 6, dtype=torch.uint8)], r"got uint8 \(3, 6\)"),
        ([torch.ones(3, 6, dtype=torch.bool)], r"got bool \(3, 6\)"),
        ([torch.ones(3, 6)] * 2, r"m takes 1 inputs \(rows float32 \(n, 6\)\), but pool.inputs gives 2"),
    ],
)
def test_inputs_that_do_not_fit(values, says):
    """Expected and got stand in one sentence; kinds of numbers are not converted silently."""
    with pytest.raises(ModelError, match=says):
        Signature([ROWS], "m").fit(values)


def test_a_model_of_one_batch_size_is_refused():
    """Its last batch would fail: the error says how many rows it takes and what to do."""
    with pytest.raises(ModelError, match=r"takes batches of exactly 4 rows, expected of any number; export it again"):
        Signature([Input("rows", torch.float32, (4, 6))], "m")


LOGITS, EMBEDDINGS, OTHER = torch.ones(2, 3), torch.full((2, 2, 2), 7.0), torch.zeros(2, 5)


@pytest.mark.parametrize(
    ("output", "name", "expected"),
    [
        ((LOGITS, EMBEDDINGS), None, EMBEDDINGS),
        ([LOGITS, OTHER, EMBEDDINGS], "2", EMBEDDINGS),
        ({"x": OTHER, "embedding": EMBEDDINGS, "logits": LOGITS}, None, EMBEDDINGS),
        ({"x": EMBEDDINGS, "logits": LOGITS}, None, EMBEDDINGS),
        ({"out": LOGITS, "x": OTHER, "y": EMBEDDINGS}, "y", EMBEDDINGS),
    ],
)
def test_outputs_are_chosen_by_name_then_by_order(output, name, expected):
    """`logits` or the first are the logits; the named, `embedding` or the next one is the embedding, flattened."""
    found = Outputs(True, name, Promise("m"), "do so").prediction(output, 2)
    assert torch.equal(found.logits, LOGITS)
    assert torch.equal(found.embedding, expected.flatten(1))
    assert Outputs(False, None, Promise("m"), "do so").prediction(output, 2).embedding is None


@pytest.mark.parametrize(
    ("output", "name", "says"),
    [
        (LOGITS, None, "m gives logits alone, but an embedding is needed; do so"),
        ({"logits": LOGITS, "pooled": OTHER}, "poled", r"model.embedding is 'poled', which is no output of m; did you mean 'pooled'\?"),
        ((LOGITS, OTHER), "body", "it has 0, 1"),
        ((LOGITS, OTHER[0]), None, r"output 1 is torch.float32 \(5,\), expected floating numbers \(2, ...\)"),
        ((LOGITS, [OTHER]), None, "output 1 is list"),
        ((torch.ones(2, 3).long(), OTHER), None, "floating numbers, not classes"),
        ([], None, "returned an empty list"),
    ],
)
def test_outputs_that_can_not_be_used(output, name, says):
    """An output that isn't there, or is no embedding, is named, with the nearest name."""
    with pytest.raises(ModelError, match=says):
        Outputs(True, name, Promise("m"), "do so").prediction(output, 2)


def test_names_put_inputs_into_the_models_order() -> None:
    """By name the order of the pool's columns doesn't matter; without names it is the model's."""
    assert in_order(["b", "a"], ["a", "b"], "m")((1, 2)) == (2, 1)
    assert in_order([], ["a", "b"], "m")((1, 2)) == (1, 2)


@pytest.mark.parametrize(
    ("names", "message"),
    [(["a", "bb"], r"pool.inputs names 'bb', which m doesn't take"), (["a"], r"pool.inputs gives m nothing for 'b'")],
)
def test_names_must_be_the_models(names: list[str], message: str) -> None:
    """All of them and no other."""
    with pytest.raises(ModelError, match=message):
        in_order(names, ["a", "b"], "m")


def test_forward_is_checked_as_python_would_call_it() -> None:
    """Defaults may be left out, keyword-only arguments and **kwargs are names, positional-only ones aren't."""

    def forward(a: int, b: int = 1, *, c: int) -> None: ...

    def anything(**values: int) -> None: ...

    def nameless(a: int, /) -> None: ...

    check_forward(forward, ["c", "a"], "m")
    check_forward(anything, ["x"], "m")
    for function, names, message in (
        (forward, ["a"], "nothing for 'c'"),
        (forward, ["a", "c", "d"], "names 'd'"),
        (nameless, ["a"], "names 'a'"),
    ):
        with pytest.raises(ModelError, match=message):
            check_forward(function, names, "m")


@pytest.mark.slow
def test_compiled_models_take_names(tmp_path: Path) -> None:
    """TorchScript and torch.export: the same logits by name, in any order, as by position."""

    class Two(torch.nn.Module):
        def forward(self, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
            return left - 2 * right

    left, right = torch.randn(4, 3), torch.randn(4, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.trace(Two(), (left, right)), tmp_path / "two.pt")
        rows = torch.export.Dim("rows")
        torch.export.save(torch.export.export(Two(), (left, right), dynamic_shapes=({0: rows}, {0: rows})), tmp_path / "two.pt2")
    for kind, file in (("torchscript", "two.pt"), ("export", "two.pt2")):
        spec = Model(kind=kind, source=str(tmp_path / file), device="cpu")
        by_name = load(spec, embedding=False, names=["right", "left"]).predict((right, left)).logits
        torch.testing.assert_close(by_name, left - 2 * right)
        with pytest.raises(ModelError, match="did you mean 'right'"):
            load(spec, embedding=False, names=["rigth", "left"])
