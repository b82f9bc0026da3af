"""The errors that may occur, and the exit code that each kind of failure ends the command line with.

    RaystreamError                 1   a defect of ours, if raised by itself
    ├── QueryError (ValueError)    2   the query or the arguments are wrong
    ├── StoreVersionError          2   the store was written by a newer raystream
    ├── DataError (ValueError)     3   something that the query points at is wrong
    │   ├── AcquisitionContractError (AssertionError)  an acquisition function breaks a promise that all of them make
    │   ├── PoolError                  the pool's files, columns or rows
    │   ├── ModelError                 the model's source, weights or output
    │   ├── LabelsError                the labelled ids
    │   ├── StoreError (OSError)       the store can't be read or written
    │   │   └── StoreUnreachable           its server doesn't answer, or breaks off
    │   ├── StrategyContractError (AssertionError)  a strategy breaks a promise that all strategies make
    │   └── VerificationError          a committed selection is not what its scores give
    ├── UnitsFailed (RuntimeError) 4   units failed three times, or more than may be left out; all else was scored and kept
    └── ClusterError (RuntimeError) 5  the cluster could not run the query

A message is one sentence: what, where, got, expected, what to do. Every error here holds its message
alone, so that it survives the pickling between processes.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class RaystreamError(Exception):
    """The root of every error that raystream raises on purpose."""

    exit_code = 1


class QueryError(RaystreamError, ValueError):
    """The query, or an argument of a function, is wrong."""

    exit_code = 2


class StoreVersionError(RaystreamError):
    """The store was written by a newer raystream than this one."""

    exit_code = 2


class DataError(RaystreamError, ValueError):
    """Something that the query points at is wrong; never retried."""

    exit_code = 3


class AcquisitionContractError(DataError, AssertionError):
    """An acquisition function, usually the user's own, breaks a promise that all of them make."""


class PoolError(DataError):
    """The pool is missing, empty, unreadable, or holds rows that can't be used."""


class ModelError(DataError):
    """The model can't be loaded, or its output can't be used."""


class LabelsError(DataError):
    """The labelled ids can't be read or matched with the pool."""


class StoreError(DataError, OSError):
    """The store can't be read or written."""


class StoreUnreachable(StoreError):
    """The server of the store doesn't answer, or breaks off, however often it is asked; later it may."""


class StrategyContractError(DataError, AssertionError):
    """A strategy, usually the user's own, breaks a promise that all strategies make."""


class VerificationError(DataError):
    """A committed selection is not what its stored scores give."""


class UnitsFailed(RaystreamError, RuntimeError):
    """Units failed three times, or more of them than the query may leave out; the rest of the pool was scored and is kept."""

    exit_code = 4


class ClusterError(RaystreamError, RuntimeError):
    """The cluster could not be reached, or can't run the workers that the query asks for."""

    exit_code = 5


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Write `; did you mean 'margin'?` for the nearest of the known names, else their list."""
    options = sorted(set(known))
    near = difflib.get_close_matches(name, options, n=1, cutoff=0.6)
    if near:
        return f"; did you mean {near[0]!r}?"
    return f"; known: {', '.join(options)}" if options else ""
