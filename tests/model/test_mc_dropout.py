import copy
import dataclasses
import math
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from raystream.errors import ModelError
from raystream.model import bad_output_rows, load, mc_dropout
from raystream.model.dropout_mode import keep_mask
from raystream.model.signature import EmbeddingTap
from raystream.model.torch_model import TorchPredictor
from raystream.query import Model

CPU = torch.device("cpu")
SAMPLES, SEED = 4, 11


@pytest.fixture(autouse=True)
def _fixed_weights():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def predictor(network, batch_size=64, samples=SAMPLES, seed=SEED, embedding=False, place=None, **options):
    tap = EmbeddingTap(network, place) if embedding else None
    made = {"embedding": tap, "mc_samples": samples, "seed": seed, **options}
    return TorchPredictor(network, source="nets:Net", device=CPU, batch_size=batch_size, **made)


def mask(sample, call, shape, p):
    """What the rows are multiplied by; sample None drops nothing."""
    if sample is None:
        return torch.ones(shape)
    return torch.from_numpy(keep_mask(SEED, sample, call, shape, p)).float() / (1 - p)


def agrees(network, reference, *inputs, **options):
    """Whether the samples are those of the reference, the deterministic network is its None, and how they were run."""
    model = predictor(network, **options)
    found = model.predict(inputs)
    with torch.no_grad():
        expected = torch.stack([reference(sample, *inputs) for sample in range(SAMPLES)], dim=1)
        torch.testing.assert_close(found.samples, expected, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(found.logits, reference(None, *inputs), atol=1e-6, rtol=1e-5)
    return model._dropout._vmap


class Residual(nn.Module):
    """Dropout in a branch around which the trunk passes, of whole channels and by the functional interface, and batch norm."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(2, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.branch, self.late = nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.drop, self.head = nn.Dropout2d(0.3), nn.Linear(6, 3)
        for norm in (self.norm, self.late):
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 2)

    def forward(self, images):
        trunk = F.relu(self.norm(self.stem(images)), inplace=True)
        branch = self.late(self.branch(self.drop(trunk)))
        branch += trunk
        return self.head(F.dropout(F.relu(branch).mean((2, 3)), 0.5, training=self.training))

    def reference(self, sample, images):
        trunk = F.relu(self.norm(self.stem(images)))
        branch = self.late(self.branch(trunk * mask(sample, 0, (1, 6, 1, 1), 0.3))) + trunk
        return self.head(F.relu(branch).mean((2, 3)) * mask(sample, 1, (1, 6), 0.5))


def test_samples_are_the_sub_networks():
    """Each sample is the network multiplied by its masks, of one shape for all rows; residual links and channels included."""
    network = Residual().eval()
    assert agrees(network, network.reference, torch.randn(9, 2, 5, 5))


def test_the_network_stays_as_it_was():
    """Batch norm's statistics, weights and evaluation mode are untouched; only torch's dropout is switched on."""
    network = Residual().eval()
    before = copy.deepcopy(network.state_dict())
    model = predictor(network)
    model.predict((torch.randn(9, 2, 5, 5) * 9,))
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert not any(module.training for module in network.modules())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())


@pytest.mark.parametrize("place", [None, "norm"])
def test_logits_and_embedding_are_those_of_the_ordinary_pass(place):
    """One call gives what the network gives without dropout, by default and for a named module, in every batch."""
    network, rows = Residual().eval(), torch.randn(9, 2, 5, 5)
    plain = predictor(copy.deepcopy(network), samples=0, embedding=True, place=place).predict((rows,))
    model = predictor(network, embedding=True, place=place)
    for _ in range(2):
        found = model.predict((rows,))
        torch.testing.assert_close(found.logits, plain.logits, atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(found.embedding, plain.embedding, atol=1e-6, rtol=1e-6)
        assert found.samples.shape == (9, SAMPLES, 3)
        assert found.samples.is_contiguous()


@pytest.mark.parametrize(("budget", "batch_size"), [(1, 64), (3 * 6 * 4 * 25, 64), (2 * 3 * 3 * 600, 64), (1 << 25, 4), (1 << 25, 1)])
def test_the_pieces_do_not_matter(monkeypatch, budget, batch_size):
    """Samples are the same however many rows or samples run at once, and whatever the order of the rows."""
    network, rows = Residual().eval(), torch.randn(9, 2, 5, 5)
    whole = predictor(network).predict((rows,))
    monkeypatch.setitem(mc_dropout._PASS_BYTES, "cpu", budget)
    order = torch.randperm(9)
    found = predictor(network, batch_size, embedding=True).predict((rows[order],))
    torch.testing.assert_close(found.samples, whole.samples[order], atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(found.logits, whole.logits[order], atol=1e-6, rtol=1e-6)
    assert found.embedding.shape == (9, 6)


def test_the_trunk_runs_once():
    """What lies before the first dropout sees each row once for all samples; what lies behind, under vmap, once for all, too."""

    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head, self.seen = nn.Linear(4, 5), nn.Linear(5, 3), []

        def forward(self, rows):
            features = self.body(rows)
            self.seen.append((len(rows), torch._C._functorch.is_batchedtensor(features)))
            return self.head(F.dropout(features))

    network = Counting().eval()
    model = predictor(network, samples=20)
    model.predict((torch.randn(50, 4),))
    network.seen.clear()
    model.predict((torch.randn(50, 4),))
    assert network.seen == [(50, False)]


def test_fewer_samples_are_the_first_of_more():
    """Sample k doesn't depend on how many there are, and another seed gives other ones."""
    network, rows = Residual().eval(), torch.randn(9, 2, 5, 5)
    few, many, other = (predictor(network, samples=n, seed=s).predict((rows,)).samples for n, s in ((2, 5), (7, 5), (2, 6)))
    torch.testing.assert_close(many[:, :2], few, atol=1e-6, rtol=1e-6)
    assert float((other - few).abs().max()) > 1e-2


@pytest.mark.slow
def test_another_process_draws_the_same(nets, tmp_path):
    """A worker elsewhere gives the same samples for the same rows."""
    code = (
        f"import sys, torch; sys.path.insert(0, {str(tmp_path / 'code')!r})\n"
        "from raystream.model import load\nfrom raystream.query import Model\n"
        f"model = load(Model(source='{nets}:Net', device='cpu'), embedding=False, mc_samples=3, seed=8)\n"
        "print(model.predict((torch.linspace(-1, 1, 30).view(5, 6),)).samples.tolist())"
    )
    there = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    here = load(Model(source=f"{nets}:Net", device="cpu"), embedding=False, mc_samples=3, seed=8)
    found = here.predict((torch.linspace(-1, 1, 30).view(5, 6),)).samples
    torch.testing.assert_close(torch.tensor(eval(there)), found, atol=1e-6, rtol=1e-6)


class Encoder(nn.Module):
    """One of torch's transformer layers, which have a fused path and attention dropout, and its arithmetic written out."""

    def __init__(self, batch_first):
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.25, batch_first=batch_first)
        self.encoder, self.head = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False), nn.Linear(8, 3)
        self.batch_first = batch_first

    def forward(self, rows):
        rows = rows if self.batch_first else rows.transpose(0, 1)
        return self.head(self.encoder(rows).mean(1 if self.batch_first else 0))

    def reference(self, sample, rows):
        layer, length = self.encoder.layers[0], rows.shape[1]
        attention = layer.self_attn

        def drop(call):
            shape = (1, length, 12 if call == 2 else 8) if self.batch_first else (length, 1, 12 if call == 2 else 8)
            drawn = mask(sample, call, shape, 0.25)
            return drawn if self.batch_first else drawn.transpose(0, 1)

        query, key, value = F.linear(rows, attention.in_proj_weight, attention.in_proj_bias).unflatten(2, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        weights = torch.softmax(query @ key.transpose(2, 3) / 2, dim=3) * mask(sample, 0, (1, 2, length, length), 0.25)
        heads = attention.out_proj((weights @ value).transpose(1, 2).flatten(2))
        rows = layer.norm1(rows + heads * drop(1))
        inner = layer.linear2(F.relu(layer.linear1(rows)) * drop(2))
        return self.head(layer.norm2(rows + inner * drop(3)).mean(1))


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize(("rows", "length"), [(7, 5), (4, 4), (2, 3)])
def test_transformer_layers(batch_first, rows, length):
    """Attention's dropout and the layers' own are on, and the rows' axis is found where it stands, also among equal sizes."""
    network = Encoder(batch_first).eval()
    assert agrees(network, network.reference, torch.randn(rows, length, 8))


def test_a_shorter_sequence_is_the_same_sub_network():
    """After a long batch, a short one has the first part of its masks."""
    network = Encoder(True).eval()
    model = predictor(network)
    model.predict((torch.randn(3, 9, 8),))
    short = torch.randn(3, 4, 8)
    expected = torch.stack([network.reference(sample, short) for sample in range(SAMPLES)], dim=1)
    torch.testing.assert_close(model.predict((short,)).samples, expected.detach(), atol=1e-5, rtol=1e-5)


def test_attention_that_returns_its_weights():
    """Where MultiheadAttention folds its heads into the rows' axis, each head has a mask, the same for every row."""

    class Folded(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention, self.head = nn.MultiheadAttention(4, 2, dropout=0.5, batch_first=True), nn.Linear(4, 3)

        def forward(self, rows):
            return self.head(self.attention(rows, rows, rows, need_weights=True)[0].mean(1))

        def reference(self, sample, rows):
            own = self.attention
            query, key, value = F.linear(rows, own.in_proj_weight, own.in_proj_bias).unflatten(2, (3, 2, 2)).permute(2, 0, 3, 1, 4)
            weights = torch.softmax(query @ key.transpose(2, 3) / math.sqrt(2), dim=3) * mask(sample, 0, (2, 6, 6), 0.5)
            return self.head(own.out_proj((weights @ value).transpose(1, 2).flatten(2)).mean(1))

    network = Folded().eval()
    assert agrees(network, network.reference, torch.randn(5, 6, 4))


class Gated(nn.Module):
    """Attention that hands on its p in training mode alone, as transformers' models do."""

    def __init__(self, p, extra=0.0):
        super().__init__()
        self.p, self.extra, self.norm = p, extra, nn.BatchNorm1d(4)

    def forward(self, rows):
        made = F.scaled_dot_product_attention(rows, rows, rows, dropout_p=self.p if self.training else 0.0)
        return made + self.extra * self.training


class Attending(nn.Module):
    def __init__(self, gated, drop=0.0):
        super().__init__()
        self.body, self.gated, self.drop, self.head = nn.Linear(4, 4), gated, nn.Dropout(drop), nn.Linear(4, 3)

    def forward(self, rows):
        return self.head(self.drop(self.gated(self.body(rows))).mean(1))

    def reference(self, sample, rows):
        rows = self.body(rows)
        weights = torch.softmax(rows @ rows.transpose(1, 2) / 2, dim=2)
        return self.head((weights * mask(sample, 0, (1, 6, 6), self.gated.p) @ rows).mean(1))


def test_attention_that_asks_for_training_mode():
    """The module that hands attention its p in training alone is put into that mode by itself, and nothing below it."""
    network = Attending(Gated(0.5)).eval()
    assert agrees(network, network.reference, torch.randn(5, 6, 4))
    assert [module.training for module in (network, network.gated, network.gated.norm, network.drop)] == [False, True, False, False]


def test_attention_without_dropout_stays_in_evaluation_mode():
    """A module whose attention has no dropout in training either is left alone."""
    network = Attending(Gated(0.0, extra=5.0), drop=0.5).eval()
    predictor(network).predict((torch.randn(5, 6, 4),))
    assert not network.gated.training


def test_training_mode_that_changes_more_is_refused():
    """A module that computes something else in training can't be switched on, and is named."""
    network = Attending(Gated(0.5, extra=5.0), drop=0.5).eval()
    with pytest.raises(ModelError, match=r"nets:Net: gated \(Gated\) has dropout only in training mode"):
        predictor(network).predict((torch.randn(5, 6, 4),))
    assert not network.gated.training


class Between(nn.Module):
    """Something between two layers."""

    def __init__(self, between, width=4):
        super().__init__()
        self.body, self.between, self.head = nn.Linear(4, width), between, nn.Linear(width, 3)

    def forward(self, rows):
        return self.head(self.between(self.body(rows)))

    def with_mask(self, shape, p):
        return lambda sample, rows: self.head(self.body(rows) * mask(sample, 0, shape, p))


@pytest.mark.parametrize(
    ("between", "p"),
    [
        (nn.Dropout(0.5), 0.5),
        (nn.Dropout(0.25, inplace=True), 0.25),
        (lambda rows: F.dropout(rows, training=False), 0.5),
        (lambda rows: torch.dropout(rows, 0.25, False), 0.25),
        (lambda rows: torch.dropout_(rows, 0.25, False), 0.25),
        (lambda rows: torch.ops.aten.dropout(rows, 0.25, False), 0.25),
        (lambda rows: torch.ops.aten.dropout.default(rows, 0.25, False), 0.25),
    ],
)
def test_every_way_to_call_dropout(between, p):
    """Modules, functions and operators are seen alike, whatever `training` they are given."""
    network = Between(between).eval()
    assert agrees(network, network.with_mask((1, 4), p), torch.randn(9, 4))


@pytest.mark.parametrize("whole", [False, True])
def test_alpha_dropout_is_that_of_torch(whole):
    """Its kept and dropped values are the two that torch's own gives, scaled and shifted; a mask of its own decides which."""
    drop = nn.FeatureAlphaDropout(0.25) if whole else nn.AlphaDropout(0.25)
    network, rows = Between(drop, width=30).eval(), torch.randn(1, 4)
    with torch.no_grad():
        values = network.body(rows)
        drawn = torch.cat([F.alpha_dropout(values, 0.25, training=True) for _ in range(200)])
        low, high = drawn.amin(0), drawn.amax(0)
        constant = torch.stack([low, high]).mode(0).values.mode().values  # the dropped value is the same everywhere
        other = torch.where((low - constant).abs() < 1e-6, high, low)
        keep = torch.from_numpy(keep_mask(SEED, 2, 0, (1, 30), 0.25))[0]
        expected = network.head(torch.where(keep, other, constant))
    found = predictor(network).predict((rows,)).samples[0, 2]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("drop", "shape"), [(nn.Dropout1d, (3, 5)), (nn.Dropout2d, (3, 5, 2)), (nn.Dropout3d, (3, 5, 2, 2))])
def test_whole_channels_are_dropped(drop, shape):
    """dropout1d to 3d have one draw a channel, for all places in it."""
    network = nn.Sequential(nn.Unflatten(1, shape), drop(0.5), nn.Flatten(), nn.Linear(math.prod(shape), 3)).eval()

    def reference(sample, rows):
        return network[3]((rows.unflatten(1, shape) * mask(sample, 0, (1, 3, *[1] * (len(shape) - 1)), 0.5)).flatten(1))

    assert agrees(network, reference, torch.randn(4, math.prod(shape)))


def test_what_has_no_rows_has_one_mask():
    """Dropout of something that all rows share, such as a position's embedding, is drawn in its own shape."""

    class Positions(nn.Module):
        def __init__(self):
            super().__init__()
            self.places, self.head = nn.Parameter(torch.randn(6, 4)), nn.Linear(4, 3)

        def forward(self, rows):
            return self.head((rows + F.dropout(self.places)).mean(1))

        def reference(self, sample, rows):
            return self.head((rows + self.places * mask(sample, 0, (6, 4), 0.5)).mean(1))

    network = Positions().eval()
    assert agrees(network, network.reference, torch.randn(5, 6, 4))


def test_p_of_zero_and_one():
    """p = 0 is no dropout, p = 1 drops all in every sample, and neither disturbs the dropout beside it."""

    class Edges(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.never, self.often, self.always = nn.Linear(4, 6), nn.Dropout(0.0), nn.Dropout(0.5), nn.Dropout(1.0)
            self.head = nn.Linear(6, 3)

        def forward(self, rows):
            rows = self.never(self.body(rows))
            return self.head(self.often(rows) + self.always(rows))

        def reference(self, sample, rows):
            rows = self.body(rows)
            return self.head(rows * mask(sample, 1, (1, 6), 0.5) + (rows if sample is None else 0))

    network = Edges().eval()
    assert agrees(network, network.reference, torch.randn(5, 4))


@pytest.mark.parametrize("between", [nn.Identity(), nn.Dropout(0.0), nn.Dropout(1.0)])
def test_a_network_without_dropout_is_refused(between):
    """Where samples could not differ there is an error that names the model and says what to do, and no column of zeros."""
    with pytest.raises(ModelError, match=r"model\.source nets:Net: no dropout was active.*give it a dropout layer.*or a committee"):
        predictor(Between(between).eval()).predict((torch.randn(5, 4),))


def test_dropout_that_reaches_nothing_is_refused():
    """Samples that come out equal are an error though a dropout ran."""

    class Aside(Between):
        def forward(self, rows):
            F.dropout(rows)
            return self.head(self.body(rows))

    with pytest.raises(ModelError, match=r"nets:Net: all 4 of acquire\.mc_samples gave equal logits"):
        predictor(Aside(None).eval()).predict((torch.randn(5, 4),))


@pytest.mark.parametrize("noise", [lambda rows: rows * torch.rand_like(rows), lambda rows: rows - rows.mean(0)])
def test_samples_that_are_no_fixed_network_are_refused(noise):
    """Randomness that is no dropout, and rows that influence each other, are found on the first batch."""
    network = Between(lambda rows: noise(F.dropout(rows))).eval()
    with pytest.raises(ModelError, match=r"nets:Net: a dropout sample gave other logits for the same rows in another batch"):
        predictor(network).predict((torch.randn(9, 4),))


def test_dropout_on_a_table_of_rows_by_rows_is_refused():
    """What grows with the rows on two axes has no mask that is the same for every row."""
    network = Between(lambda rows: F.dropout(rows @ rows.T) @ rows).eval()
    with pytest.raises(ModelError, match=r"does not follow from the number of rows alone"):
        predictor(network).predict((torch.randn(9, 4),))


def test_dropout_between_recurrent_layers_is_refused():
    """It can't be seen from outside; the error comes when the model is loaded and names the module."""

    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell, self.head = nn.LSTM(4, 5, num_layers=2, dropout=0.5), nn.Linear(5, 3)

    with pytest.raises(ModelError, match=r"nets:Net: cell is LSTM with dropout 0\.5 between its layers.*put torch\.nn\.Dropout"):
        predictor(Recurrent())
    predictor(Recurrent(), samples=0)


class Steps(nn.Module):
    """A recurrent layer, and a decision on the values: vmap refuses both."""

    def __init__(self):
        super().__init__()
        self.cell, self.head = nn.GRU(4, 5, batch_first=True), nn.Linear(5, 3)

    def forward(self, rows):
        return self._after(F.dropout(rows, 0.5))

    def _after(self, rows):
        rows = self.cell(rows)[0][:, -1]
        return self.head(rows if float(rows.sum()) > 1e9 else -rows)

    def reference(self, sample, rows):
        return self._after(rows * mask(sample, 0, (1, *rows.shape[1:]), 0.5))


def test_what_vmap_refuses_runs_sample_by_sample():
    """The loop gives the samples that the masks define, embeddings and deterministic logits with them."""
    network = Steps().eval()
    assert not agrees(network, network.reference, torch.randn(5, 6, 4), embedding=True)


def test_the_loop_equals_vmap():
    """Of a network that runs both ways, both give the same samples to float tolerance."""
    network, rows = Encoder(True).eval(), torch.randn(5, 4, 8)
    one, two = predictor(network, embedding=True), predictor(network, embedding=True)
    two._dropout._vmap = False
    found, expected = one.predict((rows,)), two.predict((rows,))
    assert one._dropout._vmap
    torch.testing.assert_close(found.samples, expected.samples, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(found.embedding, expected.embedding, atol=1e-6, rtol=1e-5)


def test_weights_that_differ_between_samples():
    """Dropout of a layer's weights, one draw for all rows, leaves vmap for the loop and is right."""
    network = Between(nn.Identity()).eval()
    network.forward = lambda rows: network.head(F.linear(rows, F.dropout(network.body.weight, 0.25), network.body.bias))

    def reference(sample, rows):
        return network.head(F.linear(rows, network.body.weight * mask(sample, 0, (4, 4), 0.25), network.body.bias))

    agrees(network, reference, torch.randn(5, 4))


@pytest.mark.parametrize("failures", [1, 4, 5])
def test_memory_that_ran_out(failures):
    """Rows are halved first, then samples; the same samples come out."""

    class Scarce(Between):
        left = 0

        def forward(self, rows):
            if self.left:
                self.left -= 1
                raise torch.OutOfMemoryError("CUDA out of memory")
            return super().forward(rows)

    network, rows = Scarce(nn.Dropout(0.5)).eval(), torch.randn(8, 4)
    expected = predictor(network).predict((rows,))
    model = predictor(network)
    model.predict((rows,))
    network.left = failures
    found = model.predict((rows,))
    torch.testing.assert_close(found.samples, expected.samples, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(found.logits, expected.logits, atol=1e-6, rtol=1e-6)
    assert model.batch_size == max(1, 8 >> failures)
    network.left = 1000
    with pytest.raises(ModelError, match="one row does not fit into the memory of cpu"):
        model.predict((rows,))


def test_few_rows_and_one_sample():
    """A batch of no rows, of one row, and a single sample have their shapes; the self-test waits for rows."""
    network = Between(nn.Dropout(0.5), width=64).eval()
    model = predictor(network, samples=1, embedding=True)
    for rows in (0, 1, 3):
        found = model.predict((torch.randn(rows, 4),))
        assert found.samples.shape == (rows, 1, 3)
        assert found.logits.shape == (rows, 3)
        assert found.embedding.shape == (rows, 64)


def test_rows_that_are_not_finite():
    """They are found as bad, in the samples too, and the self-test looks at the others."""
    network = Between(nn.Dropout(0.5)).eval()
    rows = torch.randn(5, 4)
    rows[0], rows[3] = torch.nan, torch.inf
    found = predictor(network).predict((rows,))
    assert bad_output_rows(found).tolist() == [True, False, False, True, False]
    assert bad_output_rows(dataclasses.replace(found, logits=torch.zeros(5, 3))).tolist() == [True, False, False, True, False]
    assert bad_output_rows(predictor(network).predict((torch.randn(5, 4),))) is None


def test_mixed_precision():
    """Under autocast samples are float32 and near those of float32; vmap and the loop agree."""
    rows = torch.randn(5, 4, 8)
    exact = predictor(Encoder(True).eval())
    rounded = predictor(copy.deepcopy(exact.network), autocast=torch.bfloat16)
    found = rounded.predict((rows,))
    assert rounded._dropout._vmap
    assert found.samples.dtype == found.logits.dtype == torch.float32
    expected = exact.predict((rows,)).samples
    assert not torch.equal(found.samples, expected)
    torch.testing.assert_close(found.samples, expected, atol=0.05, rtol=0.05)


def test_a_query_model_with_samples(nets):
    """`load` hands samples and seed on; what can't have them says why, and what to use instead."""
    spec = Model(source=f"{nets}:Net", device="cpu")
    rows = torch.randn(5, 6)
    assert load(spec, embedding=False).predict((rows,)).samples is None
    one, same, other = (load(spec, embedding=True, mc_samples=3, seed=seed).predict((rows,)).samples for seed in (1, 1, 2))
    assert one.shape == (5, 3, 3)
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    with pytest.raises(ModelError, match=r"mc_samples is given, but model\.kind is columns: .*use kind torch or export, or a committee"):
        load(Model(kind="columns", logits="z"), embedding=False, mc_samples=3)
