"""What a server is told: where it listens, which store it serves, whom it lets in, and what queries may reach."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, field_validator, model_validator

from raystream.errors import QueryError
from raystream.lake.uri import Storage, storage_from
from raystream.query import Cluster, Store
from raystream.query.part import Part, Positive
from raystream.spec import read_spec

HOOK_KINDS = ("queued", "committed", "failed", "stopped")


class Limits(Part):
    """What one token, one request and one run may take."""

    section = ("limits",)

    running: Positive = 2
    """Queries of an owner that run at a time."""
    queued: Positive = 100
    """Queries of an owner that wait."""
    rows: Positive | None = None
    """Rows of the pool of one query; left out, as many as there are."""
    seconds: Positive = 24 * 3600
    """How long one query may run."""
    processes: Positive = 4
    """Queries that run at a time in all."""
    body: Positive = 1 << 20
    """Bytes of a request's body."""
    body_seconds: Positive = 30
    """Until a request's body must have come."""
    depth: Positive = 32
    """Levels of lists and objects in a body."""
    streams: Positive = 32
    """Streams of events that an owner may hold open."""


class Hook(Part):
    """An address that is told what became of queries."""

    section = ("webhooks",)

    url: Annotated[str, Field(pattern=r"^https?://[^\s]+$")]
    """Where to; its answer may redirect nowhere."""
    secret: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
    """The environment variable that holds what messages are signed with."""
    kinds: list[str] = list(HOOK_KINDS)
    """Of events that are told."""

    @field_validator("kinds")
    @classmethod
    def _are_known(cls, value: list[str]) -> list[str]:
        for kind in value:
            if kind not in HOOK_KINDS:
                raise ValueError(f"webhooks.kinds holds {kind!r}, expected {', '.join(HOOK_KINDS)}")
        return value


class Config(Part):
    """A server's configuration; `load` reads it from a file."""

    host: str = "127.0.0.1"
    """The address that it listens on."""
    port: Annotated[int, Field(ge=0, le=65535)] = 8700
    """The port that it listens on."""
    store: Store = Store()
    """Where queries, their scores and all requests are kept."""
    tokens: str | None = None
    """The file of those who may ask; without one, whoever reaches the loopback address may do everything."""
    allow: list[str] = []
    """Prefixes, paths or URIs, below which pools, labels and weights may lie."""
    outputs: list[str] = []
    """Prefixes below which `output` may write."""
    imports: list[str] = []
    """Import paths that queries may name, `module:attribute`, or `module:*` for all of a module."""
    models: list[str] = []
    """Prefixes below which whole models may lie, such as ONNX files and folders of transformers."""
    storages: dict[str, dict[str, bool | int | str]] = {}
    """Options of object storages by names, which queries give as `pool.storage`; `default` holds for those that give none."""
    cluster: Cluster = Cluster()
    """Where queries run."""
    streams: list[str] = []
    """Streams of the store that answer `decide`; their models are loaded by the server."""
    limits: Limits = Limits()
    """What one token, one request and one run may take."""
    hosts: list[str] = []
    """Names under which the server is reached, beside its address and localhost; others are refused."""
    webhooks: list[Hook] = []
    """Who is told what became of queries."""

    @field_validator("storages")
    @classmethod
    def _are_storages(cls, value: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        for name, options in value.items():
            storage_from(options, f"storages.{name}")
        return value

    @field_validator("imports")
    @classmethod
    def _are_import_paths(cls, value: list[str]) -> list[str]:
        for path in value:
            module, separator, attribute = path.partition(":")
            parts = [*module.split("."), *([] if attribute == "*" else attribute.split("."))]
            if not separator or not all(part.isidentifier() for part in parts):
                raise ValueError(f"imports holds {path!r}, expected an import path such as my_project.nets:resnet18, or my_project.nets:*")
        return value

    @model_validator(mode="after")
    def _is_closed_to_strangers(self) -> Config:
        if self.tokens is None and not is_loopback(self.host):
            raise ValueError(
                f"host is {self.host}, which others reach, but there are no tokens; give a file of them by tokens or --tokens, or listen "
                "on 127.0.0.1"
            )
        return self

    @classmethod
    def load(cls, path: str | Path | None, given: Mapping[str, Any]) -> Config:
        """Load the configuration of a file, with what was given beside it in its place.

        Args:
            path: of a YAML file; None: none.
            given: keys with their values.

        Raises:
            QueryError: the file can't be read, a key is unknown, or a value is wrong.
        """
        data = {} if path is None else {str(key): value for key, value in read_spec(path, []).items()}
        for key, value in given.items():
            known = data.get(key)
            data[key] = {**known, **value} if isinstance(known, dict) and isinstance(value, dict) else value
        try:
            return cls(**data)
        except QueryError as error:
            told = str(error).replace("is not a key of the query", "is not a key of it").replace("is missing from the query", "is missing")
            raise QueryError(f"the server's configuration{f' {path}' if path else ''}: {told}") from None

    def storage(self, name: str | None) -> Storage | None:
        """Return the options of a storage by its name; of queries that give none, those of `default`; None if none has that name."""
        if name is None:
            return storage_from(self.storages.get("default", {}))
        return storage_from(self.storages[name]) if name in self.storages else None


def is_loopback(host: str) -> bool:
    """Tell whether an address is reached from this machine alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
