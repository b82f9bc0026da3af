"""See `raystream.threads`, which acquisition uses as well."""

from raystream.threads import each, one_thread

__all__ = ["each", "one_thread"]
