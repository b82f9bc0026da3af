import re
from pathlib import Path

import numpy as np
import pyarrow as pa

from raystream.report.page import write_report

COLUMNS = {"kind": "columns", "logits": "logits", "embedding": "embedding"}
NET = {"source": "raystream.loop.mnist:network"}


def text_of(result):
    path = Path(write_report(result))
    assert path == result.folder / "report.html"
    return path.read_text(encoding="utf-8")


def test_it_needs_nothing_but_itself(ask, digits):
    """The page loads nothing from elsewhere, runs no scripts, and leaves no temporary file."""
    result = ask(digits[0], pool={"id": "name", "inputs": ["pixels"]}, model=NET, select={"budget": 4})
    text = text_of(result)
    assert "<script" not in text
    assert "http" not in re.sub(r'"data:[^"]*"', "", text)
    assert all(uri.startswith("data:image/") for uri in re.findall(r'(?:src|href)="([^"]*)"', text))
    assert not [path for path in result.folder.iterdir() if path.name.startswith(".")]


def test_images_are_shown_with_rank_score_and_prediction(ask, digits):
    """Each chosen row is a picture; both plots and the ids are there too."""
    result = ask(digits[0], pool={"id": "name", "inputs": ["pixels"]}, model=NET, select={"budget": 4})
    text = text_of(result)
    assert text.count("data:image/webp") == 4
    assert text.count("data:image/svg+xml") == 2
    for row in result.selection.to_pylist():
        assert f'alt="{row["name"]}"' in text
        assert f"{row['score']:.3f}</span>" in text


def test_columns_of_a_pool_are_untrusted(ask, columns_pool):
    """Ids, kept columns and names of classes can't become markup."""
    evil = '<script>alert("1")</script>'
    table = columns_pool.set_column(0, "name", pa.array([f"{evil}{i}" for i in range(120)])).set_column(3, "url", pa.array([evil] * 120))
    result = ask(table, pool={"id": "name", "keep": ["url"]}, model=COLUMNS | {"classes": [evil, "$b$", "c"]}, select={"budget": 5})
    text = text_of(result)
    assert "<script" not in text
    assert text.count("&lt;script&gt;") >= 10


def test_rows_that_are_no_images_are_a_table(ask, columns_pool):
    """The first rows with their kept columns; columns that hold nothing are left out."""
    result = ask(columns_pool, pool={"id": "name", "keep": ["url"]}, model=COLUMNS, select={"budget": 5})
    text = text_of(result)
    assert "data:image/webp" not in text
    for row in result.selection.to_pylist():
        assert f"<td>{row['name']}</td>" in text
        assert f"<td>{row['url']}</td>" in text
    assert ">why<" not in text


def test_at_most_200_rows_are_shown(ask, columns_pool):
    """A page of a large batch stays small and says where the rest is."""
    table = pa.concat_tables([columns_pool] * 3).set_column(0, "name", pa.array([f"row-{i}" for i in range(360)]))
    text = text_of(ask(table, pool={"id": "name"}, model=COLUMNS, select={"budget": 250}))
    assert text.count("<td>row-") == 200
    assert "The first 200 of 250 rows" in text


def test_without_embeddings_there_is_no_map(ask, columns_pool):
    """A strategy that needs no embedding leaves none in the store, and the page says so."""
    model = {"kind": "columns", "logits": "logits"}
    text = text_of(ask(columns_pool, pool={"id": "name"}, model=model, select={"budget": 5, "strategy": "top_k"}))
    assert text.count("data:image/svg+xml") == 1
    assert "There is no map of the pool" in text


def test_without_scores_there_is_no_histogram(ask, columns_pool):
    """A model that gives an embedding alone has a map, no histogram, and no score named."""
    select = {"budget": 5, "strategy": "core_set", "candidates": "all"}
    text = text_of(ask(columns_pool, pool={"id": "name"}, model={"kind": "columns", "embedding": "embedding"}, select=select))
    assert text.count("data:image/svg+xml") == 1
    assert "There is no histogram" in text
    assert "margin" not in re.sub(r"<pre>.*</pre>|<style>.*?</style>", "", text, flags=re.DOTALL)


def test_warnings_stand_out(ask, columns_pool):
    """What the run had to say is said on the page."""
    result = ask(columns_pool, pool={"id": "name"}, model=COLUMNS, select={"budget": 500})
    text = text_of(result)
    assert result.manifest.warnings
    assert 'class="warnings"' in text


def test_embeddings_that_coincide_have_no_map(ask, columns_pool):
    """A pool of one and the same point can't be laid out; the page is written all the same."""
    same = pa.FixedSizeListArray.from_arrays(pa.array(np.ones(120 * 6, np.float32)), 6)
    text = text_of(ask(columns_pool.set_column(2, "embedding", same), pool={"id": "name"}, model=COLUMNS, select={"budget": 5}))
    assert "There is no map of the pool" in text


def test_a_pool_that_changed_costs_only_the_pictures(ask, digits, tmp_path):
    """A report written later shows what the store holds and says why pictures are missing."""
    result = ask(digits[0], pool={"id": "name", "inputs": ["pixels"]}, model=NET, select={"budget": 4})
    for path in (tmp_path / "pool").iterdir():
        path.unlink()
    text = text_of(result)
    assert "data:image/webp" not in text
    assert "can&#39;t be shown" in text
    assert text.count("data:image/svg+xml") == 2


def test_the_same_result_gives_the_same_page(ask, columns_pool):
    """Nothing on the page is drawn at random or depends on the clock."""
    result = ask(columns_pool, pool={"id": "name"}, model=COLUMNS, select={"budget": 5})
    assert text_of(result) == text_of(result)
