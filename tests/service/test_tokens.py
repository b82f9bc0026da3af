"""Tokens: made once, kept as hashes, compared whole, read again when the file changed."""

from __future__ import annotations

import hmac
import json
import os
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from raystream.errors import QueryError
from raystream.service.config import Config
from raystream.service.tokens import Caller, Tokens, new_token

NOW = datetime(2030, 1, 1, tzinfo=UTC)


def test_a_token_lets_in_until_it_ends_or_its_line_goes(tmp_path: Path) -> None:
    """Without a restart; a file that is gone or damaged lets nobody in, and one that is mended does again."""
    (one, line), (two, other) = new_token("a", "submit", NOW + timedelta(days=1)), new_token("b", "admin", None)
    file = tmp_path / "tokens.txt"
    file.write_text(f"# ours\n\n{line}\n{other}\n")
    tokens = Tokens(file)
    assert tokens.caller(one, NOW) == Caller("a", "submit")
    assert tokens.caller(two, NOW) == Caller("b", "admin")
    assert tokens.caller(one, NOW + timedelta(days=1)) is None
    for wrong in ("", "rs_", one[:-1], one + "x", one.swapcase(), "rs_" + "A" * 43, line):
        assert tokens.caller(wrong, NOW) is None
    file.write_text(f"{other}\n")
    assert tokens.caller(one, NOW) is None
    file.write_text("a submit never sha256:nothex\n")
    assert tokens.caller(two, NOW) is None
    os.unlink(file)
    assert tokens.caller(two, NOW) is None
    file.write_text(f"{other}\n")
    assert tokens.caller(two, NOW) == Caller("b", "admin")


def test_every_line_is_compared_in_constant_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether the first, the last or none is the one: as many comparisons, each of 64 digits by `hmac.compare_digest`."""
    made = [new_token("a", "read", None) for _ in range(5)]
    file = tmp_path / "tokens.txt"
    file.write_text("\n".join(line for _, line in made))
    tokens, real, compared = Tokens(file), hmac.compare_digest, list[int]()

    def counting(one: str, other: str) -> bool:
        compared.append(len(one) + len(other))
        return real(one, other)

    monkeypatch.setattr(hmac, "compare_digest", counting)
    for token in (made[0][0], made[-1][0], new_token("b", "read", None)[0], "rs_short"):
        compared.clear()
        tokens.caller(token, NOW)
        assert compared == [128] * 5


def test_the_file_holds_no_token(cli: Callable[..., tuple[int, str, str]]) -> None:
    """`raystream token` prints the token and its line; the one doesn't follow from the other."""
    code, out, _ = cli("token", "--scope", "read", "--owner", "team-a", "--expires", "12h", "--json")
    made = json.loads(out)
    assert (code, made["token"][:3], len(made["token"])) == (0, "rs_", 46)
    assert made["line"].startswith("team-a read 20")
    assert made["token"][3:] not in made["line"]
    assert cli("token", "--scope", "read", "--owner", "a b")[0] == 2
    assert cli("token", "--scope", "root")[0] == 2


@pytest.mark.parametrize("line", ["a submit never", "a root never sha256:" + "0" * 64, "a read 2030-01-01 sha256:" + "0" * 64, "a  read"])
def test_a_line_that_is_none_is_refused_at_the_start(line: str, tmp_path: Path) -> None:
    """With its number."""
    file = tmp_path / "tokens.txt"
    file.write_text(f"\n{line}\n")
    with pytest.raises(QueryError, match="line 2"):
        Tokens(file)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.2", "example.org", ""])
def test_without_tokens_others_are_kept_out(host: str) -> None:
    """Only the loopback address may be listened on."""
    with pytest.raises(QueryError, match="there are no tokens"):
        Config(host=host)
    assert Config(host=host, tokens="tokens.txt")
    for loopback in ("127.0.0.1", "127.9.9.9", "::1", "localhost"):
        assert Config(host=loopback)


def test_a_configuration_is_checked_at_the_start(tmp_path: Path) -> None:
    """An unknown key, a value that can't be: said with its file."""
    wrong = {
        "prot: 1": "prot is not a key of it",
        "imports: [os.system]": "import path",
        "storages: {a: {secret_key: x}}": "secret",
        "limits: {running: 0}": "limits.running",
        "webhooks: [{url: ftp://x, secret: A}]": "webhooks",
    }
    for text, told in wrong.items():
        file = tmp_path / "serve.yaml"
        file.write_text(text)
        with pytest.raises(QueryError, match=told) as error:
            Config.load(file, {})
        assert str(file) in str(error.value)
    file.write_text("port: 1\nstore: {uri: a, query: x}")
    assert Config.load(file, {"store": {"uri": "b"}, "port": 2}).store.uri == "b"
