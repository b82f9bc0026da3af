"""What queries that come from outside may say: nothing of where they run and what is kept where, and of the rest what is allowed.

The same query is looked at twice: here, as it is written, before it is taken; and in the process that runs it, which lists and opens
nothing in the lake but what is allowed (`raystream.lake.reach`), and looks at each file of a model once more.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from raystream.errors import QueryError, RaystreamError
from raystream.imports import is_import_path
from raystream.lake.reach import lies_below
from raystream.lake.table_uri import is_table, parse_table
from raystream.lake.uri import is_remote, parse
from raystream.query import LOOP_SECTIONS, Acquire, Model, Pool, Query, Select
from raystream.query.catalogue import kind_of
from raystream.service.config import Config
from raystream.service.edge import FieldError, Problem, of_sentence, wrong_fields

_SECTIONS: Mapping[str, type[Pool] | type[Model] | type[Acquire] | type[Select]] = {
    "pool": Pool, "model": Model, "acquire": Acquire, "select": Select,
}  # fmt: skip
_FORBIDDEN = {
    "cluster": "where queries run is the server's affair; remove it",
    "store.uri": "where queries are kept is the server's affair; remove it",
    "store.storage": "where queries are kept is the server's affair; remove it",
    "model.trust": "what can run code is not loaded here; remove it",
}
_FREE_TEXT = frozenset({"must_include", "exclude", "similar_to", "quotas", "classes", "class_weights", "cost"})
"""Keys whose values are ids and names: what looks like an import path there is none."""
_SAFE_WEIGHTS = ".safetensors"
_VERSION = re.compile(r"\?(?:version|snapshot_id)=\d+$")
"""Of a table, the only thing that may stand behind a question mark."""
_LONGEST = 4096
"""Characters of a text; paths may have so many."""
_SHOWN = 20
_ANY_SCHEME = re.compile(r"(?:delta\+)?[A-Za-z][A-Za-z0-9+.-]*:|delta\+")


@dataclass(frozen=True)
class Checked:
    """A query that may be asked.

    Attributes:
        document: as it came, with the server's storage in it, and nothing else of the server's.
        digest: the same for two bodies that mean the same.
    """

    document: dict[str, Any]
    digest: str


def read_json(body: bytes) -> Any:
    """Read the value of a body.

    Raises:
        Problem: it is no JSON, gives a key twice, or holds what is no number or no text.
    """
    try:
        text = body.decode("utf-8-sig")  # json would take UTF-16, too, and halves of pairs as bytes
        found = json.loads(text, object_pairs_hook=_without_doubles, parse_constant=_no_number)
        if "\\u" in text:  # half of a pair can be written so, and nowhere else
            json.dumps(found, ensure_ascii=False).encode()
        return found
    except UnicodeEncodeError:
        raise Problem(422, "the body holds a text that is no Unicode: half of a surrogate pair") from None
    except (ValueError, RecursionError) as error:
        told = str(error) if isinstance(error, _WrongBody) else "the body is no JSON"
        raise Problem(422 if isinstance(error, _WrongBody) else 400, told) from None


class Policy:
    """Looks at queries by a server's configuration."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._allow = config.allow

    def checked(self, body: object) -> Checked:
        """Check a body, and return the query that it asks.

        Raises:
            Problem: it is none, or may not be asked; with the path of each field that is wrong.
        """
        if not isinstance(body, dict):
            raise wrong_fields([FieldError("", "expected a query: an object with sections such as pool, model and select")])
        long = list(_too_long(body, ""))
        if long:
            raise wrong_fields(long[:_SHOWN])
        errors = [FieldError(path, f"{path} can't be set: {why}") for path, why in _FORBIDDEN.items() if _holds(body, path)]
        errors += [FieldError(f"model.members.{i}.trust", _FORBIDDEN["model.trust"]) for i in _members_with_trust(body)]
        errors += [FieldError(key, f"{key} is for another command; remove it") for key in sorted(LOOP_SECTIONS & set(body))]
        document = _without_forbidden(body)
        pool, problems = self._with_storage(document.get("pool"))
        problems = [*errors, *problems]
        if pool is not None:
            document["pool"] = pool
        problems += [error for error in map(self._wrong_section, _SECTIONS, [document] * len(_SECTIONS)) if error is not None]
        if problems:
            raise wrong_fields(problems)
        try:
            query = Query(**document)
            uris = [*query.pool.uris]
        except (QueryError, TypeError) as error:
            raise wrong_fields([of_sentence(str(error))]) from None
        problems = [*self._places(query), *self._code(query), *([] if uris else [FieldError("pool.uri", "pool.uri is empty")])]
        if problems:
            raise wrong_fields(problems)
        meant = query.model_dump(mode="json", exclude={"cluster": True, "store": {"uri", "storage"}})
        text = json.dumps(meant, sort_keys=True, separators=(",", ":"))
        return Checked(query.model_dump(mode="json", exclude_unset=True), hashlib.sha256(text.encode()).hexdigest())

    def reach(self) -> list[str]:
        """List the places that a run may list and open."""
        return [place for place in (*self._allow, *self._config.outputs, *self._config.models) if not place.startswith("iceberg:")]

    def check_files(self, query: Query) -> None:
        """Look at each file of a query's model, links followed, once it is about to be loaded.

        Raises:
            QueryError: one lies elsewhere.
        """
        from raystream.model.weights import contents

        for path, places, key in self._model_files(query.model):
            if is_remote(path):
                continue  # fetched through the lake, which is confined
            for _, file in contents(path):
                if not _below(str(file), places):
                    raise QueryError(f"{key} leads to a place that this server doesn't allow; name one below the prefixes that it does")

    def _with_storage(self, pool: object) -> tuple[object, list[FieldError]]:
        """Return the section with the options of the storage that it names."""
        if not isinstance(pool, dict):
            return pool, []
        name = pool.get("storage")
        if name is not None and not isinstance(name, str):
            told = "pool.storage can't hold options here; give the name of a storage that the server's configuration lists, or remove it"
            return pool, [FieldError("pool.storage", told)]
        options = self._config.storages.get("default" if name is None else name)
        if options is None and name is not None:
            return {**pool, "storage": {}}, [FieldError("pool.storage", "pool.storage is none of the storages that the server knows")]
        return ({**pool, "storage": options} if options else {k: v for k, v in pool.items() if k != "storage"}), []

    def _wrong_section(self, name: str, document: Mapping[str, Any]) -> FieldError | None:
        """Say what is wrong with a section by itself, so that a body is told all of it at once."""
        if name not in document:
            return None
        if not isinstance(document[name], dict):
            return FieldError(name, f"{name} is no section, expected an object with its keys")
        try:
            _SECTIONS[name](**document[name])
        except (QueryError, TypeError) as error:
            found = of_sentence(str(error))
            return found if found.path else FieldError(name, found.detail)
        return None

    def _places(self, query: Query) -> Iterator[FieldError]:
        """Yield an error for each URI of the query that lies outside of what is allowed."""
        for key, uris in query.row_uris.items():
            for uri in uris:
                yield from self._wrong_place(uri, key, self._allow)
        if query.output is not None:
            yield from self._wrong_place(query.output, "output", self._config.outputs)
        for path, places, key in self._model_files(query.model):
            yield from self._wrong_place(path, key, places)

    def _model_files(self, model: Model, key: str = "model") -> Iterator[tuple[str, Sequence[str], str]]:
        """Yield each path that a model names, where it may lie, and its key."""
        if model.members is not None:
            for position, member in enumerate(model.members):
                yield from self._model_files(member, f"{key}.members.{position}")
        if isinstance(model.classes, str):
            yield model.classes, self._allow, f"{key}.classes"
        weights = model.weights if isinstance(model.weights, list) else [model.weights] if model.weights else []
        for path in weights:
            yield path, self._allow, f"{key}.weights"
        if model.source is not None and model.members is None and not kind_of(model.kind).imported:
            yield model.source, self._config.models, f"{key}.source"

    def _wrong_place(self, uri: str, key: str, places: Sequence[str]) -> Iterator[FieldError]:
        where = f"{key} names a place that this server doesn't allow; name one below the prefixes that it does"
        plain = _VERSION.sub("", uri) if is_table(uri) else uri
        if _ANY_SCHEME.match(plain) and "?" in plain:
            yield FieldError(key, f"{key} holds options behind a question mark; they are the server's affair, so remove them")
            return
        try:
            if is_table(uri):
                table = parse_table(uri, key)
                if table.kind == "iceberg":
                    tables = [place.rstrip("/") for place in places if place.startswith("iceberg:")]
                    if not any(plain == place or plain.startswith((f"{place}/", f"{place}.")) for place in tables):
                        yield FieldError(key, where)
                    return
                uri = table.name
            if "\0" in uri or not _below(uri, places, key):
                yield FieldError(key, where)
        except RaystreamError as error:
            yield FieldError(key, str(error))
        except (OSError, ValueError):
            yield FieldError(key, where)

    def _code(self, query: Query) -> Iterator[FieldError]:
        """Yield an error for what the query would run, as far as it isn't listed."""
        given = query.model_dump(mode="json", exclude_unset=True)
        for section in ("model", "acquire", "select"):
            for key, text in _texts(given.get(section), section):
                if is_import_path(text) and not self._is_listed(text):
                    yield FieldError(key, f"{key} is an import path that the server's configuration doesn't list")
        for key, model in _models(query.model):
            yield from self._wrong_model(model, key)

    def _wrong_model(self, model: Model, key: str) -> Iterator[FieldError]:
        kind = kind_of(model.kind)
        if model.members is not None or kind.carried:
            return
        if kind.imported and model.source is not None and not self._is_listed(model.source):
            yield FieldError(f"{key}.source", f"{key}.source is an import path that the server's configuration doesn't list")
        for weights in model.weights if isinstance(model.weights, list) else [model.weights] if model.weights else []:
            if not weights.endswith(_SAFE_WEIGHTS):
                yield FieldError(f"{key}.weights", f"{key}.weights is no {_SAFE_WEIGHTS} file, the only ones that are loaded here")

    def _is_listed(self, path: str) -> bool:
        module, _, attribute = path.partition(":")
        # what a module has imported can be had behind a dot: nets:os.system is no function of nets
        return path in self._config.imports or ("." not in attribute and f"{module}:*" in self._config.imports)


