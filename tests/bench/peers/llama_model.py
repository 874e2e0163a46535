"""A random DeepSeek-V4 model for llama.cpp with the sizes of `belay-bench make-model --preset 7b`: routed experts in MXFP4,
dense weights in Q8_0 (ggml has no FP8).

The small model that llama.cpp's `test-llama-archs` writes says which tensors and keys there are; their sizes are replaced.
Usage: llama_model.py SMALL.gguf OUT.gguf
"""
import sys

import gguf
import numpy
from gguf import GGMLQuantizationType as Type

HIDDEN, INNER, EXPERTS, ACTIVE = 4096, 2048, 64, 6
HEADS, HEAD, ROTARY, WINDOW = 64, 512, 64, 128
Q_RANK, O_RANK, O_GROUPS = 1024, 1024, 8
INDEX_WIDTH, CHOSEN, STREAMS, VOCABULARY, CONTEXT = 64 * 128, 512, 4, 2048, 65536

KEYS = {
    "vocab_size": VOCABULARY, "context_length": CONTEXT, "embedding_length": HIDDEN, "embedding_length_out": None,
    "feed_forward_length": INNER, "expert_feed_forward_length": INNER, "expert_count": EXPERTS,
    "expert_used_count": ACTIVE, "expert_weights_scale": 1.5, "attention.head_count": HEADS,
    "attention.key_length": HEAD, "attention.value_length": HEAD, "attention.key_length_swa": HEAD,
    "attention.value_length_swa": HEAD, "attention.q_lora_rank": Q_RANK, "attention.sliding_window": WINDOW,
    "attention.indexer.top_k": CHOSEN, "attention.output_lora_rank": O_RANK,
    "hyper_connection.sinkhorn_iterations": 20, "rope.dimension_count": ROTARY, "rope.dimension_count_swa": ROTARY,
    "rope.scaling.original_context_length": CONTEXT,
}
KEYS = {f"deepseek4.{key}": value for key, value in KEYS.items()} | {
    "tokenizer.ggml.tokens": [f"tok_{i}" for i in range(VOCABULARY)],
    "tokenizer.ggml.scores": [0.0] * VOCABULARY,
    "tokenizer.ggml.token_type": [1] * VOCABULARY,
}


def shape(name, small):
    """Sizes of a tensor, the innermost first, from its name and its sizes in the small model."""
    of_block = name.split(".", 2)[2] if name.startswith("blk.") else name
    overlap = small[-1] == 4
    # a compressor's projections tell by their width whether entries overlap
    pooled = 2 * HEAD if small[-1] == 128 else HEAD
    return {
        "token_embd": [HIDDEN, VOCABULARY], "output": [HIDDEN, VOCABULARY], "output_norm": [HIDDEN],
        "output_hc_fn": [STREAMS * HIDDEN, STREAMS], "attn_norm": [HIDDEN], "ffn_norm": [HIDDEN],
        "attn_q_a_norm": [Q_RANK], "attn_q_a": [HIDDEN, Q_RANK], "attn_q_b": [Q_RANK, HEADS * HEAD],
        "attn_kv": [HIDDEN, HEAD], "attn_output_a": [HEADS * HEAD // O_GROUPS, O_RANK, O_GROUPS],
        "attn_output_b": [O_GROUPS * O_RANK, HIDDEN], "ffn_gate_inp": [HIDDEN, EXPERTS],
        "ffn_gate_exps": [HIDDEN, INNER, EXPERTS], "ffn_up_exps": [HIDDEN, INNER, EXPERTS],
        "ffn_down_exps": [INNER, HIDDEN, EXPERTS], "ffn_gate_shexp": [HIDDEN, INNER],
        "ffn_up_shexp": [HIDDEN, INNER], "ffn_down_shexp": [INNER, HIDDEN], "exp_probs_b": [EXPERTS],
        "attn_sinks": [HEADS], "attn_kv_a_norm": [HEAD], "hc_attn_fn": [STREAMS * HIDDEN, 24],
        "hc_ffn_fn": [STREAMS * HIDDEN, 24], "attn_compressor_kv": [HIDDEN, pooled],
        "attn_compressor_gate": [HIDDEN, pooled],
        "attn_compressor_ape": [2 * HEAD, 4] if overlap else [HEAD, 128], "attn_compressor_norm": [HEAD],
        "indexer_compressor_kv": [HIDDEN, 256], "indexer_compressor_gate": [HIDDEN, 256],
        "indexer.proj": [HIDDEN, 64], "indexer.attn_q_b": [Q_RANK, INDEX_WIDTH],
    }.get(of_block.rsplit(".", 1)[0], small)


def values(name, sizes, draw):
    """Data of a tensor, and its type."""
    rows = sizes[::-1]
    if "_exps.weight" in name:
        # blocks of a scale, 2^-9, and 16 bytes of codes; all experts have the same values, each in a place of its own
        blocks = draw.integers(0, 256, (sizes[1], sizes[0] // 32, 17), dtype=numpy.uint8)
        blocks[:, :, 0] = 118
        row = sizes[0] // 32 * 17
        return numpy.broadcast_to(blocks.reshape(1, sizes[1], row), (sizes[2], sizes[1], row)), Type.MXFP4
    plain = ("norm", "hc_", "ffn_gate_inp", "ape", "bias")
    if len(sizes) >= 2 and sizes[0] % 32 == 0 and not any(word in name for word in plain):
        blocks = draw.integers(0, 256, (*rows[:-1], sizes[0] // 32, 34), dtype=numpy.uint8)
        blocks[..., 0:2] = numpy.array([0.0004], dtype=numpy.float16).view(numpy.uint8)
        return blocks.reshape(*rows[:-1], sizes[0] // 32 * 34), Type.Q8_0
    if "norm" in name:
        return numpy.ones(rows, numpy.float32), Type.F32
    return (draw.standard_normal(rows) * 0.02).astype(numpy.float32), Type.F32


def main():
    small, out = gguf.GGUFReader(sys.argv[1]), gguf.GGUFWriter(sys.argv[2], "deepseek4")
    for key, field in small.fields.items():
        if key.startswith("GGUF.") or key == "general.architecture":
            continue
        value = KEYS[key] if key in KEYS else field.contents()
        if value is None or (isinstance(value, list) and not value):
            continue
        is_list = field.types[0] == gguf.GGUFValueType.ARRAY
        out.add_key_value(key, value, field.types[0], sub_type=field.types[-1] if is_list else None)
    draw = numpy.random.default_rng(0)
    for tensor in small.tensors:
        if (tensor.name.endswith("scale") and "hc_" not in tensor.name) or "_vl" in tensor.name:
            continue
        data, kind = values(tensor.name, shape(tensor.name, [int(size) for size in tensor.shape]), draw)
        out.add_tensor(tensor.name, data, raw_dtype=kind)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()


main()
