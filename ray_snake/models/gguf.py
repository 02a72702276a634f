"""GGUF files of Llama models, converted to folders that transformers loads.

Needs the extra `hf`. The weights are unpacked here: transformers' own way needs a package more, and
what it loads so it refuses to save.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ray_snake.errors import ModelError
from ray_snake.models.pretrained import write_folder

_WHOLE = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_IN_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}

SCALING = "llama.rope.scaling.type"
_SCALINGS: Mapping[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "none": lambda facts: {"rope_type": "default"},
    "linear": lambda facts: {
        "rope_type": "linear",
        "factor": float(facts["llama.rope.scaling.factor"]),
    },
}


def refuse_without_packages() -> None:
    """Refuse to go on where a package is missing, before anything is downloaded.

    Raises:
        ModelError: If transformers or gguf is not there.
    """
    try:
        import gguf  # noqa: F401 - whether it is there
        import transformers  # noqa: F401 - whether it is there
    except ImportError as error:
        raise ModelError(
            "GGUF files", f"need transformers and gguf ({error})", "pip install 'ray-snake[hf]'"
        ) from None


def convert(source: Path, folder: Path) -> None:
    """Write a model's configuration, weights (float32) and tokenizer to a folder.

    Args:
        source: A GGUF file of a Llama model, quantised or not, with its tokenizer.
        folder: To be made, or empty.

    Raises:
        ModelError: If transformers or gguf is not there, or the file is no whole one of a Llama
            model.
    """
    refuse_without_packages()
    import gguf
    from transformers import AutoTokenizer, LlamaConfig

    try:
        reader: Any = gguf.GGUFReader(source)
        facts = {name: field.contents() for name, field in _scalars(reader)}
        kind = facts.get("general.architecture")
        if kind != "llama":
            raise ModelError(
                str(source), f"holds a model of the kind {kind!r}", "give the file of a Llama model"
            )
        _refuse_other_attention(source, facts)
        config = LlamaConfig(**_settings(facts, {one.name for one in reader.tensors}))
        write_folder(folder, config, _blocks(reader, facts), None)
        tokenizer = AutoTokenizer.from_pretrained(str(source.parent), gguf_file=source.name)
    except (OSError, ValueError, KeyError, IndexError) as error:
        raise ModelError(
            str(source),
            f"can't be read as a model ({' '.join(str(error).split())[:200]})",
            "fetch or copy it again",
        ) from None
    tokenizer.model_max_length = config.max_position_embeddings
    tokenizer.save_pretrained(folder)


def turned_back(weight: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """Return the weight of queries or keys in the order of rows that transformers has.

    The rotary embedding pairs the rows of a head. GGUF has those of a pair beside each other,
    transformers half a head apart.

    Args:
        weight: Shape (heads * head width, width).
        heads: Of queries, or of keys.
    """
    rows, width = weight.shape
    pairs = weight.reshape(heads, rows // heads // 2, 2, width)
    turned: NDArray[np.float32] = pairs.swapaxes(1, 2).reshape(rows, width)
    return turned


def _scalars(reader: Any) -> Iterator[tuple[str, Any]]:  # noqa: ANN401 - of gguf, without types
    for name, field in reader.fields.items():
        # Tokens and merges take seconds to unpack, and the tokenizer reads them by itself.
        if not name.startswith("tokenizer.ggml.") or name.endswith("_token_id"):
            yield name, field


def _refuse_other_attention(source: Path, facts: dict[str, Any]) -> None:
    """Refuse a model whose queries turn in another way, or are of another width, than converted.

    Raises:
        ModelError: If it is one.
    """
    if facts.get(SCALING, "none") not in _SCALINGS:
        raise ModelError(
            str(source),
            f"has positions scaled by {facts[SCALING]!r}, and {', '.join(_SCALINGS)} are converted",
            "give the model's folder as transformers has it",
        )
    width = facts["llama.embedding_length"] // facts["llama.attention.head_count"]
    for name in ("llama.rope.dimension_count", "llama.attention.key_length"):
        if facts.get(name, width) != width:
            raise ModelError(
                str(source),
                f"says {name} {facts[name]}, where its heads are {width} wide",
                "give the model's folder as transformers has it",
            )


def _settings(facts: dict[str, Any], names: set[str]) -> dict[str, Any]:
    heads = facts["llama.attention.head_count"]
    return {
        "architectures": ["LlamaForCausalLM"],
        "dtype": "float32",
        "vocab_size": facts["llama.vocab_size"],
        "hidden_size": facts["llama.embedding_length"],
        "intermediate_size": facts["llama.feed_forward_length"],
        "num_hidden_layers": facts["llama.block_count"],
        "num_attention_heads": heads,
        "num_key_value_heads": facts.get("llama.attention.head_count_kv", heads),
        "max_position_embeddings": facts["llama.context_length"],
        # Stored as float32: the shortest number that reads as the same one is what was meant.
        "rms_norm_eps": float(str(np.float32(facts["llama.attention.layer_norm_rms_epsilon"]))),
        "rope_parameters": {
            "rope_theta": float(facts.get("llama.rope.freq_base", 10_000.0)),
            **_SCALINGS[facts.get(SCALING, "none")](facts),
        },
        "tie_word_embeddings": "output.weight" not in names,
        "bos_token_id": facts.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": facts.get("tokenizer.ggml.eos_token_id"),
        "pad_token_id": facts.get("tokenizer.ggml.padding_token_id"),
    }


def _blocks(reader: Any, facts: dict[str, Any]) -> Iterator[dict[str, Tensor]]:  # noqa: ANN401 - of the optional gguf
    """Yield one weight after another, unpacked, under its name in transformers."""
    from gguf.quants import dequantize

    heads = facts["llama.attention.head_count"]
    turned = {
        "self_attn.q_proj": heads,
        "self_attn.k_proj": facts.get("llama.attention.head_count_kv", heads),
    }
    for one in reader.tensors:
        name = _WHOLE.get(one.name)
        weight = dequantize(one.data, one.tensor_type)
        if name is None:
            found = re.fullmatch(r"blk\.(\d+)\.(\w+)\.weight", one.name)
            part = _IN_LAYER.get(found[2]) if found else None
            if found is None or part is None:
                raise ValueError(f"weight {one.name!r} is unknown")
            if part in turned:
                weight = turned_back(weight, turned[part])
            name = f"model.layers.{found[1]}.{part}.weight"
        # A copy: what is not quantised is a view of the file, which may not be written to.
        yield {name: torch.from_numpy(np.array(weight, dtype=np.float32))}
