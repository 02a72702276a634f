"""Models and tokenizers by the id of a hub, from a hub on loopback."""

import os
import subprocess
import sys

import pytest
import torch
from hub_server import served_hub
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

ID = "owner/tiny"
# What both commands that take an id read of it.
READ = """
import hashlib, sys
from ray_snake.data.text import load_tokenizer
from ray_snake.errors import SnakeError
from ray_snake.models.registry import build_model

try:
    print(load_tokenizer(sys.argv[1]).plain("one two"))
    model = build_model("huggingface", {"model": sys.argv[1]})
    seen = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        seen.update(name.encode() + tensor.numpy().tobytes())
    print(seen.hexdigest())
except SnakeError as error:
    print(error)
"""


@pytest.fixture
def hub(tmp_path):
    """A folder with one model, as a hub has it."""
    folder = tmp_path / "hub" / ID
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "vocab_size": 8}
    heads = {"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2}
    LlamaForCausalLM(LlamaConfig(**sizes, **heads)).save_pretrained(folder)
    words = {"[END]": 0, "[UNK]": 1, "one": 2, "two": 3}
    inner = Tokenizer(WordLevel(words, unk_token="[UNK]"))
    inner.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="[END]").save_pretrained(folder)
    return tmp_path / "hub"


def read(tmp_path, name, address):
    """Return what a process of its own says; a hub's address counts when it is imported."""
    environment = {**os.environ, "HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "cache")}
    done = subprocess.run(
        [sys.executable, "-c", READ, str(name)],
        env={**environment, "HF_HUB_DISABLE_XET": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_an_id_is_the_folder_that_the_hub_has_and_stays_in_its_cache(tmp_path, hub):
    with served_hub(hub) as (address, asked):
        fetched = read(tmp_path, ID, address)
        assert [one for one in asked if one.endswith("model.safetensors")]
    assert fetched == read(tmp_path, hub / ID, address)
    # The hub is gone.
    assert fetched == read(tmp_path, ID, address)


def test_what_the_hub_has_not_is_said_in_a_line(tmp_path, hub):
    with served_hub(hub) as (address, asked):
        (said,) = read(tmp_path, "owner/huge", address)
        assert "tokenizer owner/huge: can't be loaded" in said
        assert asked.count("api/models/owner/huge/revision/main") == 1
    (said,) = read(tmp_path, ID, address)
    assert "tokenizer owner/tiny: can't be loaded" in said
