import base64
import csv
import io
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raystream.report.page import write_report
from raystream.report.svg import breakable

COLUMNS = {"kind": "columns", "logits": "logits", "embedding": "embedding"}
NET = {"source": "raystream.loop.demos.mnist:network"}


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
    assert all(uri.startswith(("data:image/", "data:text/")) for uri in re.findall(r'(?:src|href)="([^"]*)"', text))
    assert not [path for path in result.folder.iterdir() if path.name.startswith(".")]


def test_images_are_shown_with_rank_score_and_prediction(ask, digits):
    """Each chosen row is a picture; both plots and the ids are there too."""
    result = ask(digits[0], pool={"id": "name", "inputs": ["pixels"]}, model=NET, select={"budget": 4})
    text = text_of(result)
    assert text.count("data:image/webp") == 4
    assert text.count("<svg") == 4
    for row in result.selection.to_pylist():
        assert f'alt="{row["name"]}"' in text
        assert f"{row['score']:.3f}</span>" in text
        assert f'class="prediction">{row["prediction"]}</div>' in text


def test_columns_of_a_pool_are_untrusted(ask, columns_pool):
    """Ids, kept columns and names of classes can't become markup."""
    evil = '<script>alert("1")</script>'
    table = columns_pool.set_column(0, "name", pa.array([f"{evil}{i}" for i in range(120)])).set_column(3, "url", pa.array([evil] * 120))
    result = ask(table, pool={"id": "name", "keep": ["url"]}, model=COLUMNS | {"classes": [evil, "$b$", "c"]}, select={"budget": 5})
    text = text_of(result)
    assert "<script" not in text
    assert text.count("&lt;script&gt;") >= 10
    assert "<script" not in result._repr_html_()


def test_rows_that_are_no_images_are_a_table(ask, columns_pool):
    """The first rows with their kept columns; columns that hold nothing are left out."""
    result = ask(columns_pool, pool={"id": "name", "keep": ["url"]}, model=COLUMNS, select={"budget": 5})
    text = text_of(result)
    assert "data:image/webp" not in text
    for row in result.selection.to_pylist():
        assert f'data-name="name">{row["name"]}</td>' in text
        assert f'data-name="url">{row["url"].replace("/", "/<wbr>")}</td>' in text or f'data-name="url">{row["url"]}</td>' in text
    assert ">why<" not in text


def test_at_most_200_rows_are_shown(ask, columns_pool):
    """A page of a large batch stays small and says where the rest is."""
    table = pa.concat_tables([columns_pool] * 3).set_column(0, "name", pa.array([f"row-{i}" for i in range(360)]))
    text = text_of(ask(table, pool={"id": "name"}, model=COLUMNS, select={"budget": 250}))
    assert text.count('data-name="name">row-') == 200
    assert "The first 200 of 250 rows" in text


def test_without_embeddings_there_is_no_map(ask, columns_pool):
    """A strategy that needs no embedding leaves none in the store, and the page says so."""
    model = {"kind": "columns", "logits": "logits"}
    text = text_of(ask(columns_pool, pool={"id": "name"}, model=model, select={"budget": 5, "strategy": "top_k"}))
    assert text.count("<svg") == 2
    assert "There is no map of the pool" in text


def test_without_scores_there_is_no_histogram(ask, columns_pool):
    """A model that gives an embedding alone has a map, no histogram, and no score named."""
    select = {"budget": 5, "strategy": "core_set", "candidates": "all"}
    text = text_of(ask(columns_pool, pool={"id": "name"}, model={"kind": "columns", "embedding": "embedding"}, select=select))
    assert text.count("<svg") == 2
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
    assert text.count("<svg") == 4


def test_the_same_result_gives_the_same_page(ask, columns_pool):
    """Nothing on the page is drawn at random or depends on the clock."""
    result = ask(columns_pool, pool={"id": "name"}, model=COLUMNS, select={"budget": 5})
    assert text_of(result) == text_of(result)


def test_texts_are_cards(ask, tmp_path, monkeypatch):
    """A pool of texts is shown by them, as text, cut only where there is no end, and not again where their column is kept."""
    (tmp_path / "text_nets.py").write_text(TEXT_NET)
    monkeypatch.syspath_prepend(str(tmp_path))
    texts = [f"message {i} <b>of</b> words " + "again " * (i * 10) for i in range(60)]
    model = {"source": "text_nets:net", "preprocess": "text_nets:lengths"}
    table = pa.table({"name": [f"t{i}" for i in range(60)], "said": texts, "sent": list(range(60))})
    result = ask(table, pool={"id": "name", "inputs": ["said"], "keep": ["said", "sent"]}, model=model,
                 select={"budget": 6, "strategy": "top_k"})  # fmt: skip
    text = text_of(result)
    assert (text.count('<div class="kept">sent'), text.count('<div class="kept">said')) == (6, 0)
    assert text.count('<p class="text">message') == 6
    assert "&lt;b&gt;of&lt;/b&gt;" in text
    longest = max(re.findall(r'<p class="text">(.*?)</p>', text, flags=re.DOTALL), key=len)
    assert len(longest) < 1600


