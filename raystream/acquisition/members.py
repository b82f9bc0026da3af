"""Scores from K models or dropout samples: `(n_rows, n_members, n_classes) -> (n_rows,)`, higher = label sooner.

All are computed in float64, and a row's score doesn't depend on the rows beside it. A log-probability of -inf is a class that is
out of the question. Where all are 0 or -inf, as of fully grown trees, `bald`, `consensus_entropy` and `vote_entropy` are one and the
same number. A row that holds NaN or +inf scores NaN.

What they share is computed once a block of rows, with the rows innermost. With l_kc the log-probability that member k gives class c,
everything follows from what lies below the largest member of each class:

    largest = max over k of l_kc,   below = l - largest <= 0,   ratio = exp(below),   share = mean over k of ratio
    log p_mean = logsumexp over k of l_k - log K = largest + log(share)

Equal members give below = 0, so that their disagreement is exactly 0 and not what rounding leaves of a difference. Sums are
taken pairwise and elementwise: a row's score is the same to its last bit whatever rows are beside it. Members that predict numbers
instead of classes are scored by the variance between them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from raystream.acquisition.inputs import (
    InKind,
    checked_members,
    checked_predictions,
    checked_temperature,
    given_members,
    in_kind,
    refuse_probabilities,
)
from raystream.errors import QueryError, did_you_mean
from raystream.query.catalogue import SCORES, formulas
from raystream.threads import each

UNDERFLOW = -1000.0
"""exp() of it is 0 in float64; being finite, it makes 0 * log 0 come out as 0."""

_BLOCK = 1 << 18
"""Numbers of a block of rows: what is computed from them stays within some MB."""

_CHUNK = 1 << 16
"""Numbers of some classes of a block, which stay in a core's cache while they go through a dozen operations."""

_LINE = 16
"""Rows that come with each other into a processor's cache where they are innermost in memory."""

_SLACK = 0.05
"""How far probabilities may be from summing to 1: bfloat16 is some thousandths off, logits given by mistake are far."""

WITHIN, VARIANCES = "within", "variances"
"""Parts that only some scores need."""


@dataclass(frozen=True)
class MemberParts:
    """The numbers that the scores of one block share, in float64, but for the members, with rows innermost."""

    members: Tensor  # (k, c, b), as given
    largest: Tensor  # (c, b)
    share: Tensor  # (c, b)
    broken: Tensor  # (b,), 0, or NaN where a row holds NaN or infinity
    more: Mapping[str, Tensor]  # each (c, b), of what was asked for

    @property
    def within(self) -> Tensor:
        """mean over k of ratio log ratio, (c, b)."""
        return self.more[WITHIN]

    @property
    def variances(self) -> Tensor:
        """Over members, of the probability of each class, (c, b).

        From deviations from the largest member, which is one of the data, so that the difference loses at most a factor K.
        """
        return self.more[VARIANCES] * (2 * self.largest).exp()

    @cached_property
    def mean(self) -> Tensor:
        """p_mean, (c, b)."""
        return self.largest.exp() * self.share

    @cached_property
    def log_mean(self) -> Tensor:
        """log p_mean, (c, b); -inf where it is 0."""
        return self.largest + self.log_share

    @cached_property
    def log_share(self) -> Tensor:
        """(c, b), -inf where every member rules the class out."""
        return self.share.log()

    @cached_property
    def votes(self) -> Tensor:
        """The part of the members that votes for each class, (c, b)."""
        winners = self.members.max(dim=1).indices
        counts = torch.zeros_like(self.largest)
        counts.scatter_add_(0, winners, counts.new_ones(()).expand_as(winners))
        return counts / len(self.members) + self.broken


def by_blocks(log_probs: Tensor, see: Callable[[slice, MemberParts], None], parts: Collection[str] = ()) -> None:
    """Show the parts of (n, k, c) log-probabilities, block by block, with those named; an error if a row of them is no distribution."""
    each_block(log_probs, lambda rows: see(rows, _parts(log_probs, rows, parts)))


def each_block(samples: Tensor, work: Callable[[slice], None]) -> None:
    """Do the work on all blocks of rows of (n, k, c) samples; on a processor each thread takes blocks of its own."""
    if samples.device.type != "cpu":
        for rows in row_blocks(samples):
            work(rows)
        return
    inference = torch.is_inference_mode_enabled()  # a thread begins outside

    def here(rows: slice) -> None:
        with torch.inference_mode(inference):
            work(rows)

    each(row_blocks(samples), lambda: here)


