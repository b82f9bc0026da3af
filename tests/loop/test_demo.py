import pytest

from raystream.loop.demos.query_demo import Comparison, demo_query, describe_comparisons, run_demo
from raystream.query import Cluster
from raystream.scoring.progress import Silent

COMPARISONS = [Comparison(0, 0.80, 0.90, 0.85), Comparison(1, 0.82, 0.88, 0.89), Comparison(2, 0.81, 0.91, 0.86)]


def test_the_query_is_the_default_one(tmp_path):
    """Nothing of how rows are scored and chosen is set but the budget."""
    query = demo_query(tmp_path, 0, Cluster(workers=2))
    assert query.select.model_fields_set == {"budget"}
    assert "acquire" not in query.model_fields_set
    assert (query.acquire.score, query.select.strategy, query.select.candidate_limit) == ("margin", "k_means", 500)


def test_comparisons_are_reported_as_they_came_out():
    """Each repetition, the means, the difference with its standard error, and how often it was positive."""
    lines = describe_comparisons(COMPARISONS)
    assert [line.split() for line in lines[2:6]] == [
        ["0", "80.0", "90.0", "85.0", "+5.0"],
        ["1", "82.0", "88.0", "89.0", "-1.0"],
        ["2", "81.0", "91.0", "86.0", "+5.0"],
        ["mean", "81.0", "89.7", "86.7", "+3.0"],
    ]
    assert "+3.0 points, standard error 2.0; better in 2 of 3" in lines[-1]
    assert len({len(line) for line in lines[1:6]}) == 1


def test_one_repetition_makes_no_claim():
    """A single difference has no standard error."""
    assert "says little" in describe_comparisons(COMPARISONS[:1])[-1]


@pytest.mark.slow
def test_the_demo_on_ray(tmp_path):
    """It chooses 50 rows, writes its report, fits 100 columns; a second call finds the query committed."""
    pytest.importorskip("mlxtend")
    first = run_demo(tmp_path, workers=2, seeds=2, reporter=Silent())
    assert "50 of 500 candidates" in first
    assert "committed before" not in first
    reports = list(tmp_path.glob("runs/queries/*/report.html"))
    assert len(reports) == 1
    assert reports[0].read_text(encoding="utf-8").count("data:image/webp") == 50
    again = run_demo(tmp_path, workers=2, seeds=2, reporter=Silent())
    assert "committed before" in again
    accuracies = [[line for line in text.splitlines() if line.lstrip().startswith(("0 ", "1 ", "mean"))] for text in (first, again)]
    assert accuracies[0] == accuracies[1]
