"""Where data lies outside this machine: URIs, the options of object storage, and the file systems behind them.

The lowest room of the house: it knows nothing of pools, models or stores, and imports pyarrow only when a path is opened.
Secrets come from the environment alone, are never part of a value of this room, and never of a message.
"""

from raystream.lake.filesystem import filesystem_at, filesystem_of, with_options
from raystream.lake.ranges import local_copy
from raystream.lake.retry import is_final, own_reason, reason
from raystream.lake.uri import LOCAL, Location, Storage, is_remote, located, parse, redacted, storage_from

__all__ = [
    "LOCAL", "Location", "Storage", "filesystem_at", "filesystem_of", "is_final", "is_remote", "local_copy", "located", "own_reason",
    "parse", "reason", "redacted", "storage_from", "with_options",
]  # fmt: skip