def _parts(log_probs: Tensor, rows: slice, parts: Collection[str]) -> MemberParts:
    members = rows_innermost(log_probs[rows])
    largest = members.amax(dim=0).double().clamp_(min=UNDERFLOW)
    share, more = torch.empty_like(largest), {name: torch.empty_like(largest) for name in parts}
    for classes in _chunks(members):
        below = members[:, classes].to(torch.float64, copy=True).sub_(largest[classes]).clamp_(min=UNDERFLOW)
        ratio = below.exp()
        share[classes] = _over_members(ratio)
        if WITHIN in more:
            more[WITHIN][classes] = _over_members(below.mul_(ratio))
        if VARIANCES in more:
            square = _over_members(ratio.sub_(1)).square_()
            more[VARIANCES][classes] = _over_members(ratio.square_()).sub_(square).clamp_(min=0)
    mass = total(largest.exp() * share)
    check_mass(mass, rows.start)
    return MemberParts(members, largest, share, mass * 0, more)


def _chunks(members: Tensor) -> Iterator[slice]:
    """Yield runs of classes of (k, c, b) members."""
    count, classes, rows = members.shape
    size = max(_CHUNK // (count * rows), 1) if members.device.type == "cpu" else classes
    return (slice(start, start + size) for start in range(0, classes, size))


def _over_members(values: Tensor) -> Tensor:
    """Return the mean over the members of (k, c, b): of each class and row the same sum, wherever it stands."""
    return values.sum(dim=0).div_(len(values))


def check_mass(mass: Tensor, start: int = 0) -> None:
    """Raise QueryError unless the probabilities of each row, counted from `start`, sum to about 1; NaN and infinity pass."""
    wrong = torch.nonzero((mass - 1 + mass * 0).abs() > _SLACK).flatten()
    if len(wrong):
        row = int(wrong[0])
        raise QueryError(
            f"the probabilities of row {start + row} sum to {float(mass[row]):.6g} in the mean of its members, expected 1; "
            "give log-probabilities: log_probabilities(logits), or the logarithm of probabilities"
        )


def row_blocks(samples: Tensor) -> Iterator[slice]:
    """Yield runs of rows of (n, k, c) samples that are computed at once."""
    n, members, classes = samples.shape
    numbers = _BLOCK if samples.device.type == "cpu" else 64 * _BLOCK
    size = numbers // (members * classes)
    if size < _LINE:  # transposing few rows costs more than it gives, unless they are innermost already
        size = _LINE if samples.stride(0) == 1 else 1
    return (slice(start, min(start + size, n)) for start in range(0, n, size))


def rows_innermost(samples: Tensor) -> Tensor:
    """Turn (b, k, c) into (k, c, b), contiguous; by way of two dimensions, whose transposition is the fast one."""
    rows, members, classes = samples.shape
    return samples.reshape(rows, members * classes).t().contiguous().view(members, classes, rows)


def total(values: Tensor) -> Tensor:
    """Return the sum over the first axis."""
    while len(values) > 1:
        half, odd = divmod(len(values), 2)
        if odd:
            rest = torch.empty_like(values[: half + 1])
            torch.add(values[:half], values[half + 1 :], out=rest[:half])
            rest[half] = values[half]
            values = rest
        else:
            values = values[:half] + values[half:]
    return values[0]


def mean(values: Tensor) -> Tensor:
    """Return the mean over the first axis."""
    return total(values) / len(values)


@dataclass(frozen=True)
class MemberScores:
    """Scores of one block of rows, and what its members say together."""

    scores: dict[str, Tensor]
    """By name, in the order asked for; each float32 (n_rows,)."""
    log_mean: Tensor
    """log p_mean; float32 (n_rows, n_classes). As logits of `logit_scores`, it gives margin and the rest of the members together."""
    prediction: Tensor
    """The likeliest class of p_mean, the lowest at a tie; int32 (n_rows,)."""
    confidence: Tensor
    """The probability of that class; float32 (n_rows,)."""


def bald(log_probs: ArrayLike | None = None, *, probabilities: ArrayLike | None = None, temperature: float = 1.0) -> InKind:
    """Measure how much the members disagree: mean_k KL(p_k ‖ p_mean) = H(p_mean) - mean_k H(p_k), in nats.

    It is the mutual information of the label and the choice of the member: 0 when all say the same, however unsure they are, and at
    most min(log n_members, log n_classes).

    Args:
        log_probs: (n_rows, n_members, n_classes), log-probabilities as of `log_probabilities`: lists, a NumPy array or a tensor.
        probabilities: (n_rows, n_members, n_classes) that sum to 1, instead of log_probs.
        temperature: softens each member, p^(1/T) scaled to sum to 1.

    Returns:
        float64 (n_rows,); a tensor where a tensor is given, else a NumPy array.

    Raises:
        QueryError: another shape, or what are no log-probabilities, such as logits.

    References:
        Houlsby, Huszár, Ghahramani and Lengyel, Bayesian Active Learning for Classification and Preference Learning, 2011; with
        dropout samples: Gal, Islam and Ghahramani, Deep Bayesian Active Learning with Image Data, 2017.
    """
    return _one("bald", log_probs, probabilities, temperature)


def consensus_entropy(log_probs: ArrayLike | None = None, *, probabilities: ArrayLike | None = None, temperature: float = 1.0) -> InKind:
    """Compute the entropy of the mean prediction in nats, H(p_mean): unsure members and disagreeing members both raise it.

    Args and Returns as `bald`; between 0 and log n_classes, and never below `bald`.

    References:
        Settles, Active Learning, 2012, section 3.2 (soft vote entropy).
    """
    return _one("consensus_entropy", log_probs, probabilities, temperature)


def vote_entropy(log_probs: ArrayLike | None = None, *, probabilities: ArrayLike | None = None, temperature: float = 1.0) -> InKind:
    """Compute the entropy in nats of the classes voted for, -sum_c v_c/K log(v_c/K), a tied member voting for its lowest class.

    Args and Returns as `bald`; 0 when all vote for one class, at most min(log n_members, log n_classes).

    References:
        Dagan and Engelson, Committee-Based Sampling for Training Probabilistic Classifiers, 1995.
    """
    return _one("vote_entropy", log_probs, probabilities, temperature)


def variation_ratio(log_probs: ArrayLike | None = None, *, probabilities: ArrayLike | None = None, temperature: float = 1.0) -> InKind:
    """Return the part of the members that doesn't vote for the commonest class, 1 - max_c v_c/K.

    Args and Returns as `bald`; 0 when all vote for one class, below 1.

    References:
        Freeman, Elementary Applied Statistics, 1965; Gal, Islam and Ghahramani, 2017.
    """
    return _one("variation_ratio", log_probs, probabilities, temperature)


def mean_std(log_probs: ArrayLike | None = None, *, probabilities: ArrayLike | None = None, temperature: float = 1.0) -> InKind:
    """Measure how far probabilities vary between members: the population standard deviation over members, mean over classes.

    Args and Returns as `bald`; between 0 and 1/2.

    References:
        Kampffmeyer, Salberg and Jenssen, Semantic Segmentation of Small Objects and Modeling of Uncertainty, 2016; Gal, Islam and
        Ghahramani, 2017.
    """
    return _one("mean_std", log_probs, probabilities, temperature)


def variance(log_probs: ArrayLike | None = None, *, probabilities: ArrayLike | None = None, temperature: float = 1.0) -> InKind:
    """Measure how far probabilities vary between members: the population variance over members, summed over classes.

    Args and Returns as `bald`; between 0 and 1.

    References:
        Smith and Gal, Understanding Measures of Uncertainty for Adversarial Example Detection, 2018.
    """
    return _one("variance", log_probs, probabilities, temperature)


def member_scores(log_probs: ArrayLike, names: Iterable[str]) -> MemberScores:
    """Compute any of the scores in one pass over the members, with the mean and what it predicts, as tensors.

    Works through the rows in blocks: beside arguments and results it takes some MB, however many the rows.

    Args:
        log_probs: (n_rows, n_members, n_classes), log-probabilities as of `log_probabilities`, whose memory order is the fastest.
        names: of the functions of this module that score.

    Raises:
        QueryError: a name is unknown, or the members of a row don't hold log-probabilities.
    """
    known = formulas("members")
    names = list(dict.fromkeys(names))
    for name in names:
        if name not in known:
            raise QueryError(f"score {name!r} is not one of members{did_you_mean(name, known)}")
    log_probs = given_members(log_probs, None)
    n, _, classes = log_probs.shape
    scores = {name: torch.empty(n, dtype=torch.float32, device=log_probs.device) for name in names}
    log_mean, confidence = (
        torch.empty(classes, n, dtype=torch.float32, device=log_probs.device),
        torch.empty(n, dtype=torch.float32, device=log_probs.device),
    )
    prediction = torch.empty(n, dtype=torch.int32, device=log_probs.device)

    def see(rows: slice, parts: MemberParts) -> None:
        for name in names:
            scores[name][rows] = known[name](parts)
        log_mean[:, rows] = parts.log_mean
        likeliest = parts.mean.max(dim=0)
        confidence[rows], prediction[rows] = likeliest.values, likeliest.indices

    by_blocks(log_probs, see, {part for name in names for part in SCORES[name].parts})
    return MemberScores(scores, log_mean.t(), prediction, confidence)


def log_probabilities(logits: ArrayLike, temperature: float = 1.0) -> InKind:
    """Compute log softmax(z / T) of each member, to full relative precision, where the top class is near 0 as well.

    Args:
        logits: (n_rows, n_members, n_classes).
        temperature: T.

    Returns:
        (n_rows, n_members, n_classes), float32 or the wider dtype of the logits; rows are innermost in memory. A logit of -inf
        stays -inf; a member that holds NaN or +inf, or nothing but -inf, is NaN in every class.

    Raises:
        QueryError: another shape, or probabilities given as logits.
    """
    values = checked_members(logits, "logits")
    refuse_probabilities(values, logits)
    return in_kind(softened(values, checked_temperature(temperature)), logits)


def softened(logits: Tensor, temperature: float) -> Tensor:
    """Compute `log_probabilities` of a block of the members' outputs, whatever they are."""
    logits = checked_members(logits, "logits")
    n, members, classes = logits.shape
    out = torch.empty(members, classes, n, dtype=logits.dtype, device=logits.device)

    def work(rows: slice) -> None:
        below = out[:, :, rows]
        below.copy_(rows_innermost(logits[rows]))
        top, winner = below.max(dim=1, keepdim=True)
        below -= top + top * 0  # NaN when not finite, and so is all that follows
        if temperature != 1.0:
            below /= temperature
        rest = below.exp().scatter_(1, winner, 0.0)
        below -= torch.log1p(total(rest.transpose(0, 1))).unsqueeze(1)

    each_block(logits, work)
    return out.permute(2, 0, 1)


def _one(name: str, log_probs: ArrayLike | None, probabilities: ArrayLike | None, temperature: float) -> InKind:
    members = given_members(log_probs, probabilities)
    if checked_temperature(temperature) != 1.0:
        for rows in row_blocks(members):  # logits would be softened, too
            check_mass(members[rows].double().exp().mean(dim=1).sum(dim=1), rows.start)
        members = softened(members, temperature)
    scores, formula = torch.empty(len(members), dtype=torch.float64, device=members.device), formulas("members")[name]

    def see(rows: slice, parts: MemberParts) -> None:
        scores[rows] = formula(parts)

    by_blocks(members, see, SCORES[name].parts)
    return in_kind(scores, log_probs, probabilities)


def bald_of(parts: MemberParts) -> Tensor:
    """Compute `bald` from the parts: sum_c exp(largest) (mean_k ratio log ratio - share log share), each term >= 0 by Jensen."""
    between = parts.share * parts.log_share.clamp(min=UNDERFLOW)
    return total((parts.within - between).clamp_(min=0) * parts.largest.exp())


def consensus_entropy_of(parts: MemberParts) -> Tensor:
    """Compute `consensus_entropy` from the parts."""
    return -total(parts.mean * parts.log_mean.clamp(min=UNDERFLOW, max=0))


def vote_entropy_of(parts: MemberParts) -> Tensor:
    """Compute `vote_entropy` from the parts."""
    return total(torch.special.entr(parts.votes))


def variation_ratio_of(parts: MemberParts) -> Tensor:
    """Compute `variation_ratio` from the parts."""
    return 1 - parts.votes.amax(dim=0)


def mean_std_of(parts: MemberParts) -> Tensor:
    """Compute `mean_std` from the parts."""
    return mean(parts.variances.sqrt())


def variance_of(parts: MemberParts) -> Tensor:
    """Compute `variance` from the parts."""
    return total(parts.variances)


def regression_variance(predictions: ArrayLike) -> InKind:
    """Measure how much members disagree on numbers: the population variance over members, summed over outputs.

    Outputs on different scales should be divided by their scale first, else the largest decides.

    Args:
        predictions: (n_rows, n_members) or (n_rows, n_members, n_outputs).

    Returns:
        float64 (n_rows,), exactly 0 where members agree; NaN where a row holds NaN or infinity. A tensor where one is given, else a NumPy
        array.

    References:
        Burbidge, Rowland and King, Active Learning for Regression Based on Query by Committee, 2007.
    """
    wide = checked_predictions(predictions).double()
    if wide.ndim == 2:
        wide = wide.unsqueeze(2)
    apart = wide - wide[:, :1]  # exact for equal members, and harmless otherwise: the first is one of the data
    return in_kind((apart - apart.mean(dim=1, keepdim=True)).square().mean(dim=1).sum(dim=1), predictions)
