"""An S3 server and a proxy before it, started once for all tests."""

from __future__ import annotations

from collections.abc import Iterator
from uuid import uuid4

import pyarrow.fs as pafs
import pytest
from servers import ACCESS_KEY, SECRET_KEY, Proxy, SeaweedFS


@pytest.fixture(scope="session")
def seaweedfs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SeaweedFS]:
    """The server; 3 to 4 seconds until it answers."""
    server = SeaweedFS(tmp_path_factory.mktemp("seaweedfs"))
    yield server
    server.close()


@pytest.fixture(scope="session")
def _proxy(seaweedfs: SeaweedFS) -> Iterator[Proxy]:
    proxy = Proxy(seaweedfs.port)
    yield proxy
    proxy.close()


@pytest.fixture
def proxy(_proxy: Proxy) -> Iterator[Proxy]:
    """A proxy before the server, with its faults and counts cleared."""
    _proxy.reset()
    yield _proxy
    _proxy.reset()


@pytest.fixture
def s3_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """The keys of the one who may do everything, where raystream looks for them, and no file of the user's own."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ACCESS_KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET_KEY)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nowhere")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nowhere")
    for name in ("AWS_SESSION_TOKEN", "AWS_PROFILE", "AWS_REGION", "AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="session")
def s3(seaweedfs: SeaweedFS) -> pafs.FileSystem:
    """The server as a file system with all rights, past the proxy: what tests prepare data with."""
    return pafs.S3FileSystem(
        access_key=ACCESS_KEY,
        secret_key=SECRET_KEY,
        endpoint_override=f"127.0.0.1:{seaweedfs.port}",
        scheme="http",
        region="us-east-1",
        allow_bucket_creation=True,
        allow_bucket_deletion=True,
    )


@pytest.fixture(scope="session")
def bucket(s3: pafs.FileSystem) -> str:
    """The bucket of all tests: to make one takes the server seconds."""
    s3.create_dir("raystream-tests")
    return "raystream-tests"


@pytest.fixture
def folder(bucket: str) -> str:
    """`bucket/folder`, which no other test uses."""
    return f"{bucket}/{uuid4().hex[:12]}"


@pytest.fixture
def storage(seaweedfs: SeaweedFS) -> dict[str, str | int | bool]:
    """`pool.storage` for the server itself."""
    return {"endpoint_override": f"http://127.0.0.1:{seaweedfs.port}", "region": "us-east-1"}


@pytest.fixture
def through_proxy(proxy: Proxy) -> dict[str, str | int | bool]:
    """`pool.storage` for the server behind the proxy."""
    return {"endpoint_override": f"http://127.0.0.1:{proxy.port}", "region": "us-east-1"}
