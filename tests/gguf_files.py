"""GGUF files of tiny Llama models with a tokenizer of bytes, as llama.cpp writes them."""

import gguf
import numpy as np
import torch
from tokenizers.pre_tokenizers import ByteLevel
from transformers import LlamaConfig, LlamaForCausalLM

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
# Merged tokens need a place behind the letters that they are made of.
TOKENS = [*SPECIAL, *sorted(ByteLevel.alphabet()), "th"]
PARTS = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
WHOLE = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}


def tiny_llama(*, layers=2, tied=True, scaled=1.0):
    """Return a model of transformers with random weights, its positions maybe scaled."""
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=len(TOKENS),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        rms_norm_eps=1e-5,
        rope_parameters={
            "rope_theta": 5000.0,
            **(
                {"rope_type": "default"}
                if scaled == 1
                else {"rope_type": "linear", "factor": scaled}
            ),
        },
        tie_word_embeddings=tied,
    )
    return LlamaForCausalLM(config).eval()


def write_gguf(path, model, *, kind="F32", architecture="llama", renamed=None, more=()):
    """Write a model to a file.

    Args:
        path: The file.
        model: The model.
        kind: How weights are quantised.
        architecture: What the file says that it is.
        renamed: Names of weights to change.
        more: Methods of the writer to call, each with its value.
    """
    config = model.config
    writer = gguf.GGUFWriter(path, architecture)
    if "factor" in config.rope_parameters:
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(config.rope_parameters["factor"])
    for method, value in more:
        getattr(writer, method)(value)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(TOKENS)
    writer.add_token_types([3] * len(SPECIAL) + [1] * (len(TOKENS) - len(SPECIAL)))
    writer.add_token_merges(["t h"])
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)
    heads = {
        "self_attn.q_proj": config.num_attention_heads,
        "self_attn.k_proj": config.num_key_value_heads,
    }
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        weight = tensor.numpy()
        target = WHOLE.get(name)
        if target is None:
            _, _, number, part = name.removesuffix(".weight").split(".", 3)
            if part in heads:
                weight = paired(weight, heads[part])
            target = f"blk.{number}.{PARTS[part]}.weight"
        # Norms are never quantised.
        stored = gguf.GGMLQuantizationType["F32" if weight.ndim == 1 else kind]
        packed = gguf.quants.quantize(np.ascontiguousarray(weight), stored)
        writer.add_tensor((renamed or {}).get(target, target), packed, raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def paired(weight, heads):
    """Return a weight whose rotary pairs, half a head apart, lie beside each other."""
    rows = []
    for head in np.split(weight, heads):
        first, second = np.split(head, 2)
        rows += [row for pair in zip(first, second, strict=True) for row in pair]
    return np.stack(rows)
