"""What commands know of the Ray job that they run in, if `raystream submit` or `ray job submit` started them."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from raystream.query.places import Asked

_VARIABLE = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Ray gives it to a job's command, and to nothing else."""

_Asked = TypeVar("_Asked", bound="Asked")


def check_places(asked: _Asked) -> _Asked:
    """Return what is asked, unless it runs in a job and what it reads or writes would go with that.

    Raises:
        QueryError: pool, store, output or labels are a relative path.
    """
    from raystream.query.places import places

    for key, uris in places(asked).items():
        for uri in uris:
            check_place(key, uri)
    return asked


def check_place(key: str, uri: str) -> str:
    """Return the path or URI, unless this is a job and it is relative.

    Raises:
        QueryError: it is.
    """
    if _VARIABLE in os.environ:
        from raystream.query.places import refuse_relative

        refuse_relative(key, uri)
    return uri


def submission_id() -> str | None:
    """Return the id of the job that this command runs in; None outside of one."""
    try:
        job = json.loads(os.environ.get(_VARIABLE, "{}"))
        found = job.get("metadata", {}).get("job_submission_id")
    except (ValueError, AttributeError):
        return None
    return found if isinstance(found, str) else None
