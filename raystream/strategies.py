"""The strategies of the catalogue, `raystream.query.catalogue`, under their former name."""

from raystream.query.catalogue import OPTIONAL_KEYS, TERMS, TRAITS, USERS_OWN, Traits, traits

__all__ = ["OPTIONAL_KEYS", "TERMS", "TRAITS", "USERS_OWN", "Traits", "traits"]
