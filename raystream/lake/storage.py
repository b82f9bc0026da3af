"""The options of object storage: where it is and how to talk to it, never who asks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from raystream.errors import QueryError, did_you_mean

_SECRETS = {
    "secret_key": "AWS_SECRET_ACCESS_KEY",
    "secret_access": "AWS_SECRET_ACCESS_KEY",
    "access_key": "AWS_ACCESS_KEY_ID",
    "session_token": "AWS_SESSION_TOKEN",
    "security_token": "AWS_SESSION_TOKEN",
    "account_key": "AZURE_STORAGE_KEY",
    "sas": "AZURE_STORAGE_SAS_TOKEN",
    "connection_string": "AZURE_STORAGE_KEY",
    "service_account": "GOOGLE_APPLICATION_CREDENTIALS",
    "access_token": "GOOGLE_APPLICATION_CREDENTIALS",
    "credential": "AWS_SECRET_ACCESS_KEY, AZURE_STORAGE_KEY or GOOGLE_APPLICATION_CREDENTIALS",
    "password": "AWS_SECRET_ACCESS_KEY",
    "signature": "AWS_SECRET_ACCESS_KEY",
    "secret": "AWS_SECRET_ACCESS_KEY",
    "token": "AWS_SESSION_TOKEN",
    "key": "AWS_SECRET_ACCESS_KEY",
}
"""Parts of names that stand for secrets -> the variable that carries them; the first that fits counts."""


@dataclass(frozen=True, slots=True)
class Storage:
    """A way to reach object storage; holds no secret, hashes, and travels to workers.

    Attributes:
        region: of the bucket; left out, it is asked for.
        endpoint_override: `host:port` or a URL, of a server that isn't the provider's own.
        scheme: http or https; left out, that of the endpoint, else https.
        anonymous: send no credentials at all.
        virtual_addressing: put the bucket into the host's name.
        account_name: of Azure, where the URI doesn't name it.
        connect_timeout: seconds.
        request_timeout: seconds without an answer.
    """

    region: str | None = None
    endpoint_override: str | None = None
    scheme: str | None = None
    anonymous: bool = False
    virtual_addressing: bool = False
    account_name: str | None = None
    connect_timeout: int | None = None
    request_timeout: int | None = None

    @property
    def plain_http(self) -> bool:
        """True if nothing is encrypted on the way."""
        return self.scheme == "http" or (self.scheme is None and (self.endpoint_override or "").startswith("http://"))

    @property
    def host(self) -> str | None:
        """The endpoint without its scheme."""
        return self.endpoint_override.rpartition("://")[2].rstrip("/") if self.endpoint_override else None

    @property
    def place(self) -> str:
        """The options that decide which bytes lie under a URI: the endpoint, and the account; empty by default."""
        parts = [("endpoint_override", self.host), ("account_name", self.account_name)]
        return "&".join(f"{name}={value}" for name, value in parts if value)


LOCAL = Storage()
"""No option at all: what paths of this machine need."""

_KINDS = {name: bool if name in ("anonymous", "virtual_addressing") else int if name.endswith("timeout") else str for name in (
    field.name for field in fields(Storage)
)}  # fmt: skip


def storage_from(options: Mapping[str, Any], key: str = "pool.storage") -> Storage:
    """Return the options as a value, checked.

    Args:
        options: names to values, as the query or a URI's question mark gives them; the latter are all strings.
        key: where they stand, for messages.

    Raises:
        QueryError: an option is unknown, of the wrong kind, or a secret, which belongs into the environment.
    """
    return Storage(**{name: _checked(name, value, key) for name, value in options.items()})


def _checked(name: str, given: Any, key: str) -> Any:
    value: Any = given
    where = _named(key, name)
    if name not in _KINDS:
        refuse_secret(name, key)
        raise QueryError(f"{where} is not an option of object storage{did_you_mean(name, _KINDS)}")
    kind = _KINDS[name]
    if isinstance(value, str) and kind is bool and value.lower() in ("true", "false"):
        return value.lower() == "true"
    if isinstance(value, str) and kind is int and value.isdecimal():
        value = int(given)
    if type(value) is not kind or (isinstance(value, int) and kind is int and value <= 0) or value == "":
        expected = {bool: "true or false", int: "a positive number of seconds", str: "a text"}[kind]
        shown = repr(value) if isinstance(value, str | int | float) else f"a {type(value).__name__}"
        raise QueryError(f"{where} is {shown}, expected {expected}")
    if name == "scheme" and value not in ("http", "https"):
        raise QueryError(f"{where} is {value!r}, expected http or https")
    if name == "endpoint_override" and "@" in str(value):
        raise QueryError(f"{where} holds credentials; remove them and set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")
    return value


def _named(key: str, name: str) -> str:
    """Name `pool.storage.region`, or what it is called behind a URI: `option region`."""
    return f"{key} {name}" if key.endswith("option") else f"{key}.{name}"


def refuse_secret(name: str, key: str) -> None:
    """Raise QueryError if an option's name sounds like a secret; its value is not looked at."""
    plain = name.lower().replace("-", "_")
    for part, variable in _SECRETS.items():
        if part in plain:
            where = _named(key, name)
            raise QueryError(f"{where} is a secret, which queries don't hold; remove it and set the environment variable {variable}")