TEXT_NET = """
import numpy as np
from torch import nn

def net():
    return nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 3))

def lengths(batch):
    texts = batch.column("said").to_pylist()
    return np.array([[len(text) % 7, len(text) / 100] for text in texts], np.float32)
"""


def test_conditions_are_a_table(ask, columns_pool):
    """Quotas and costs with what came out and what was asked for, not among the figures; why is told in full."""
    table = columns_pool.append_column("minutes", pa.array(np.ones(120)))
    select = {"budget": 6, "quotas": [{"by": "prediction", "max": 2}], "cost": {"column": "minutes", "budget": 5}}
    result = ask(table, pool={"id": "name"}, model=COLUMNS, select=select)
    text = text_of(result)
    assert "<h2>Quotas, costs and other conditions</h2>" in text
    assert "<td>cost</td><td>5</td><td>of 5 minutes</td>" in text
    assert "in the fullest group</td><td>at most 2</td>" in text
    for group, count in Counter(result.selection.column("prediction").to_pylist()).items():
        assert f"<td>of which</td><td>prediction {group}: {count} row{'s' * (count > 1)}</td>" in text


def test_the_model_is_named(ask, columns_pool, digits):
    """By its source and weights; a second column is no file of weights."""
    text = text_of(ask(columns_pool, pool={"id": "name"}, model=COLUMNS, select={"budget": 5}))
    assert '>columns logits, embedding</dd><dd class="meaning">kind columns<' in text
    text = text_of(ask(digits[0], pool={"id": "name", "inputs": ["pixels"]}, model=NET, select={"budget": 4})).replace("<wbr>", "")
    assert '>network</dd><dd class="meaning">raystream.loop.demos.mnist:network; kind torch, no weights named<' in text


def test_what_can_be_taken_along(ask, columns_pool):
    """Ids a line each, to copy and as a file; all rows as CSV, in which no value of the pool's is a formula."""
    table = columns_pool.set_column(3, "url", pa.array(["=1+1", "plain"] * 60))
    result = ask(table, pool={"id": "name", "keep": ["url"]}, model=COLUMNS, select={"budget": 8})
    text = text_of(result)
    ids = result.selection.column("name").to_pylist()
    assert re.search(r'<pre class="ids">(.*?)</pre>', text, flags=re.DOTALL)[1].split() == ids
    files = {name: base64.b64decode(data).decode() for name, data in re.findall(r'download="([^"]*)" href="data:[^,]*,([^"]*)"', text)}
    assert files[f"{result.query}-ids.txt"].split() == ids
    rows = list(csv.DictReader(io.StringIO(files[f"{result.query}.csv"])))
    assert [row["name"] for row in rows] == ids
    assert {row["url"] for row in rows} <= {"'=1+1", "plain"}
    assert [float(row["score"]) for row in rows] == result.selection.column("score").to_pylist()


def test_labelled_rows_are_on_the_map(ask, columns_pool, tmp_path):
    """As diamonds, as long as the labels are those that the query saw."""
    pq.write_table(columns_pool.select(["name"]).slice(10, 9), tmp_path / "labelled.parquet")
    pool = {"id": "name", "labelled": [str(tmp_path / "labelled.parquet")]}
    result = ask(columns_pool, pool=pool, model=COLUMNS, select={"budget": 5})
    text = text_of(result)
    assert text.count("stroke: var(--labelled)") == 2 * 9
    assert "Diamonds are labelled rows (all 9)" in text
    pq.write_table(columns_pool.select(["name"]).slice(11, 9), tmp_path / "labelled.parquet")
    assert "Diamonds" not in text_of(result)
    (tmp_path / "labelled.parquet").unlink()
    assert "Diamonds" not in text_of(result)


def test_scores_that_are_all_alike_are_a_sentence(ask, columns_pool):
    """A histogram of one bar says nothing."""
    same = columns_pool.set_column(1, "logits", pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(360, np.float32)), 3))
    text = text_of(ask(same, pool={"id": "name"}, model=COLUMNS, select={"budget": 5}))
    assert "There is no histogram of scores: all 120 scored rows and the chosen have about the same margin, 1." in text


def test_ids_may_break_between_their_parts_only():
    """After what separates them; nothing is lost."""
    assert breakable("s3://lake/a_b.parquet#17") == ["s3://", "lake/", "a_", "b.", "parquet#", "17"]
    assert breakable("mnist-0936") == ["mnist-0936"]
    assert breakable("") == []
    assert breakable("nets:net; weights seed-0/w, 3,900 of 0.25 rows") == ["nets:", "net; weights seed-0/", "w, 3,900 of 0.25 rows"]
