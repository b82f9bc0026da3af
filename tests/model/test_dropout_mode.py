import pytest
import torch
import torch.nn.functional as F

from raystream.model.dropout_mode import DropoutMode

CASES = [
    {},
    {"is_causal": True},
    {"scale": 0.3},
    {"attn_mask": torch.randn(5, 7)},
    {"attn_mask": torch.randn(3, 1, 5, 7) > -1},
    {"enable_gqa": True},
]


@pytest.mark.parametrize("options", CASES)
@pytest.mark.parametrize("p", [0.0, 0.5])
def test_attention_written_out_is_attention(options, p):
    """With dropout that drops nothing, attention is what torch gives without dropout, whatever its options; and the dropout is seen."""
    query = torch.randn(3, 4, 5, 8)
    key, value = torch.randn(2, 3, 2 if "enable_gqa" in options else 4, 7, 8)
    seen = []

    def note(call, values):
        seen.append((call.p, tuple(values.shape)))
        return values

    with DropoutMode(note):
        found = F.scaled_dot_product_attention(query, key, value, dropout_p=p, **options)
    torch.testing.assert_close(found, F.scaled_dot_product_attention(query, key, value, **options))
    assert seen == [(p, (3, 4, 5, 7) if p else (3, 4, 5, 8))]


def test_calls_are_numbered():
    """Each has its number, p and kind; what replaces it is what its caller gets; a wrong p is torch's own error."""
    seen = []

    def note(call, values):
        seen.append((call.number, call.p, call.channels, call.alpha))
        return values + 1

    rows = torch.zeros(2, 3, 4)
    with DropoutMode(note):
        assert torch.equal(F.dropout(rows, 0.25), rows + 1)
        F.alpha_dropout(rows, p=0.5)
        F.dropout1d(rows, 0.125)
        F.feature_alpha_dropout(rows, 0.5)
        F.dropout(input=rows, p=0)
        with pytest.raises(ValueError, match="dropout probability"):
            F.dropout(rows, 1.5)
    assert seen == [(0, 0.25, None, False), (1, 0.5, None, True), (2, 0.125, 1, False), (3, 0.5, 1, True), (4, 0.0, None, False)]
    assert torch.equal(F.dropout(rows, 0.25, training=False), rows)
