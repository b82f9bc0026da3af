"""What a storage's refusal becomes: one line without secrets, and whether asking again may help."""

from __future__ import annotations

import pytest

from raystream.lake.retry import is_final, is_no_folder, reason


@pytest.mark.parametrize("quote", ["", "'"])
def test_options_of_urls_are_never_shown(quote: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Azure's errors hold the URL with the shared signature, its parts in another order than the environment's and escaped anew."""
    monkeypatch.setenv("AZURE_STORAGE_SAS_TOKEN", "?sv=2024&sp=rl&sig=hunter2%3D")
    url = "https://a.blob.core.windows.net/lake?sig=hunter2%3D&sp=rl&sv=2024"
    text = f"Failed to list {quote}{url}{quote} Azure Error: [AuthorizationFailure] 403"
    told = reason(OSError(text))
    assert "hunter2" not in told
    assert "sig=" not in told
    assert "https://a.blob.core.windows.net/lake" in told
    assert told.endswith("[AuthorizationFailure] 403")


@pytest.mark.parametrize(
    ("error", "nothing", "final"),
    [
        (FileNotFoundError(2, "Path does not exist 'b/x'"), True, True),
        (OSError("No such file or directory 'b/x'"), True, True),
        (OSError("Cannot use file 'b/x' as a directory"), True, True),
        (OSError("Azure Error: [AuthenticationFailed] 403 Server failed to authenticate the request"), False, True),
        (OSError("Azure Error: [AuthorizationPermissionMismatch] 403"), False, True),
        (OSError("Couldn't connect to server"), False, False),
        (OSError("Azure Error: [ServerBusy] 503"), False, False),
    ],
)
def test_refusals_are_told_from_what_may_pass(error: OSError, nothing: bool, final: bool) -> None:
    """What isn't there, whatever kind of error it comes as, and what isn't allowed are not asked for again."""
    assert is_no_folder(error) == nothing
    assert is_final(error) == final
