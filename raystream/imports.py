"""Import paths of the user's own code, `package.module:attribute`: how they are written, and what they name; imports of much code."""

from __future__ import annotations

import gc
import importlib
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

from raystream.errors import QueryError, RaystreamError, did_you_mean

_LONGEST_HINT = 300


def is_import_path(path: str) -> bool:
    """Tell whether a path is of the form `package.module:attribute`."""
    module, separator, attribute = path.partition(":")
    return bool(separator and attribute) and all(part.isidentifier() for part in module.split("."))


def split_path(path: str, what: str) -> tuple[str, str]:
    """Split `package.module:attribute` into its two halves.

    Raises:
        QueryError: it has another form.
    """
    module, _, attribute = path.partition(":")
    if not is_import_path(path):
        raise QueryError(f"{what} is {path!r}, expected an import path of the form package.module:callable")
    return module, attribute


def find(path: str, what: str, error: type[RaystreamError] = QueryError) -> object:
    """Import what a path names, as it is.

    Args:
        path: `module:attribute`; the attribute may have dots.
        what: names it, such as the key of the query that holds it, for messages.
        error: raised if it can't be imported, or isn't there.

    Raises:
        QueryError: the path has another form.
    """
    name, attribute = split_path(path, what)
    found: object = _imported(name, f"{what} {path}", error)
    for part in attribute.split("."):
        if not hasattr(found, part):
            public = [known for known in dir(found) if not known.startswith("_") and callable(getattr(found, known, None))]
            hint = did_you_mean(part, public)
            raise error(f"{what} {path}: {name} has no {attribute!r}{hint if len(hint) <= _LONGEST_HINT else ''}")
        found = getattr(found, part)
    return found


def _imported(name: str, place: str, kind: type[RaystreamError]) -> object:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if missing == name or name.startswith(f"{missing}."):
            raise kind(f"{place}: there is no module {missing!r}; run from the project's folder or install the package") from None
        raise kind(f"{place}: importing {name} raised {type(error).__name__}: {error}; install what it imports") from error
    except (Exception, SystemExit) as error:
        raise kind(f"{place}: importing {name} raised {type(error).__name__}: {error}; fix the module") from error


@contextmanager
def uncollected() -> Iterator[None]:
    """Import much code inside without the garbage collector, which looks again and again through what is made to stay.

    Of the second that torch and what a run takes beside it need, that is a quarter.
    """
    before = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if before:
            gc.enable()


def keep_pandas_out() -> None:
    """Have pyarrow do without pandas until somebody imports it: pyarrow's first array would, which takes a quarter of a second.

    pyarrow looks for pandas once: now, and in vain. It looks again as soon as anybody imports pandas, so that frames and series are to
    it what they always are. For processes of our own; in others it isn't ours to decide.
    """
    if "pandas" in sys.modules:
        return
    import pyarrow as pa

    finder = _PandasFinder()
    sys.meta_path.insert(0, finder)
    pa.array([0])
    finder.hides = False


class _PandasFinder(MetaPathFinder):
    """Finds pandas where it is, unless that is hidden, and lets pyarrow know once it is imported."""

    def __init__(self) -> None:
        self.hides = True

    def find_spec(self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> ModuleSpec | None:
        if fullname != "pandas":
            return None
        if self.hides:
            raise ModuleNotFoundError(f"No module named {fullname!r}", name=fullname)
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            execute(module)
            import pyarrow as pa

            with suppress(ImportError):  # too old for pyarrow, which does without it then
                pa.nulls(0).to_pandas()

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec
