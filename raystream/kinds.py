"""The kinds of model of the catalogue, `raystream.query.catalogue`, under their former name."""

from raystream.query.catalogue import ENTRY_POINTS, KINDS, REGISTERED, entry_point, kind_of
from raystream.query.catalogue import MODEL_KEYS as OPTIONAL_KEYS

__all__ = ["ENTRY_POINTS", "KINDS", "OPTIONAL_KEYS", "REGISTERED", "entry_point", "kind_of"]
