"""Llama models in GGUF files become folders that transformers loads, with their tokenizer."""

import sys

import pytest
import torch
from gguf import RopeScalingType
from gguf_files import TOKENS, tiny_llama, write_gguf
from transformers import AutoModelForCausalLM, AutoTokenizer

from ray_snake.errors import ModelError
from ray_snake.models.gguf import convert
from ray_snake.models.registry import build_model

ROWS = torch.tensor([[1, 70, 90, 71, 20, 99], [5, 5, 60, 80, 80, 2]])


@pytest.mark.parametrize(("tied", "scaled"), [(True, 1.0), (False, 1.0), (True, 4.0)])
def test_what_is_not_quantised_is_the_same_model(tmp_path, tied, scaled):
    model = tiny_llama(tied=tied, scaled=scaled)
    convert(write_gguf(tmp_path / "tiny.gguf", model), tmp_path / "made")

    made = AutoModelForCausalLM.from_pretrained(tmp_path / "made")
    found, expected = made.state_dict(), model.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    for name in ("rms_norm_eps", "rope_parameters", "tie_word_embeddings", "head_dim"):
        assert getattr(made.config, name) == getattr(model.config, name)
    with torch.no_grad():
        torch.testing.assert_close(made(ROWS).logits, model(ROWS).logits)
        stack = build_model("huggingface", {"model": str(tmp_path / "made")}).eval()
        torch.testing.assert_close(stack(ROWS), model(ROWS).logits)


@pytest.mark.parametrize(("kind", "error"), [("Q8_0", 0.001), ("Q4_1", 0.02)])
def test_quantised_weights_are_what_was_rounded(tmp_path, kind, error):
    model = tiny_llama()
    convert(write_gguf(tmp_path / "tiny.gguf", model, kind=kind), tmp_path / "made")

    made = AutoModelForCausalLM.from_pretrained(tmp_path / "made").state_dict()
    for name, weight in model.state_dict().items():
        assert made[name].dtype == torch.float32
        torch.testing.assert_close(made[name], weight, atol=error, rtol=0)
    assert not torch.equal(made["model.embed_tokens.weight"], model.get_input_embeddings().weight)


def test_the_tokenizer_comes_along(tmp_path):
    convert(write_gguf(tmp_path / "tiny.gguf", tiny_llama()), tmp_path / "made")

    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "made")
    found = tokenizer("the 12<|im_end|>").input_ids
    assert [TOKENS[one] for one in found] == ["th", "e", "Ġ", "1", "2", "<|im_end|>"]
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id) == (2, 2)
    assert tokenizer.model_max_length == 256


def test_another_architecture_is_refused(tmp_path):
    path = write_gguf(tmp_path / "tiny.gguf", tiny_llama(), architecture="mamba")
    with pytest.raises(ModelError, match=r"tiny\.gguf: holds a model of the kind 'mamba'; give"):
        convert(path, tmp_path / "made")


@pytest.mark.parametrize(
    ("more", "problem"),
    [
        (("add_rope_scaling_type", RopeScalingType.YARN), r"positions scaled by 'yarn', and none"),
        (("add_rope_dimension_count", 4), r"llama\.rope\.dimension_count 4, where .* 8 wide"),
        (("add_key_length", 16), r"llama\.attention\.key_length 16, where its heads are 8 wide"),
    ],
)
def test_queries_that_would_turn_in_another_way_are_refused(tmp_path, more, problem):
    path = write_gguf(tmp_path / "tiny.gguf", tiny_llama(), more=[more])
    with pytest.raises(ModelError, match=problem):
        convert(path, tmp_path / "made")
    assert not (tmp_path / "made").exists()


def test_a_weight_of_unknown_meaning_is_refused(tmp_path):
    renamed = {"blk.1.attn_v.weight": "blk.1.attn_w.weight"}
    path = write_gguf(tmp_path / "tiny.gguf", tiny_llama(), renamed=renamed)
    with pytest.raises(ModelError, match=r"weight 'blk\.1\.attn_w\.weight' is unknown"):
        convert(path, tmp_path / "made")


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_a_file_that_is_cut_is_refused(tmp_path, share):
    path = write_gguf(tmp_path / "tiny.gguf", tiny_llama())
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(ModelError, match=r"tiny\.gguf: can't be read as a model .*copy it again"):
        convert(path, tmp_path / "made")


def test_without_the_package_the_remedy_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ModelError, match=r"need transformers and gguf .*ray-snake\[hf\]"):
        convert(tmp_path / "tiny.gguf", tmp_path / "made")
