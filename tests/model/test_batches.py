import numpy as np
import pytest
import torch

from raystream.errors import ModelError
from raystream.model.batches import BatchPredictor
from raystream.model.prediction import Prediction
from raystream.model.promise import Promise

CPU = torch.device("cpu")


def squares(inputs):
    values = inputs[0].float()
    return Prediction(torch.stack([values, values**2], 1), values[:, None], samples=values[:, None, None].expand(-1, 3, 2))


def test_pieces_are_put_together_in_order():
    """Rows beyond batch_size run in pieces; logits, embedding and samples come back as one, in order."""
    seen = []

    def forward(inputs):
        seen.append(len(inputs[0]))
        return squares(inputs)

    found = BatchPredictor(forward, promise=Promise("m"), device=CPU, batch_size=4).predict((torch.arange(10),))
    assert seen == [4, 4, 2]
    assert found.logits[:, 1].tolist() == [i * i for i in range(10)]
    assert found.embedding[:, 0].tolist() == list(range(10))
    assert found.samples.shape == (10, 3, 2)
    assert found.samples[:, 1, 1].tolist() == list(range(10))


def test_memory_that_runs_out_halves_the_batch_for_good():
    """What fits is found by halving, every row is predicted, and the smaller size stays."""

    def forward(inputs):
        if len(inputs[0]) > 3:
            raise torch.OutOfMemoryError("out of memory")
        return squares(inputs)

    model = BatchPredictor(forward, promise=Promise("m"), device=CPU, batch_size=16)
    assert model.predict((torch.arange(13),)).logits[:, 0].tolist() == list(range(13))
    assert model.batch_size == 3


def test_one_row_that_does_not_fit():
    """A single row out of memory is an error that names the model and the device."""

    def forward(inputs):
        raise MemoryError("no room")

    with pytest.raises(ModelError, match=r"^m: one row does not fit into the memory of cpu \(no room\)"):
        BatchPredictor(forward, promise=Promise("m"), device=CPU, batch_size=4).predict((torch.arange(9),))


def test_what_the_model_raises_becomes_one_sentence():
    """The last line of its message counts, with what it was given, texts too."""

    def forward(inputs):
        raise ValueError("Traceback of something\n  deep inside\nthe reason\n")

    values = (torch.zeros(2, 3, dtype=torch.uint8), np.array(["a", "b"], dtype=object))
    with pytest.raises(ModelError, match=r"^m raised ValueError: the reason on inputs uint8 \(2, 3\), texts \(2,\); check"):
        BatchPredictor(forward, promise=Promise("m"), device=CPU, batch_size=4).predict(values)


def test_a_lost_device_is_not_the_models_fault():
    """A CUDA error passes unchanged: the process has to end."""

    def forward(inputs):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    with pytest.raises(RuntimeError, match=r"^CUDA error"):
        BatchPredictor(forward, promise=Promise("m"), device=CPU, batch_size=4).predict((torch.arange(9),))
