"""URIs and options: what is understood, what is refused, and that no secret gets out."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from raystream.errors import QueryError
from raystream.lake import LOCAL, Storage, filesystem_of, is_remote, parse, redacted, storage_from
from raystream.query import Pool


@pytest.mark.parametrize(
    ("uri", "scheme", "path", "canonical"),
    [
        ("s3://b/a/c.parquet", "s3", "b/a/c.parquet", "s3://b/a/c.parquet"),
        ("s3a://b/a/", "s3", "b/a", "s3://b/a"),
        ("S3://b", "s3", "b", "s3://b"),
        ("gcs://b/a", "gs", "b/a", "gs://b/a"),
        ("gs://b/a", "gs", "b/a", "gs://b/a"),
        ("abfss://c@acc.dfs.core.windows.net/a/b", "abfs", "c/a/b", "abfs://c@acc.dfs.core.windows.net/a/b"),
        ("abfs://c/a", "abfs", "c/a", "abfs://c/a"),
        ("s3://b/part-?.parquet", "s3", "b/part-?.parquet", "s3://b/part-?.parquet"),
        ("s3://b/year=2020/a?region=eu-west-1", "s3", "b/year=2020/a", "s3://b/year=2020/a"),
        ("file:///data/a%20b", "file", "/data/a b", "/data/a b"),
        ("/data/a@b:c", "file", "/data/a@b:c", "/data/a@b:c"),
    ],
)
def test_what_a_uri_names(uri: str, scheme: str, path: str, canonical: str) -> None:
    """Every spelling gives the storage, the path that pyarrow takes, and one canonical form that keys are made of."""
    location = parse(uri)
    assert (location.scheme, location.path, location.uri) == (scheme, path, canonical)
    assert is_remote(uri) == (scheme != "file")
    assert parse(location.uri).path == location.path


def test_plain_paths_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A plain path is one of this machine, relative to the current folder."""
    monkeypatch.chdir(tmp_path)
    filesystem, path = filesystem_of("pool")
    assert (filesystem.type_name, path) == ("local", str(tmp_path / "pool"))


@pytest.mark.parametrize(
    "uri",
    [
        "s3://AKIAX:hunter2@b/a",
        "s3://hunter2@b/a",
        "s3a://b/a?secret_key=hunter2",
        "s3://b/a?region=eu&access_key=hunter2",
        "abfs://user:hunter2@acc.dfs.core.windows.net/a",
        "abfss://c@acc.dfs.core.windows.net/a?sas_token=hunter2",
        "gs://b/a?access_token=hunter2",
    ],
)
def test_credentials_in_a_uri_are_refused_and_not_repeated(uri: str) -> None:
    """A URI with credentials is an error of the query, whose message doesn't hold them; nor does the redacted form."""
    with pytest.raises(QueryError) as caught:
        parse(uri)
    assert "hunter2" not in str(caught.value)
    assert "set " in str(caught.value)
    assert "hunter2" not in redacted(uri)


@pytest.mark.parametrize("uri", ["", "  ", "s3://", "s3:///a", "ftp://host/a", "hdfs://host/a", "file://host/a"])
def test_what_is_no_place_is_an_error_of_the_query(uri: str) -> None:
    """Empty paths, missing buckets and schemes that nobody reads end with one sentence."""
    with pytest.raises(QueryError):
        parse(uri)


@pytest.mark.parametrize(
    ("name", "variable"),
    [
        ("secret_access_key", "AWS_SECRET_ACCESS_KEY"),
        ("access_key_id", "AWS_ACCESS_KEY_ID"),
        ("session_token", "AWS_SESSION_TOKEN"),
        ("account_key", "AZURE_STORAGE_KEY"),
        ("sas_token", "AZURE_STORAGE_SAS_TOKEN"),
        ("Access-Token", "GOOGLE_APPLICATION_CREDENTIALS"),
        ("password", "AWS_SECRET_ACCESS_KEY"),
    ],
)
def test_secrets_are_no_options(name: str, variable: str) -> None:
    """An option that sounds like a secret is refused with the environment variable to use; the value is not shown."""
    with pytest.raises(QueryError) as caught:
        Pool(uri="s3://b/a", storage={name: "hunter2"})
    assert variable in str(caught.value)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    "options",
    [{"regoin": "eu"}, {"region": 3}, {"scheme": "ftp"}, {"anonymous": "maybe"}, {"request_timeout": 0}, {"endpoint_override": ""}],
)
def test_options_are_strict(options: dict[str, str | int]) -> None:
    """Unknown options and values of another kind are errors that name the option."""
    with pytest.raises(QueryError, match=rf"pool\.storage\.{next(iter(options))}"):
        Pool(uri="s3://b/a", storage=options)


def test_options_of_the_uri_come_first_and_travel() -> None:
    """What stands in the URI overrides `pool.storage`; the value survives pickling, and one file system serves equal options."""
    given = storage_from({"region": "eu-west-1", "endpoint_override": "http://127.0.0.1:1"})
    assert pickle.loads(pickle.dumps(given)) == given
    one, path = filesystem_of("s3://b/a?region=us-east-2&anonymous=true", given)
    again, _ = filesystem_of("s3a://c/d?anonymous=true&region=us-east-2", given)
    assert one is again
    assert (one.region, path) == ("us-east-2", "b/a")


def test_what_decides_the_bytes() -> None:
    """Endpoint and account are part of where bytes lie; region, encryption and timeouts aren't."""
    assert LOCAL.place == ""
    assert Storage(region="eu-west-1", request_timeout=3, anonymous=True).place == ""
    assert Storage(endpoint_override="http://h:1").place == Storage(endpoint_override="h:1", scheme="http").place != ""
