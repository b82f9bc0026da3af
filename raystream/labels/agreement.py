"""How far annotators agree beyond chance: Cohen's kappa of each two, and Krippendorff's alpha of all."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass
from itertools import combinations

from raystream.labels.annotation import LABELLED
from raystream.labels.ids import as_text
from raystream.labels.label_table import LabelTable


@dataclass(frozen=True)
class Agreement:
    """Of all annotators.

    Attributes:
        annotators: how many.
        rows: labelled by two of them or more.
        kappa: Cohen's, averaged over pairs, each weighted by the rows that both labelled; NaN where none is defined.
        alpha: Krippendorff's, for classes; NaN where everybody always says the same class.
    """

    annotators: int
    rows: int
    kappa: float
    alpha: float

    def __str__(self) -> str:
        kappa, alpha = (("undefined" if math.isnan(value) else f"{value:.3f}") for value in (self.kappa, self.alpha))
        return (
            f"agreement of {self.annotators} annotators over {self.rows:,} rows that two or more labelled: Cohen's kappa {kappa}, "
            f"Krippendorff's alpha {alpha}"
        )


def agreement(table: LabelTable) -> Agreement | None:
    """Measure how far the annotators of a table agree; None where no row was labelled by two people."""
    said: dict[str, dict[Hashable, Hashable]] = defaultdict(dict)
    for row in table.rows:
        if row.state == LABELLED and row.label is not None and row.annotator is not None:
            said[as_text(row.id)][row.annotator] = row.label
    shared = {id_: answers for id_, answers in said.items() if len(answers) > 1}
    if not shared:
        return None
    people = {who for answers in shared.values() for who in answers}
    return Agreement(len(people), len(shared), mean_kappa(shared.values()), krippendorff_alpha(shared.values()))


def cohen_kappa(pairs: Iterable[tuple[Hashable, Hashable]]) -> float:
    """Compute (observed - expected) / (1 - expected) agreement of two annotators; NaN where chance alone explains all.

    J. Cohen, A coefficient of agreement for nominal scales, Educational and Psychological Measurement 20 (1960).

    Args:
        pairs: what the first and the second said of each row.
    """
    given = list(pairs)
    count = len(given)
    if not count:
        return math.nan
    first, second = Counter(a for a, _ in given), Counter(b for _, b in given)
    observed = sum(a == b for a, b in given) / count
    expected = sum(first[name] * second[name] for name in first) / count**2
    return math.nan if expected == 1 else (observed - expected) / (1 - expected)


def mean_kappa(rows: Iterable[Mapping[Hashable, Hashable]]) -> float:
    """Compute Cohen's kappa of every two annotators, weighted by the rows that both labelled.

    Args:
        rows: what each annotator said of a row.
    """
    by_pair: dict[tuple[Hashable, Hashable], list[tuple[Hashable, Hashable]]] = defaultdict(list)
    for answers in rows:
        for a, b in combinations(sorted(answers, key=str), 2):
            by_pair[a, b].append((answers[a], answers[b]))
    found = [(cohen_kappa(pairs), len(pairs)) for pairs in by_pair.values()]
    defined = [(kappa, weight) for kappa, weight in found if not math.isnan(kappa)]
    total = sum(weight for _, weight in defined)
    return sum(kappa * weight for kappa, weight in defined) / total if total else math.nan


def krippendorff_alpha(rows: Iterable[Mapping[Hashable, Hashable]]) -> float:
    """Compute 1 - observed / expected disagreement, of any number of annotators, who needn't have seen all rows; for classes.

    K. Krippendorff, Computing Krippendorff's alpha-reliability (2011).

    Args:
        rows: what each annotator said of a row; rows with one answer don't count.
    """
    totals: Counter[Hashable] = Counter()
    differing = 0.0
    for answers in rows:
        counts = Counter(answers.values())
        size = sum(counts.values())
        if size < 2:
            continue
        totals.update(counts)
        differing += (size**2 - sum(count**2 for count in counts.values())) / (size - 1)
    n = sum(totals.values())
    expected = n**2 - sum(count**2 for count in totals.values())
    return 1 - (n - 1) * differing / expected if expected else math.nan
