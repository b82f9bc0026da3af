"""URIs and options: what is understood, what is refused, and that no secret gets out."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from raystream.errors import QueryError
from raystream.lake import LOCAL, Storage, filesystem_of, is_remote, located, parse, redacted, storage_from
from raystream.lake.table_uri import parse_table
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
        "s3://AKIAX:hunter2/abc@b/a",
        "s3://AKIAX:abc/hunter2@b/a?region=eu",
        "s3://b/a?secret_key=hunter2&x",
        "s3://b/a?x&secret_key=hunter2",
        "s3://b/a?secret_key=hunter2?a",
        "s3://b/a?secret_key=hunter2=&",
    ],
)
def test_credentials_in_a_uri_are_refused_and_not_repeated(uri: str) -> None:
    """A URI with credentials is an error of the query, whose message doesn't hold them; nor does the redacted form."""
    with pytest.raises(QueryError) as caught:
        parse(uri)
    assert "hunter2" not in str(caught.value)
    assert "set " in str(caught.value)
    assert "hunter2" not in redacted(uri)


@pytest.mark.parametrize(
    ("uri", "says"),
    [
        ("", "is empty"),
        ("  ", "is empty"),
        ("s3://", "names no bucket"),
        ("s3:///a", "names no bucket"),
        ("s3://my bucket/a", "names no bucket: expected letters"),
        ("s3://lake:9/a", r"s3://lake:…/?.* names no bucket"),
        ("s3://b/../a", r"has \. or \.\. between slashes"),
        ("s3://b/a?region=x&y", "what are no options"),
        ("s3://b/a?x/y&token=hunter2", "what are no options"),
        ("ftp://host/a", "not a storage"),
        ("https://host/a?X-Amz-Signature=hunter2&x", "not a storage"),
        ("hdfs://host:8020/a", "not a storage"),
        ("s3:/b/a?token=hunter2", "begins with s3: but not s3://"),
        ("s3:AKIAX:hunter2@b/a", "begins with s3: but not s3://"),
        (" s3://me:hunter2@b/a", "begins or ends with a blank"),
        ("file://host/a", "names a host"),
        ("file://me:hunter2@host/a", "names a host"),
    ],
)
def test_what_is_no_place_is_an_error_of_the_query(uri: str, says: str) -> None:
    """Empty paths, missing buckets, options of no form and schemes that nobody reads end with one sentence, which holds no secret."""
    with pytest.raises(QueryError, match=says) as caught:
        parse(uri)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    "uri", [" s3://AK:hunter2@b/x", "s3//AK:hunter2@b/x", "s3://b/k;password=hunter2", "s3://b/k&secret_key=hunter2",
            "gs://b/x?access_token%3Dhunter2", "s3://b/k#secret_key=hunter2", "iceberg:AK:hunter2@x", "delta+s3:/AK:hunter2@b"]
)  # fmt: skip
def test_what_is_shown_of_a_misspelt_uri_holds_no_secret(uri: str) -> None:
    """Wherever the secret stands; paths that nobody could mean as a URI are shown as they are."""
    assert "hunter2" not in redacted(uri)
    for path in ("/data/a:b@c/x", "pool/year=2020", "a b/password=x"):
        assert redacted(path) == path


@pytest.mark.parametrize(
    "uri", ["iceberg://lake/ns.t?token=hunter2", "delta+s3://b/p?version=x&secret_key=hunter2", "delta+s3://AKIAX:hunter2/a@b/p",
            "delta+s3://b/p?secret_key=hunter2&x", "iceberg://me:hunter2/a@lake/ns.t", "delta+/p?version=1&token=hunter2"]
)  # fmt: skip
def test_no_secret_of_a_tables_uri_is_repeated(uri: str) -> None:
    """Whatever else is wrong with it."""
    with pytest.raises(QueryError) as caught:
        parse_table(uri, "pool.uri")
    assert "hunter2" not in str(caught.value)


def test_the_name_of_a_listed_file_is_a_name() -> None:
    """Question marks and brackets are part of it, and it gives itself again."""
    for uri in ("s3://b/a/part?v=1.parquet", "abfs://c@acc.dfs.core.windows.net/k?x=1&y", "/data/a?b=c.parquet"):
        assert located(uri).uri == uri
        assert not located(uri).options
    assert located("s3a://b/country=q?x=1/p.parquet").path == "b/country=q?x=1/p.parquet"


def test_hadoops_spelling_of_a_local_path() -> None:
    """One slash behind the scheme, as Spark and Iceberg write it."""
    assert parse("file:/data/a%20b").path == "/data/a b"


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
