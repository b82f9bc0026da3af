"""The query of a folder in the store, as it was given."""

from __future__ import annotations

import yaml

from raystream.engine.manifest import query_folder
from raystream.engine.stores import Store
from raystream.errors import QueryError, StoreError
from raystream.query import Query


def read_query(store: Store, name: str) -> Query:
    """What `query.yaml` holds.

    Raises:
        StoreError: it isn't there, or is no query.
    """
    file = f"{query_folder(name)}/query.yaml"
    try:
        return Query(**yaml.safe_load(store.read(file)))
    except StoreError:
        raise
    except (yaml.YAMLError, QueryError, TypeError, ValueError) as error:
        told = " ".join(str(error).split()) if isinstance(error, QueryError) else "it holds no keys and values"
        raise StoreError(
            f"store: {store.place(file)} is damaged ({told}), so what query {name} asked for is unknown; restore it, or forget the query "
            f"by raystream gc --drop {name}"
        ) from None
