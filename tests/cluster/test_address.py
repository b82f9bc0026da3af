"""The address of a cluster: who is refused before Ray is asked, and how."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import ray
import yaml
from commands import Command

import raystream as rs
from raystream.cluster import connection as address
from raystream.cluster.connection import check_answers
from raystream.errors import ClusterError
from raystream.query import Cluster


@pytest.fixture
def deaf_port() -> Iterator[int]:
    """A port of this machine that is taken, and takes no connections."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]


@contextmanager
def listening(answer: bytes | None) -> Iterator[int]:
    """A server that answers the first who connects with these bytes and hangs up; for None it says nothing."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(64)
                if answer is not None:
                    connection.sendall(answer)

        thread = threading.Thread(target=serve, daemon=True)
        if answer is not None:
            thread.start()
        yield server.getsockname()[1]
        if answer is not None:
            thread.join()


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_a_port_that_nobody_listens_on_is_refused(deaf_port: int, scheme: str) -> None:
    """The error names the address as given, and the key to correct."""
    with pytest.raises(ClusterError, match=rf"no Ray cluster answers at {scheme}127\.0\.0\.1:{deaf_port}: .*refused; .*cluster\.address"):
        check_answers(f"{scheme}127.0.0.1:{deaf_port}")


def test_the_environments_address_is_looked_at_for_auto(deaf_port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With RAY_ADDRESS set, that is the address, and the key to correct."""
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{deaf_port}")
    with pytest.raises(ClusterError, match=rf"127\.0\.0\.1:{deaf_port}: .*correct or unset RAY_ADDRESS"):
        check_answers("auto")
    check_answers("local")


@pytest.mark.parametrize("answer", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"SSH-2.0\r\n", b"", b"\0\0"])
def test_a_server_that_is_not_ray_is_refused(answer: bytes) -> None:
    """The dashboard's port instead of the cluster's, say: Ray would ask it for over ten minutes."""
    with listening(answer) as port, pytest.raises(ClusterError, match=rf"127\.0\.0\.1:{port}: (what listens there is not Ray|.*reset)"):
        check_answers(f"127.0.0.1:{port}")


def test_a_server_that_says_nothing_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes the connection and no more, like a process that is stopped."""
    monkeypatch.setattr(address, "_ANSWER_SECONDS", 0.05)
    with listening(None) as port, pytest.raises(ClusterError, match=rf"127\.0\.0\.1:{port}: nothing within"):
        check_answers(f"127.0.0.1:{port}")


@pytest.mark.parametrize("address", ["auto", "local", "nonsense", "127.0.0.1", "a:b", "http://127.0.0.1:1", "anyscale://127.0.0.1:1"])
def test_what_names_no_port_of_rays_is_left_to_ray(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only host:port and ray://host:port are looked at."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    check_answers(address)


@pytest.mark.slow
@pytest.mark.usefixtures("own_ray")
def test_a_ray_that_runs_answers() -> None:
    """Its own address passes."""
    check_answers(ray.get_runtime_context().gcs_address)


@pytest.mark.slow
def test_a_query_on_a_cluster_that_is_not_there_says_so_in_a_sentence(
    workplace: Path, make_query: Callable[..., rs.Query], deaf_port: int
) -> None:
    """Exit 5, and no line of Ray's own."""
    query = make_query(cluster={"address": f"127.0.0.1:{deaf_port}"})
    (workplace / "query.yaml").write_text(yaml.safe_dump(yaml.safe_load(query.to_yaml())))
    code, output, error = Command(workplace, "query", "query.yaml").wait()
    assert (code, output) == (5, "")
    assert error.splitlines()[:2] == ["Reading the pool's footers", "Starting Ray workers"]
    assert len(error.splitlines()) == 3, error
    assert f"no Ray cluster answers at 127.0.0.1:{deaf_port}" in error


@pytest.mark.parametrize(("share", "workers"), [(0.1, 10), (0.2, 5), (0.3, 3), (0.5, 2), (1.0, 1)])
def test_shares_of_a_gpu_are_counted_whole(monkeypatch: pytest.MonkeyPatch, share: float, workers: int) -> None:
    """Ten tenths fill one GPU, whatever binary fractions say; a node that is gone has none, and one without GPUs has no place."""
    nodes = [
        {"Alive": True, "Resources": {"CPU": 64.0, "GPU": 1.0}},
        {"Alive": True, "Resources": {"CPU": 64.0}},
        {"Alive": False, "Resources": {"CPU": 64.0, "GPU": 8.0}},
    ]
    monkeypatch.setattr(address.ray, "nodes", lambda: nodes)
    assert address.worker_count(Cluster(gpus_per_worker=share)) == workers
