"""README, CONTRIBUTING and docs/: links lead somewhere, tables are up to date, snippets are true."""

from __future__ import annotations

import re
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image
from typer.main import get_command

import raystream
from raystream import cli
from raystream.errors import PoolError
from raystream.pool import list_files
from raystream.query import Query
from raystream.query.loop import Loop
from raystream.query.simulate import Stream
from raystream.spec import read_spec

ROOT = Path(raystream.__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def without_code(text: str) -> str:
    return re.sub(r"```.*?```", "", text, flags=re.DOTALL)


def anchors(page: Path) -> set[str]:
    """Those of a page's headings: lower case, spaces as hyphens, punctuation left out."""
    heads = re.findall(r"^#+ (.*)$", without_code(page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


def snippets(page: Path, language: str) -> list[str]:
    found = re.findall(rf"^ *```{language}\n(.*?)^ *```", page.read_text(), re.DOTALL | re.MULTILINE)
    return [textwrap.dedent(code) for code in found]


@every_page
def test_links_lead_somewhere(page: Path) -> None:
    """Every link to a file finds it, and every anchor a heading."""
    targets = re.findall(r"\]\(([^)\s]+)\)", without_code(page.read_text()))
    for target in targets:
        path, _, anchor = target.partition("#")
        if target.startswith(("http:", "https:")):
            continue
        file = page.parent / path if path else page
        assert file.exists(), target
        if anchor:
            assert anchor in anchors(file), target


def test_every_page_is_reached_from_the_readme() -> None:
    """Whoever follows links from README comes to every document."""
    seen, left = set(), [ROOT / "README.md"]
    while left:
        page = left.pop().resolve()
        if page in seen or page.suffix != ".md":
            continue
        seen.add(page)
        targets = (target.partition("#")[0] for target in re.findall(r"\]\(([^)\s]+)\)", without_code(page.read_text())))
        left += [page.parent / target for target in targets if target and not target.startswith("http")]
    assert {page.resolve() for page in PAGES} <= seen


def test_generated_tables_are_up_to_date() -> None:
    """`make docs` would change nothing."""
    done = subprocess.run([sys.executable, str(ROOT / "docs" / "generate.py"), "--check"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@every_page
def test_yaml_snippets_are_queries(page: Path, tmp_path: Path) -> None:
    """Each is a whole query, or becomes one with the sections that it leaves out."""
    for code in snippets(page, "yaml"):
        given = yaml.safe_load(code)
        whole = {"pool": {"uri": "pool", "inputs": ["x"]}, "model": {"source": "m:net"}, "select": {"budget": 1000}} | given
        (tmp_path / "query.yaml").write_text(yaml.safe_dump(whole, sort_keys=False))
        if "loop" in given:
            assert Loop.load(tmp_path / "query.yaml").name == given["loop"].get("name", "query")
            continue
        if "stream" in given:
            assert Stream.load(tmp_path / "query.yaml").name == given["stream"].get("name", "query")
            continue
        assert Query(**read_spec(tmp_path / "query.yaml", [])) == Query(**whole)


@every_page
def test_python_snippets_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that need neither a query file nor the code around them run as they stand; the others are at least Python."""
    monkeypatch.chdir(tmp_path)
    for code in snippets(page, "python"):
        compile(code, page.name, "exec")
        if "import" in code and "query.yaml" not in code:
            exec(code, {"__name__": "snippet"})


def test_folders_of_images_and_csv_become_pools(tmp_path: Path) -> None:
    """What is no Parquet is refused with the page that shows how to make it Parquet; what that page shows gives the same rows."""
    (tmp_path / "photos" / "cats").mkdir(parents=True)
    for name in ("a.png", "cats/b.JPG"):
        Image.new("RGB", (8, 6), (200, 0, 9)).save(tmp_path / "photos" / name)
    (tmp_path / "photos" / "notes.csv").write_text("k\n1\n")
    with pytest.raises(PoolError, match=r"photos holds no Parquet file but 2 images and 1 CSV file; expected Parquet: docs/columns\.md"):
        list_files([f"{tmp_path}/photos"])
    shown: dict[str, Any] = {}
    exec(next(code for code in snippets(ROOT / "docs" / "columns.md", "python") if "images_to_parquet" in code), shown)
    shown["images_to_parquet"](tmp_path / "photos", tmp_path / "images.parquet")
    shown["csv_to_parquet"](tmp_path / "photos" / "notes.csv", tmp_path / "rows.parquet")
    images = pq.read_table(tmp_path / "images.parquet").to_pylist()
    assert [row["file"] for row in images] == ["a.png", "cats/b.JPG"]
    assert images[0]["image"] == (tmp_path / "photos" / "a.png").read_bytes()
    assert pq.read_table(tmp_path / "rows.parquet").to_pylist() == [{"k": 1}]


def test_commands_are_those_that_there_are() -> None:
    """docs/cli.md lists every command, and no page shows one that isn't there."""
    known = set(get_command(cli.app).commands)  # type: ignore[attr-defined]
    listed = set(re.findall(r"`(?:raystream )?([a-z]+)[^`]*`", (ROOT / "docs" / "cli.md").read_text().partition("## ")[0]))
    assert known - {"version"} <= listed
    for page in PAGES:
        code = " ".join(re.findall(r"```\n.*?```|`[^`\n]+`", page.read_text(), re.DOTALL))
        shown = set(re.findall(r"(?:`|\n|-- )raystream ([a-z]+)", code))
        assert shown <= known, page.name


def test_help_fits_and_names_what_is_given() -> None:
    """On 80 columns no command's line is cut short, and what an option takes is called by what it is, not by a type of Python's."""
    for name, command in get_command(cli.app).commands.items():  # type: ignore[attr-defined]
        assert not command.get_short_help_str(62).endswith("..."), name
        for option in command.params:
            takes = option.param_type_name == "option" and not option.is_flag
            assert option.metavar or not takes, (name, option.name)


def test_the_readme_is_short() -> None:
    """A newcomer reads it to its end."""
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


@every_page
def test_named_files_are_there(page: Path) -> None:
    """Files and folders of the repository that a page names exist."""
    named = re.findall(r"`((?:raystream|tests|benchmarks|docs|jobs)/[\w./]*)`", page.read_text())
    assert [name for name in named if not (ROOT / name).exists()] == []
