"""The shipped configurations of SmolLM2, on a model of its shape but tiny, by commands alone."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from gguf_files import tiny_llama, write_gguf
from workplaces import Workplace

CONFIGS = Path(__file__).parents[2] / "jobs" / "configs"
WORDS = {0: ["dull", "flat", "thin"], 1: ["warm", "bold", "rich"]}
LENGTH = ["--length", "16", "--tokenizer", "models/smollm2"]


def called(workplace, *arguments):
    done = workplace.call_forked(*arguments)
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A workplace with what the configurations' own comments say to make first."""
    workplace = Workplace(tmp_path_factory.mktemp("smollm2"))
    write_gguf(workplace.folder / "tiny.gguf", tiny_llama(layers=30))
    called(
        workplace, *(["data", "fetch", "smollm2", "--out", "models/smollm2", "--from", "tiny.gguf"])
    )

    generator = np.random.Generator(np.random.PCG64(5))
    labels = generator.integers(0, 2, 120)
    texts = [f"so {WORDS[label][row % 3]} it is" for row, label in enumerate(labels.tolist())]
    for name in ("reviews", "shakespeare"):
        (workplace.folder / "data" / name).mkdir(parents=True)
    reviews = pa.table({"text": texts, "label": labels})
    pq.write_table(reviews, workplace.folder / "data" / "reviews" / "train.arrow")
    works = pa.table({"text": [letter * 90 for letter in "abcdefghij"], "work": range(10)})
    pq.write_table(works, workplace.folder / "data" / "shakespeare" / "train.arrow")
    called(
        workplace,
        *("data", "tokenize", "data/reviews/train.arrow", "--layout", "padded", *LENGTH),
        *("--label", "label", "--out", "data/reviews-tokens/train.arrow"),
    )
    called(
        workplace,
        *("data", "tokenize", "data/shakespeare/train.arrow", "--keep", "work", *LENGTH),
        *("--out", "data/shakespeare-tokens/train.arrow"),
    )
    for name in ("reviews", "shakespeare"):
        folder = workplace.folder / "data" / f"{name}-tokens"
        shutil.copyfile(folder / "train.arrow", folder / "test.arrow")
    split = ["--nodes", "8", "--scheme", "dirichlet", "--seed", "1", "--alpha", "0.5"]
    called(
        workplace,
        *("data", "partition", "data/reviews-tokens", *split, "--out", "data/reviews-8"),
    )
    called(
        workplace,
        *("data", "partition", "data/shakespeare-tokens", *split, "--out", "data/shakespeare-8"),
        *("--label", "work"),
    )
    return workplace


@pytest.mark.parametrize("name", ["smollm2_reviews", "smollm2_shakespeare"])
def test_the_plan_says_time_memory_and_bytes(prepared, name):
    text = called(prepared, "plan", str(CONFIGS / f"{name}.toml"), "--trips", "1").stdout
    assert "8 nodes, 32 blocks, whole run about" in text
    assert "26-30" in text
    for words in ("time", "memory", "pulls", "node_007"):
        assert words in text


def test_a_plan_of_adapters_has_all_layers_in_each_visit_and_none_of_them_in_memory(prepared):
    text = called(prepared, "plan", str(CONFIGS / "smollm2_adapters.toml"), "--trips", "1").stdout
    assert "8 nodes, 30 blocks, whole run about" in text
    for words in ("0-29", "recompute", "stream"):
        assert words in text


def test_a_short_run_of_adapters_says_its_perplexity(prepared):
    finished = prepared.call(
        *("train", str(CONFIGS / "smollm2_adapters.toml"), "--json"),
        *("--set", "snake.trips=1", "--set", "training.steps=1"),
        *("--set", "nodes.nodes_per_actor=8"),
    )
    assert finished.returncode == 0, finished.stderr
    assert json.loads(finished.stdout)["metrics"]["perplexity"] > 1


def test_a_short_run_on_reviews_says_its_accuracy(prepared):
    finished = prepared.call(
        *("train", str(CONFIGS / "smollm2_reviews.toml"), "--json"),
        *("--set", "snake.trips=1", "--set", "training.steps=2"),
        *("--set", "nodes.nodes_per_actor=8"),
    )
    assert finished.returncode == 0, finished.stderr
    metrics = json.loads(finished.stdout)["metrics"]
    assert 0 <= metrics["accuracy"] <= 1
    assert np.isfinite(metrics["loss"])
    assert "perplexity" not in metrics


def test_a_model_that_can_not_be_fetched_is_one_line(prepared):
    refused = prepared.call_forked(
        "data", "fetch", "smollm2", "--out", "models/other", "--from", "nothing.gguf"
    )
    assert refused.returncode == 2
    assert "nothing.gguf: no such file or folder; check the path" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert not (prepared.folder / "models" / "other").exists()
