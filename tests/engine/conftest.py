"""Ray, for the tests that need it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from raystream.query import Cluster


@pytest.fixture(scope="session")
def own_ray() -> Iterator[None]:
    """A Ray of this machine's own, started once and ended with its own connection."""
    from raystream.engine.ray_executor import connect, disconnect

    assert connect(Cluster(workers=3))
    yield
    disconnect()
