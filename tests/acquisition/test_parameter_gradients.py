import pytest
import torch
from torch import nn

from raystream.acquisition import badge_norm, egl, egl_parameters
from raystream.errors import ModelError, QueryError


class Net(nn.Module):
    """A convolution, frozen batch norm, a hidden layer and a head, in float64."""

    def __init__(self, classes=4, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.features = nn.Sequential(
            nn.Conv2d(1, 3, 2), nn.BatchNorm2d(3), nn.Tanh(), nn.Dropout(0.5), nn.Flatten(), nn.Linear(12, 5), nn.Tanh()
        )
        self.head = nn.Linear(5, classes)
        self.double().eval()

    def forward(self, x):
        return self.head(self.features(x))


def images(n, seed=1):
    return torch.randn(n, 1, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def by_backward(model, inputs, classes, temperature=1.0):
    """(n,): one backward pass a row and class, with autograd."""
    scores = []
    for row in range(len(inputs)):
        score = 0.0
        log_p = (model(inputs[row : row + 1]) / temperature).log_softmax(dim=1)[0]
        for y in log_p.argsort(descending=True)[:classes]:
            gradients = torch.autograd.grad(-log_p[y], list(model.parameters()), retain_graph=True)
            score += log_p[y].exp().item() * torch.cat([values.flatten() for values in gradients]).norm().item()
        scores.append(score)
    return torch.tensor(scores, dtype=torch.float64)


@pytest.mark.parametrize(("classes", "temperature"), [(4, 1.0), (2, 1.0), (1, 2.0), (99, 0.5)])
def test_agrees_with_one_backward_pass_per_class(classes, temperature):
    """It is the sum over the likeliest classes of probability times length of the gradient that autograd finds."""
    model, x = Net(), images(5)
    found = egl_parameters(model, x, classes=classes, temperature=temperature)
    torch.testing.assert_close(found, by_backward(model, x, classes, temperature), rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_over_the_last_layer_it_is_the_closed_form(temperature):
    """With all classes over the head's weight and bias, or its weight alone, it equals egl."""
    model, x = Net(), images(7)
    with torch.no_grad():
        h, logits = model.features(x), model(x)
    for names, bias in ((["head.weight", "head.bias"], True), (["head.weight"], False)):
        found = egl_parameters(model, x, parameters=names, temperature=temperature)
        torch.testing.assert_close(found, egl(logits, h, bias=bias, temperature=temperature), rtol=1e-10, atol=1e-13)
    one = egl_parameters(model, x, parameters=["head.weight"], classes=1)
    torch.testing.assert_close(one, logits.softmax(1).amax(1) * badge_norm(logits, h, bias=False), rtol=1e-10, atol=1e-13)


def test_sure_rows_keep_their_digits():
    """Where float32 has p = 1, the gradient of the predicted class isn't 0 but as long as the closed form says."""
    layer = nn.Linear(1, 2, bias=False)
    layer.weight.data = torch.tensor([[30.0], [0.0]])
    x = torch.ones(1, 1)
    torch.testing.assert_close(egl_parameters(layer, x), egl(layer(x), x, bias=False), rtol=1e-5, atol=0)


def test_memory_changes_nothing_and_the_model_stays_as_it_was():
    """Rows computed one at a time or all at once score the same; weights, gradients, buffers and inputs stay."""
    model, x = Net(), images(6)
    before = {name: values.clone() for name, values in model.state_dict().items()}
    whole = egl_parameters(model, x)
    torch.testing.assert_close(egl_parameters(model, x, memory=1), whole, rtol=1e-12, atol=1e-15)
    assert all(torch.equal(values, before[name]) for name, values in model.state_dict().items())
    assert all(values.grad is None for values in model.parameters())
    assert not whole.requires_grad
    assert egl_parameters(model, x[:0]).shape == (0,)


def test_works_as_workers_run_models():
    """Under inference mode, with frozen parameters and several inputs."""

    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(3, 4)

        def forward(self, one, two):
            return self.head(one + two)

    model, x = Sum().requires_grad_(False), torch.randn(5, 3)
    with torch.inference_mode():
        found = egl_parameters(model, (x * 1, x * 1))
        torch.testing.assert_close(found, egl(model(x, x), 2 * x))


def test_what_does_not_work_is_refused():
    """Training mode, unknown or no parameters, no classes: errors that say what to do."""
    model, x = Net(), images(2)
    with pytest.raises(QueryError, match=r"'head\.weights'.*did you mean 'head\.weight'"):
        egl_parameters(model, x, parameters=["head.weights"])
    with pytest.raises(QueryError, match="no parameters"):
        egl_parameters(nn.Identity(), torch.zeros(2, 3))
    with pytest.raises(QueryError, match="classes is 0"):
        egl_parameters(model, x, classes=0)
    with pytest.raises(ModelError, match=r"Net can't be differentiated row by row \(.*evaluation mode"):
        egl_parameters(model.train(), x)
