"""GGUF files of the golden models, and one of every kind of block: tests/fixtures/gguf.

The golden models keep their numbers, so that both forms of a model must give the same logits to the bit. How tensors are
named, turned and typed is llama.cpp's (convert_hf_to_gguf.py); the file is written by its own package."""

import hashlib
import json
from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type
from safetensors import safe_open

ROOT = Path(__file__).resolve().parents[2] / "tests/fixtures"
OUT = ROOT / "gguf"
OUTSIDE = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
MODULES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
# A vocabulary of sentencepiece's kind for models of 100 rows: enough for a word or two.
PIECES = ["<unk>", "<s>", "</s>", "<|user|>", "▁", *"abcdefghijklmnopqrstuvwxyz", *".,!?'-:0123456789\n"]
PIECES += ["▁t", "he", "▁the", "▁a", "in", "an", "▁s", "er", "▁w", "or", "▁wor", "ld", "▁world", "ll", "▁he", "▁hell", "▁hello"]
TEMPLATE = "{{ bos_token }}{% for m in messages %}<|user|>{{ m['content'] }}{{ eos_token }}{% endfor %}"


def head_dim(config):
    return config.get("head_dim", config["hidden_size"] // config["num_attention_heads"])


def ggml_name(name):
    module, part = name.rsplit(".", 1)
    if module in OUTSIDE:
        return f"{OUTSIDE[module]}.{part}"
    _, _, layer, module = module.split(".", 3)
    return f"blk.{layer}.{MODULES[module]}.{part}"


def pairs(tensor, heads):
    """LlamaModel.permute of the converter."""
    shape = tensor.shape
    return np.ascontiguousarray(tensor.reshape(heads, 2, shape[0] // heads // 2, *shape[1:]).swapaxes(1, 2).reshape(shape))


def turned(name, tensor, config):
    if config["model_type"] == "llama" and "q_proj" in name:
        return pairs(tensor, config["num_attention_heads"])
    if config["model_type"] == "llama" and "k_proj" in name:
        return pairs(tensor, config["num_key_value_heads"])
    return tensor


def rope_factors(config):
    """LlamaModel.generate_extra_tensors of the converter."""
    rope = config["rope_parameters"]
    dim = head_dim(config)
    freqs = 1.0 / (rope["rope_theta"] ** (np.arange(0, dim, 2, dtype=np.float32) / dim))
    old = rope["original_max_position_embeddings"]
    low, high = old / rope["low_freq_factor"], old / rope["high_freq_factor"]
    factors = []
    for freq in freqs:
        length = 2 * np.pi / freq
        if length < high:
            factors.append(1)
        elif length > low:
            factors.append(rope["factor"])
        else:
            smooth = (old / length - rope["low_freq_factor"]) / (rope["high_freq_factor"] - rope["low_freq_factor"])
            factors.append(1 / ((1 - smooth) / rope["factor"] + smooth))
    return np.array(factors, dtype=np.float32)


def writer(path, config):
    out = gguf.GGUFWriter(path, config["model_type"])
    out.add_type("model")
    out.add_block_count(config["num_hidden_layers"])
    out.add_context_length(config["max_position_embeddings"])
    out.add_embedding_length(config["hidden_size"])
    out.add_feed_forward_length(config["intermediate_size"])
    out.add_head_count(config["num_attention_heads"])
    out.add_head_count_kv(config["num_key_value_heads"])
    dim = head_dim(config)
    if "head_dim" in config:
        out.add_key_length(dim)
        out.add_value_length(dim)
    out.add_rope_dimension_count(dim)
    out.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    out.add_layer_norm_rms_eps(config["rms_norm_eps"])
    out.add_vocab_size(config["vocab_size"])
    return out


def add_tokenizer(out, size):
    pieces = PIECES + [f"[PAD{at}]" for at in range(len(PIECES), size)]
    special = {"<unk>": 2, "<s>": 3, "</s>": 3, "<|user|>": 3}
    kinds = [5 if piece.startswith("[PAD") else special.get(piece, 1) for piece in pieces]
    out.add_tokenizer_model("llama")
    out.add_tokenizer_pre("default")
    out.add_token_list(pieces)
    # The longer a piece, the better, as a trainer would have it here.
    out.add_token_scores([float(len(piece)) - at / 1000 for at, piece in enumerate(pieces)])
    out.add_token_types(kinds)
    out.add_bos_token_id(1)
    out.add_eos_token_id(2)
    out.add_unk_token_id(0)
    out.add_add_bos_token(True)
    out.add_chat_template(TEMPLATE)


def close(out):
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()


def golden(name):
    base = ROOT / "golden" / name / "base"
    config = json.loads((base / "config.json").read_text())
    out = writer(OUT / f"{name}.gguf", config)
    add_tokenizer(out, config["vocab_size"])
    if config["rope_parameters"]["rope_type"] == "llama3":
        out.add_tensor("rope_freqs.weight", rope_factors(config))
    with safe_open(base / "model.safetensors", "np") as file:
        for key in file.keys():
            out.add_tensor(ggml_name(key), turned(key, file.get_tensor(key), config))
    close(out)


QUANTS = {
    "hidden_size": 256,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "num_hidden_layers": 2,
    "max_position_embeddings": 64,
    "vocab_size": 96,
    "rms_norm_eps": 1e-5,
    "rope_parameters": {"rope_theta": 10000.0},
    "model_type": "llama",
}
# Rows of 64 are of small blocks, rows of 256 may be of large ones.
TYPES = {
    "model.embed_tokens": Type.Q6_K,
    "model.layers.0.self_attn.q_proj": Type.Q4_K,
    "model.layers.0.self_attn.k_proj": Type.Q5_K,
    "model.layers.0.self_attn.v_proj": Type.Q6_K,
    "model.layers.0.self_attn.o_proj": Type.Q8_0,
    "model.layers.0.mlp.gate_proj": Type.Q2_K,
    "model.layers.0.mlp.up_proj": Type.Q3_K,
    "model.layers.0.mlp.down_proj": Type.Q4_0,
    "model.layers.1.self_attn.q_proj": Type.Q8_0,
    "model.layers.1.self_attn.k_proj": Type.F16,
    "model.layers.1.self_attn.v_proj": Type.BF16,
    "model.layers.1.self_attn.o_proj": Type.Q4_1,
    "model.layers.1.mlp.gate_proj": Type.Q5_0,
    "model.layers.1.mlp.up_proj": Type.Q4_K,
    "model.layers.1.mlp.down_proj": Type.Q5_1,
}
# Where the scales of a block lie, in bytes; they are f16.
SCALES = {Type.Q2_K: [80, 82], Type.Q3_K: [108], Type.Q4_K: [0, 2], Type.Q5_K: [0, 2], Type.Q6_K: [208]}


def shapes(config):
    hidden, inner, dim = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    q, kv = config["num_attention_heads"] * dim, config["num_key_value_heads"] * dim
    yield "model.embed_tokens", (config["vocab_size"], hidden)
    for layer in range(config["num_hidden_layers"]):
        rows = {"self_attn.q_proj": (q, hidden), "self_attn.k_proj": (kv, hidden), "self_attn.v_proj": (kv, hidden)}
        rows |= {"self_attn.o_proj": (hidden, q), "mlp.gate_proj": (inner, hidden), "mlp.up_proj": (inner, hidden)}
        rows |= {"mlp.down_proj": (hidden, inner)}
        for module, shape in rows.items():
            yield f"model.layers.{layer}.{module}", shape


def blocks(rng, shape, kind):
    """Numbers in the form of a type. No package writes the large blocks: theirs are random bits with small scales."""
    numbers = rng.normal(0, 0.05, shape).astype(np.float32)
    if kind == Type.F16:
        return numbers.astype(np.float16)
    if kind not in SCALES:
        return gguf.quants.quantize(numbers, kind)
    block, size = gguf.GGML_QUANT_SIZES[kind]
    raw = rng.integers(0, 256, (shape[0] * shape[1] // block, size), dtype=np.uint8)
    for at in SCALES[kind]:
        scales = rng.uniform(1e-4, 5e-4, len(raw)).astype(np.float16)
        raw[:, at : at + 2] = scales.view(np.uint8).reshape(-1, 2)
    return raw.reshape(shape[0], -1)


def unpaired(tensor, heads):
    shape = tensor.shape
    return np.ascontiguousarray(tensor.reshape(heads, shape[0] // heads // 2, 2, *shape[1:]).swapaxes(1, 2).reshape(shape))


def quants():
    rng = np.random.default_rng(7)
    config = QUANTS
    out = writer(OUT / "quants.gguf", config)
    add_tokenizer(out, config["vocab_size"])
    heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
    digests = {}
    for name, shape in shapes(config):
        kind = TYPES[name]
        data = blocks(rng, shape, kind)
        out.add_tensor(ggml_name(f"{name}.weight"), data, raw_dtype=kind)
        numbers = gguf.quants.dequantize(data.view(np.uint8) if kind == Type.F16 else data, kind).reshape(shape)
        assert np.isfinite(numbers).all() and np.abs(numbers).max() < 10
        module = name.rsplit(".", 1)[-1]
        numbers = unpaired(numbers, heads[module]) if module in heads else numbers
        digest = hashlib.sha256(np.ascontiguousarray(numbers, dtype="<f4").tobytes()).hexdigest()
        digests[f"{name}.weight"] = {"type": kind.name, "sha256": digest}
    norms = ["model.norm"]
    for layer in range(config["num_hidden_layers"]):
        norms += [f"model.layers.{layer}.input_layernorm", f"model.layers.{layer}.post_attention_layernorm"]
    for name in norms:
        out.add_tensor(ggml_name(f"{name}.weight"), rng.normal(1, 0.1, config["hidden_size"]).astype(np.float32))
    close(out)
    text = json.dumps({"gguf": "0.19.0", "tensors": digests}, indent=1)
    (OUT / "quants.json").write_text(text + "\n")


if __name__ == "__main__":
    OUT.mkdir(exist_ok=True)
    for model in ["llama3", "llama_bias", "qwen2", "qwen3"]:
        golden(model)
    quants()