def _models(model: Model, key: str = "model") -> Iterator[tuple[str, Model]]:
    yield key, model
    for position, member in enumerate(model.members or []):
        yield from _models(member, f"{key}.members.{position}")


def _texts(value: object, key: str) -> Iterator[tuple[str, str]]:
    """Yield every text below a key, with its own; those that are ids and names left out."""
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, dict):
        for name, inner in value.items():
            if name not in _FREE_TEXT:
                yield from _texts(inner, f"{key}.{name}")
    elif isinstance(value, list):
        for position, inner in enumerate(value):
            yield from _texts(inner, f"{key}.{position}")


def _too_long(value: object, path: str) -> Iterator[FieldError]:
    """Yield an error for each text that is longer than any path, id or name: to search for it would take long, too."""
    if isinstance(value, str) and len(value) > _LONGEST:
        yield FieldError(path, f"{path} has {len(value)} characters, expected {_LONGEST} at most")
    elif isinstance(value, dict):
        if any(len(name) > _LONGEST for name in value):
            yield FieldError(path, f"{path or 'the body'} holds a key of more than {_LONGEST} characters")
            return
        for name, inner in value.items():
            yield from _too_long(inner, f"{path}.{name}" if path else name)
    elif isinstance(value, list):
        for position, inner in enumerate(value):
            yield from _too_long(inner, f"{path}.{position}")


