"""Copies of a bucket's files on this machine: made once, checked, bounded, and gone with their process."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import xxhash

from raystream.errors import StoreError
from raystream.store.integrity import LocalCopies
from raystream.store.protocol import StoredFile


def stored(name: str, content: bytes) -> StoredFile:
    return StoredFile(name, len(content), xxhash.xxh3_128_hexdigest(content))


def pieces(content: bytes, asked: list[str] | None = None) -> Callable[[], Iterator[bytes]]:
    def each() -> Iterator[bytes]:
        if asked is not None:
            asked.append("")
        yield content[:3]
        yield content[3:]

    return each


def test_many_who_look_at_once_share_one_copy(tmp_path: Path) -> None:
    """Eight threads ask for a file: it is brought once, and all see it whole."""
    copies, asked, seen = LocalCopies(tmp_path / "copies"), [], []  # type: ignore[var-annotated]
    file = stored("units/a/x.arrow", b"content")

    def look() -> None:
        seen.append(copies.path("s3://b", file, pieces(b"content", asked)).read_bytes())

    threads = [threading.Thread(target=look) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [b"content"] * 8
    assert len(asked) == 1


def test_a_store_and_a_content_have_a_copy_of_their_own(tmp_path: Path) -> None:
    """The same name in another store, or with other content, is another file."""
    copies = LocalCopies(tmp_path / "copies")
    one = copies.path("s3://b", stored("x", b"first!"), pieces(b"first!"))
    two = copies.path("s3://c", stored("x", b"first!"), pieces(b"first!"))
    three = copies.path("s3://b", stored("x", b"second"), pieces(b"second"))
    assert len({one, two, three}) == 3
    assert three.read_bytes() == b"second"


def test_the_copy_asked_for_longest_ago_makes_room(tmp_path: Path) -> None:
    """All copies stay within the limit; one that was removed is brought again; what exceeds the limit alone is an error."""
    copies = LocalCopies(tmp_path / "copies", limit=20)
    files = {name: stored(name, name.encode() * 8) for name in "abc"}

    def look(name: str) -> Path:
        return copies.path("s3://b", files[name], pieces(name.encode() * 8))

    a, b = look("a"), look("b")
    look("a")
    look("c")
    assert a.exists()
    assert not b.exists()
    assert look("b").read_bytes() == b"b" * 8
    assert sum(path.stat().st_size for path in a.parent.iterdir()) <= 20
    with pytest.raises(StoreError, match="no room for a copy of large"):
        copies.path("s3://b", stored("large", bytes(21)), pieces(bytes(21)))


@pytest.mark.parametrize("wrong", [b"contenT", b"content and more", b"cont"])
def test_what_is_not_as_written_leaves_no_copy(tmp_path: Path, wrong: bytes) -> None:
    """Damaged, too long, cut short: refused, and the next one who asks gets what is right."""
    copies, file = LocalCopies(tmp_path / "copies"), stored("x", b"content")
    with pytest.raises(StoreError, match="s3://b/x is damaged"):
        copies.path("s3://b", file, pieces(wrong))
    assert copies.path("s3://b", file, pieces(b"content")).read_bytes() == b"content"


def test_copies_of_a_killed_process_are_removed_by_the_next(tmp_path: Path) -> None:
    """Those of a living one stay; one's own are gone after `remove`."""
    living = LocalCopies(tmp_path / "copies")
    kept = living.path("s3://b", stored("x", b"content"), pieces(b"content"))
    code = (
        "import os, sys; from pathlib import Path; from raystream.store.integrity import LocalCopies;"
        "copies = LocalCopies(Path(sys.argv[1])); (copies._folder / 'left').write_bytes(b'x'); os._exit(9)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path / "copies")]).returncode == 9
    assert len(list((tmp_path / "copies").glob("*/left"))) == 1
    assert kept.exists()
    following = LocalCopies(tmp_path / "copies")
    assert not list((tmp_path / "copies").glob("*/left"))
    assert kept.exists()
    following.remove()
    living.remove()
    assert [path.name for path in (tmp_path / "copies").iterdir()] == ["lock"]
