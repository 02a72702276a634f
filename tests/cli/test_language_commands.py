"""A language model from text to a folder for transformers, by commands alone."""

import json

import numpy as np
import pytest
import torch
from workplaces import Workplace

from ray_snake.data import NodeDataset, ShardSource
from ray_snake.models.registry import build_model

TINY = {
    "model_type": "llama",
    "vocab_size": 258,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "tie_word_embeddings": True,
}
CONFIG = """
[model]
name = "huggingface"
options = { model = "tiny" }
[data]
source = "tokens.arrow"
partition = { nodes = 2 }
[evaluation]
data = "tokens.arrow"
[nodes]
nodes_per_actor = 2
[snake]
trips = 2
span_width = 1
train_first = true
[training]
optimizer = "adamw"
learning_rate = 0.01
batch_size = 4
epochs = 3
[loss]
teacher = "top_k"
distillation = 0.1
"""
TEXT = "the snake crawls over the nodes, and over the nodes the snake crawls back. " * 40


@pytest.fixture(scope="module")
def language(tmp_path_factory):
    """A workplace with a finished run of a tiny tied Llama on text, and what was said."""
    workplace = Workplace(tmp_path_factory.mktemp("language"))
    (workplace.folder / "text.txt").write_text(TEXT)
    torch.manual_seed(0)
    build_model("huggingface", {"config": TINY}).save_pretrained(workplace.folder / "tiny")
    tokenized = workplace.call_forked(
        *("data", "tokenize", "text.txt", "--tokenizer", "bytes", "--length", "16"),
        *("--out", "tokens.arrow"),
    )
    assert tokenized.returncode == 0, tokenized.stderr
    finished = workplace.call("train", workplace.write(CONFIG, "language.toml"), "--json")
    assert finished.returncode == 0, finished.stderr
    return workplace, tokenized, finished


def test_text_becomes_rows_of_tokens(language):
    workplace, tokenized, _ = language
    assert f"wrote {len(TEXT) // 16 + (len(TEXT) % 16 > 0):,} rows of 16 tokens" in tokenized.stderr
    assert "vocabulary 258, padding 257" in " ".join(tokenized.stderr.split())
    shard = NodeDataset.open(ShardSource(uri=str(workplace.folder / "tokens.arrow")))
    assert bytes(shard.batch(np.array([0]))[0][0].astype(np.uint8)).decode() == TEXT[:16]


def test_a_run_reports_the_perplexity_of_what_it_learned(language):
    _, _, finished = language
    metrics = json.loads(finished.stdout)["metrics"]
    assert metrics["perplexity"] == pytest.approx(np.exp(metrics["loss"]))
    assert metrics["perplexity"] < 30
    assert 0.1 < metrics["accuracy"] <= 1


def test_the_exported_folder_is_the_runs_model_to_transformers(language):
    from transformers import AutoModelForCausalLM

    workplace, _, finished = language
    exported = workplace.call_forked(
        "export", "runs/language", "--format", "hf", "--out", "exported"
    )
    assert exported.returncode == 0, exported.stderr
    model, report = AutoModelForCausalLM.from_pretrained(
        workplace.folder / "exported", output_loading_info=True
    )
    assert not any(report.values())
    assert type(model).__name__ == "LlamaForCausalLM"
    shard = NodeDataset.open(ShardSource(uri=str(workplace.folder / "tokens.arrow")))
    inputs, labels = (torch.from_numpy(one) for one in shard.batch(np.arange(len(shard))))
    with torch.no_grad():
        scores = model(inputs).logits
    loss = torch.nn.functional.cross_entropy(scores.flatten(0, 1), labels.flatten())
    assert float(loss) == pytest.approx(json.loads(finished.stdout)["metrics"]["loss"], abs=1e-5)
    assert not [path for path in workplace.folder.iterdir() if path.name.startswith(".exported")]


def test_evaluation_says_the_perplexity_too(language):
    workplace, _, finished = language
    judged = workplace.call_forked("evaluate", "runs/language", "--json")
    assert judged.returncode == 0, judged.stderr
    metrics = json.loads(judged.stdout)["metrics"]
    assert metrics == pytest.approx(json.loads(finished.stdout)["metrics"], abs=1e-5)


def test_what_is_no_model_of_transformers_is_not_exported_as_one(trained):
    workplace, _ = trained
    refused = workplace.call_forked("export", "runs/digits", "--format", "hf", "--out", "hf")
    assert refused.returncode == 2
    assert "--format hf: the run's model is 'cnn', none of transformers" in refused.stderr
    assert not (workplace.folder / "hf").exists()


def test_a_folder_that_is_there_is_not_written_to(language):
    workplace, _, _ = language
    refused = workplace.call_forked("export", "runs/language", "--format", "hf", "--out", "tiny")
    assert refused.returncode == 2
    assert "--out tiny: is there already; name a new folder" in refused.stderr