def _below(uri: str, places: Sequence[str], key: str = "pool.uri") -> bool:
    return lies_below(parse(uri, key), [parse(place, "allow") for place in places if not place.startswith("iceberg:")])


def _holds(body: Mapping[str, Any], path: str) -> bool:
    section, dot, key = path.partition(".")
    inner = body.get(section)
    return section in body if not dot else isinstance(inner, dict) and key in inner


def _without_forbidden(body: Mapping[str, Any]) -> dict[str, Any]:
    """Return the rest of a body, of which there may be something to say, too."""
    found = {key: value for key, value in body.items() if key not in _FORBIDDEN and key not in LOOP_SECTIONS}
    for section, _, key in (path.partition(".") for path in _FORBIDDEN):
        if key and isinstance(found.get(section), dict):
            found[section] = {name: value for name, value in found[section].items() if name != key}
    return found


def _members_with_trust(body: Mapping[str, Any]) -> Iterator[int]:
    model = body.get("model")
    members = model.get("members") if isinstance(model, dict) else None
    for position, member in enumerate(members if isinstance(members, list) else []):
        if isinstance(member, dict) and "trust" in member:
            yield position


class _WrongBody(ValueError):
    """Wrong in a way that the caller is told."""


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        double = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise _WrongBody(f"key {double[:100]!r} is given twice")
    return found


def _no_number(text: str) -> Any:
    raise _WrongBody(f"{text} is no number")
