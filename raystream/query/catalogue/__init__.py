"""The catalogue: every strategy, score and kind of model, declared once, as data that loads none of their code.

Queries are checked by it, `did you mean` comes from it, and so do `raystream strategies`, the reference in docs/ and the cases of many
tests. An entry says where the code lies as an import path, which is followed when the thing is used. So a new strategy is a module
with its algorithm and an entry here; a new score a function and an entry; a new kind of model a module and an entry.
"""

from raystream.query.catalogue.kinds import ENTRY_POINTS, KINDS, REGISTERED, Arg, KindEntry, entry_point, kind_of
from raystream.query.catalogue.kinds import OPTIONAL_KEYS as MODEL_KEYS
from raystream.query.catalogue.rules import meant_score, meant_strategy
from raystream.query.catalogue.scores import (
    GRADIENT_SCORES,
    LOGIT_SCORES,
    MEMBER_SCORES,
    PARAMETER_SCORES,
    SAMPLE_SCORES,
    SCORES,
    ScoreEntry,
    formulas,
    label_formulas,
    number_formulas,
    scores_of_task,
)
from raystream.query.catalogue.strategies import AUTO, CONTROL, OPTIONAL_KEYS, TERMS, TRAITS, USERS_OWN, Traits, traits

__all__ = [
    "AUTO",
    "CONTROL",
    "ENTRY_POINTS",
    "GRADIENT_SCORES",
    "KINDS",
    "LOGIT_SCORES",
    "MEMBER_SCORES",
    "MODEL_KEYS",
    "OPTIONAL_KEYS",
    "PARAMETER_SCORES",
    "REGISTERED",
    "SAMPLE_SCORES",
    "SCORES",
    "TERMS",
    "TRAITS",
    "USERS_OWN",
    "Arg",
    "KindEntry",
    "ScoreEntry",
    "Traits",
    "entry_point",
    "formulas",
    "kind_of",
    "label_formulas",
    "meant_score",
    "meant_strategy",
    "number_formulas",
    "scores_of_task",
    "traits",
]
