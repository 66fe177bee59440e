"""What transformers makes of config.json: one small checkpoint per family, and changes of its config with what they give.

    python tools/golden/spellings.py [FAMILY ...]

Writes `tests/fixtures/spellings/FAMILY/`: `base/` and `cases.json`. A case sets and drops fields of the config (and may drop
tensors of the checkpoint, or change the head) and holds greedy ids and log-probabilities as transformers computes them, or
`refused`: what transformers raises, or why this server refuses what transformers takes.
"""

import copy
import json
import os
import shutil
import sys
import tempfile
import warnings
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
import transformers as tf
from safetensors.torch import load_file, save_file

import rand
import reference

ROOT = Path(__file__).resolve().parents[2] / "tests" / "fixtures" / "spellings"
NEW_TOKENS = 3
MARGIN = 2e-3
LONG = 40
SMALL = dict(
    vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
    max_position_embeddings=64, rms_norm_eps=1e-5, bos_token_id=1, eos_token_id=2, pad_token_id=0,
)
GEMMA = dict(head_dim=16, query_pre_attn_scalar=24, sliding_window=8)
BY_TYPE = {
    "sliding_attention": {"rope_type": "default", "rope_theta": 1000.0},
    "full_attention": {"rope_type": "default", "rope_theta": 50000.0},
}
CONFIGS = {
    "llama": tf.LlamaConfig(**SMALL, head_dim=16),
    "llama_tied": tf.LlamaConfig(**SMALL, head_dim=16, tie_word_embeddings=True),
    "mistral": tf.MistralConfig(**SMALL, head_dim=16, sliding_window=8),
    "qwen2": tf.Qwen2Config(**SMALL, use_sliding_window=True, sliding_window=8, max_window_layers=1),
    "qwen3": tf.Qwen3Config(**SMALL, head_dim=16, use_sliding_window=True, sliding_window=8, max_window_layers=1),
    "mixtral": tf.MixtralConfig(**SMALL, head_dim=16, sliding_window=8, num_local_experts=4, num_experts_per_tok=2),
    "qwen3_moe": tf.Qwen3MoeConfig(
        **SMALL, head_dim=16, use_sliding_window=True, sliding_window=8, num_experts=5, num_experts_per_tok=2,
        moe_intermediate_size=12, mlp_only_layers=[0]),
    "phi3": tf.Phi3Config(**{**SMALL, "hidden_size": 32}, sliding_window=30),
    "gemma2": tf.Gemma2Config(**SMALL, **GEMMA, attn_logit_softcapping=5.0, final_logit_softcapping=6.0),
    "gemma3_text": tf.Gemma3TextConfig(
        **SMALL, **GEMMA, layer_types=["sliding_attention", "full_attention"], rope_parameters=BY_TYPE),
}
ALL = tuple(CONFIGS)
FLAT = ("llama", "qwen3")
MOE = ("mixtral", "qwen3_moe")


def case(name, families, set=None, drop=(), here=None, tensors=None, length=LONG, grows=0):
    """`here`: why this server refuses what transformers may take. `tensors`: how the checkpoint is changed. `grows`: so many
    tokens are generated with the library's own cache, whose history counts."""
    out = dict(name=name, families=families, set=set or {}, drop=list(drop), here=here, tensors=tensors)
    return {**out, "length": length, "grows": grows}


def rope(kind, **fields):
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 10000.0, **fields}}


def scaling(**fields):
    return {"rope_scaling": fields}


V5 = ("rope_parameters",)
LONGROPE = dict(short_factor=[1.0, 1.1, 1.2, 1.3, 1.5, 1.7, 2.0, 2.5], long_factor=[1.1, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 9.0])
LLAMA3 = dict(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0)
NOT_READ = "transformers takes it and ignores it"
CASES = [
    case("as saved", ALL),
    # Types and absurd sizes.
    case("null layers", ALL, {"num_hidden_layers": None}),
    case("text layers", ALL, {"num_hidden_layers": "2"}),
    case("half a layer", ALL, {"num_hidden_layers": 1.5}),
    case("negative layers", ALL, {"num_hidden_layers": -1}, here="a decoder has layers"),
    case("no layers", ALL, {"num_hidden_layers": 0}, here="a decoder has layers"),
    case("a billion layers", ALL, {"num_hidden_layers": 10**9}, here="no real model has so many"),
    case("more layers than tensors", ALL, {"num_hidden_layers": 3}, drop=("layer_types",), here="transformers makes them up"),
    case("huge vocabulary", ALL, {"vocab_size": 2**40}, here="no real model has so many"),
    case("huge head", ALL, {"head_dim": 2**40}, here="no real model has so many"),
    case("no head_dim", ("llama", "mistral", *MOE), {"head_dim": 0}, here="a head has numbers"),
    case("null head_dim", MOE, {"head_dim": None}),
    case("more heads than width", ("qwen2", "phi3"), {"num_attention_heads": 64}, here="a head has numbers"),
    case("kv heads no divisor", ALL, {"num_attention_heads": 3}, here="query heads share key/value heads evenly"),
    case("null eps", ALL, {"rms_norm_eps": None}),
    case("large eps", ALL, {"rms_norm_eps": 0.5}),
    case("null activation", ("llama", "qwen2", "phi3", *MOE), {"hidden_act": None}),
    case("gelu", ("llama", "mistral", "qwen2", "qwen3", "phi3", *MOE), {"hidden_act": "gelu"}),
    case("gelu_pytorch_tanh", ("llama", "phi3"), {"hidden_act": "gelu_pytorch_tanh"}),
    case("relu", ("llama", "phi3", *MOE), {"hidden_act": "relu"}, here="not implemented"),
    case("hidden_act of Gemma", ("gemma2", "gemma3_text"), {"hidden_act": "silu"}),
    case("gelu of Gemma", ("gemma2", "gemma3_text"), {"hidden_activation": "gelu"}),
    case("layer by layer", ("llama", "mistral"), {"per_layer_config": {"0": {"sliding_window": 4}}}, here="not implemented"),
    case("unread fields", ALL, {"pretraining_tp": 2, "attention_dropout": 0.5, "chunk_size_feed_forward": 2, "use_cache": False}),
    # Heads and embeddings.
    case("tied by config, two heads", ("llama",), {"tie_word_embeddings": True}),
    case("tied by config, same head twice", ("llama_tied",), tensors="same_head"),
    case("tied, only the head there", ("llama_tied",), tensors="only_head"),
    case("null tie", ("llama", "llama_tied"), {"tie_word_embeddings": None}),
    case("not tied, no head", ("llama_tied",), {"tie_word_embeddings": False}, here="transformers makes one up"),
    case("tie absent, head there", ("llama",), drop=("tie_word_embeddings",)),
    case("tie absent, no head", ("gemma2", "gemma3_text"), drop=("tie_word_embeddings",)),
    case("tie absent, other head", ("gemma2", "gemma3_text"), drop=("tie_word_embeddings",), tensors="other_head"),
    # Windows.
    case("one short window", ("mistral", "phi3", *MOE), {"sliding_window": 5}),
    case("null window", ("mistral", "phi3", *MOE), {"sliding_window": None}),
    case("window 0", ("mistral", "phi3", *MOE), {"sliding_window": 0}, here="a token sees at least itself"),
    case("types, first slides", ("mistral",), {"layer_types": ["sliding_attention", "full_attention"]}),
    case("types, none slides", ("mistral", "qwen2", "gemma2", "gemma3_text"), {"layer_types": ["full_attention"] * 2}),
    case("types, all slide", (*MOE, "mistral", "qwen3", "gemma2", "gemma3_text"), {"layer_types": ["sliding_attention"] * 2}),
    case("types of Phi-3", ("phi3",), {"layer_types": ["sliding_attention", "full_attention"]}, here="its cache and its mask disagree"),
    case("types of experts", MOE, {"layer_types": ["sliding_attention", "full_attention"]}, here="its cache and its mask disagree"),
    case("types without a window", ("qwen2", "qwen3"), {"sliding_window": None}),
    case("types, not enough", ALL, {"layer_types": ["full_attention"]}),
    case("types, unknown", ("qwen2", "gemma2", "mistral"), {"layer_types": ["chunked_attention"] * 2}),
    case("types switched off", ("qwen2", "qwen3"), {"use_sliding_window": False}),
    case("window switched off", ("qwen2", "qwen3", "qwen3_moe"), {"use_sliding_window": False}, drop=("layer_types",)),
    case("window by layers", ("qwen2", "qwen3"), drop=("layer_types",)),
    case("window by default layers", ("qwen2", "qwen3"), drop=("layer_types", "max_window_layers")),
    case("window of Llama", ("llama",), {"sliding_window": 8}, here="its cache forgets what its mask shows"),
    case("types of Llama", ("llama",), {"layer_types": ["sliding_attention", "full_attention"]}, here="it has no window"),
    case("null window of Gemma", ("gemma2", "gemma3_text"), {"sliding_window": None}),
    case("types absent", ("gemma2", "gemma3_text"), drop=("layer_types",)),
    # Rotary embeddings, spelt in all ways.
    case("theta on top", FLAT, {"rope_theta": 500.0}, drop=V5),
    case("theta on top and below", FLAT, {"rope_theta": 500.0}),
    case("null theta", FLAT, {"rope_theta": None}, drop=V5),
    case("scaling beside parameters", FLAT, scaling(rope_type="linear", factor=4.0)),
    case("scaling beside parameters with a theta", FLAT, {**scaling(rope_type="default"), **rope("linear", factor=4.0, rope_theta=77.0)}),
    case("scaling, parameters and theta", FLAT, {**scaling(rope_type="default"), **rope("default", rope_theta=77.0), "rope_theta": 55.0}),
    case("empty scaling beside parameters", FLAT, {**scaling(), **rope("linear", factor=4.0)}),
    case("older type", FLAT, scaling(type="linear", factor=4.0), drop=V5),
    case("both types", FLAT, scaling(type="linear", rope_type="default", factor=4.0), drop=V5),
    case("null type", FLAT, rope(None)),
    case("no type", FLAT, scaling(factor=4.0), drop=V5),
    case("unknown type", FLAT, scaling(type="mrope", mrope_section=[1, 1, 2]), drop=V5),
    case("su outside Phi-3", FLAT, scaling(type="su", **LONGROPE), drop=V5),
    case("parameters by layer type", FLAT, {"rope_parameters": {"full_attention": {"rope_type": "linear", "factor": 4.0}}}, here=NOT_READ),
    case("fraction", ("llama", "mistral", "qwen2", "gemma2", "phi3"), rope("default", partial_rotary_factor=0.5)),
    case("fraction on top", ("llama", "phi3"), {"partial_rotary_factor": 0.5, "rope_theta": 10000.0}, drop=V5),
    case("fraction of a scaled one", ("llama",), rope("linear", factor=4.0, partial_rotary_factor=0.5)),
    case("linear", ("llama", "mistral", "qwen2", "qwen3", "gemma2", *MOE), rope("linear", factor=4.0)),
    case("linear without factor", FLAT, rope("linear")),
    case("linear, text", FLAT, rope("linear", factor="4")),
    case("linear by 0", FLAT, rope("linear", factor=0.0), here="no number comes out"),
    case("linear below 1", FLAT, rope("linear", factor=0.5)),
    case("proportional", FLAT, rope("proportional", factor=2.0, partial_rotary_factor=0.25)),
    case("dynamic", ("llama", "qwen2"), rope("dynamic", factor=2.5)),
    case("dynamic with an original", FLAT, rope("dynamic", factor=2.5, original_max_position_embeddings=16)),
    case("dynamic without factor", FLAT, rope("dynamic")),
    case("llama3", ("llama", "qwen2"), rope("llama3", **LLAMA3, original_max_position_embeddings=64)),
    case("llama3, original on top", FLAT, {**rope("llama3", **LLAMA3, original_max_position_embeddings=32), "original_max_position_embeddings": 200}),
    case("llama3, no original", FLAT, rope("llama3", **LLAMA3)),
    case("llama3, turned round", FLAT, rope("llama3", factor=8.0, low_freq_factor=4.0, high_freq_factor=1.0, original_max_position_embeddings=64)),
    case("llama3, no band", FLAT, rope("llama3", factor=8.0, low_freq_factor=2.0, high_freq_factor=2.0, original_max_position_embeddings=64)),
    case("yarn", ("llama", "mistral", "qwen2", "qwen3", "gemma2", *MOE), rope("yarn", factor=4.0, original_max_position_embeddings=16)),
    case("yarn, no original", FLAT, rope("yarn", factor=4.0)),
    case("yarn, original on top", FLAT, {**rope("yarn", factor=4.0, original_max_position_embeddings=16), "original_max_position_embeddings": 512}),
    case("yarn, null factor", FLAT, rope("yarn", factor=None, original_max_position_embeddings=16)),
    case("yarn, no factor", FLAT, rope("yarn", original_max_position_embeddings=16)),
    case("yarn, betas", FLAT, rope("yarn", factor=4.0, beta_fast=4, beta_slow=0.5, original_max_position_embeddings=64)),
    case("yarn, betas of 0", FLAT, rope("yarn", factor=4.0, beta_fast=0, beta_slow=0, original_max_position_embeddings=64)),
    case("yarn, not truncated", FLAT, rope("yarn", factor=4.0, truncate=False, original_max_position_embeddings=64)),
    case("yarn, mscale", FLAT, rope("yarn", factor=4.0, mscale=0.7, mscale_all_dim=1.5)),
    case("yarn, half an mscale", FLAT, rope("yarn", factor=4.0, mscale=0.7)),
    case("yarn, attention factor", FLAT, rope("yarn", factor=4.0, attention_factor=0.8, mscale=0.7, mscale_all_dim=1.5)),
    case("yarn below 1", FLAT, rope("yarn", factor=0.5)),
    case("yarn, v4", FLAT, {**scaling(type="yarn", factor=4.0, original_max_position_embeddings=16), "rope_theta": 3000.0}, drop=V5),
    case("longrope, short", ("llama",), rope("longrope", **LONGROPE, original_max_position_embeddings=16), length=9),
    case("longrope, long", ("llama",), rope("longrope", **LONGROPE, original_max_position_embeddings=16)),
    case("longrope, factor", ("llama",), rope("longrope", **LONGROPE, factor=3.0, original_max_position_embeddings=16)),
    case("longrope, no original", ("llama",), rope("longrope", **LONGROPE)),
    case("longrope, lengths", ("llama", "phi3"), {**rope("longrope", short_factor=[1.0], long_factor=[2.0]), "original_max_position_embeddings": 16}, here="one factor per frequency"),
    case("longrope of Phi-3, short", ("phi3",), {**rope("longrope", **LONGROPE), "original_max_position_embeddings": 16}, length=9),
    case("longrope of Phi-3, long", ("phi3",), {**rope("longrope", **LONGROPE), "original_max_position_embeddings": 16}),
    case("longrope of Phi-3, original within", ("phi3",), {**rope("longrope", **LONGROPE, original_max_position_embeddings=200), "original_max_position_embeddings": 16}),
    case("longrope of Phi-3, by default", ("phi3",), rope("longrope", **LONGROPE, original_max_position_embeddings=16), drop=("original_max_position_embeddings",)),
    case("longrope of Phi-3, v4", ("phi3",), {**scaling(type="longrope", **LONGROPE), "rope_theta": 500.0, "original_max_position_embeddings": 16}, drop=V5),
    case("longrope of Phi-3, attention factor", ("phi3",), {**rope("longrope", **LONGROPE, attention_factor=1.5), "original_max_position_embeddings": 16}),
    case("yarn of Phi-3", ("phi3",), {**scaling(type="yarn", factor=2.0, **LONGROPE), "original_max_position_embeddings": 16}, drop=V5),
    case("linear of Phi-3", ("phi3",), rope("linear", factor=4.0)),
    # Sequences that outgrow the original context: Phi-3 computes them anew, others keep what is in the cache.
    case("longrope, growing", ("llama",), rope("longrope", **LONGROPE, original_max_position_embeddings=16), length=14, grows=8),
    case("longrope, growing from the edge", ("llama",), rope("longrope", **LONGROPE, original_max_position_embeddings=16), length=16, grows=6),
    case("longrope of Phi-3, growing", ("phi3",), {**rope("longrope", **LONGROPE), "original_max_position_embeddings": 16}, length=14, grows=8),
    case("longrope of Phi-3, growing from the edge", ("phi3",), {**rope("longrope", **LONGROPE), "original_max_position_embeddings": 16}, length=16, grows=6),
    case("longrope of Phi-3, just long", ("phi3",), {**rope("longrope", **LONGROPE), "original_max_position_embeddings": 16}, length=17, grows=6),
    # Experts.
    case("theta by default", MOE, drop=V5),
    case("window by layers", ("qwen3_moe",), {"max_window_layers": 1}, here=NOT_READ),
    case("window switched off, by layers", ("qwen3_moe",), {"max_window_layers": 1, "use_sliding_window": False}),
    case("one expert per token", MOE, {"num_experts_per_tok": 1}),
    case("all experts per token", ("mixtral",), {"num_experts_per_tok": 4}),
    case("more per token than there are", MOE, {"num_experts_per_tok": 6}),
    case("none per token", MOE, {"num_experts_per_tok": 0}, here="a token has experts"),
    case("null per token", MOE, {"num_experts_per_tok": None}),
    case("per token by default", MOE, drop=("num_experts_per_tok",)),
    case("fields of training", MOE, {"router_jitter_noise": 0.5, "router_aux_loss_coef": 0.5, "output_router_logits": True}),
    case("fewer experts than tensors", MOE, {"num_local_experts": 3}),
    case("no experts", MOE, {"num_local_experts": 0}, here="a sparse layer has experts"),
    case("null experts", MOE, {"num_local_experts": None}),
    case("a million experts", MOE, {"num_local_experts": 10**6}, here="no real model has so many"),
    case("experts by the other name", ("mixtral",), {"num_experts": 4}, drop=("num_local_experts",)),
    case("experts by the other name", ("qwen3_moe",), {"num_experts": 5}, drop=("num_local_experts",)),
    case("experts by both names", ("qwen3_moe",), {"num_experts": 5}),
    case("experts by two names", MOE, {"num_experts": 7}, here="one field of two names"),
    case("renormalised", ("qwen3_moe",), {"norm_topk_prob": True}),
    case("renormalised by default", ("qwen3_moe",), drop=("norm_topk_prob",)),
    case("null norm", ("qwen3_moe",), {"norm_topk_prob": None}),
    case("not renormalised", ("mixtral",), {"norm_topk_prob": False}, here=NOT_READ),
    case("width of experts by default", ("qwen3_moe",), drop=("moe_intermediate_size",)),
    case("dense by step", ("qwen3_moe",), {"decoder_sparse_step": 2}, drop=("mlp_only_layers",)),
    case("dense by step, null list", ("qwen3_moe",), {"decoder_sparse_step": 2, "mlp_only_layers": None}),
    case("dense by both", ("qwen3_moe",), {"decoder_sparse_step": 2, "mlp_only_layers": [0, 7]}),
    case("step of 0", ("qwen3_moe",), {"decoder_sparse_step": 0, "mlp_only_layers": []}),
    case("null step", ("qwen3_moe",), {"decoder_sparse_step": None}),
    case("list of text", ("qwen3_moe",), {"mlp_only_layers": ["0"]}),
    case("list of layers from the end", ("qwen3_moe",), {"mlp_only_layers": [0, -1]}, here="no layer has such a number"),
    case("all sparse", ("qwen3_moe",), drop=("mlp_only_layers",), here="transformers makes them up"),
    # Gemma's own.
    case("both ways", ("gemma2", "gemma3_text"), {"use_bidirectional_attention": True}, here="attention is causal"),
    case("scalar", ("gemma2", "gemma3_text"), {"query_pre_attn_scalar": 7}),
    case("null scalar", ("gemma2", "gemma3_text"), {"query_pre_attn_scalar": None}),
    case("scalar of 0", ("gemma2", "gemma3_text"), {"query_pre_attn_scalar": 0}),
    case("caps", ("gemma2", "gemma3_text"), {"final_logit_softcapping": 2.0}),
    case("no caps", ("gemma2",), {"final_logit_softcapping": None, "attn_logit_softcapping": None}),
    case("caps by default", ("gemma2", "gemma3_text"), drop=("final_logit_softcapping", "attn_logit_softcapping")),
    case("attention cap of Gemma 3", ("gemma3_text",), {"attn_logit_softcapping": 5.0}, here=NOT_READ),
    case("pattern", ("gemma3_text",), {"sliding_window_pattern": 2}, drop=("layer_types",)),
    case("pattern beside types", ("gemma3_text",), {"sliding_window_pattern": 1}),
    case("pattern of 0", ("gemma3_text",), {"sliding_window_pattern": 0}, drop=("layer_types",)),
    case("null pattern", ("gemma3_text",), {"sliding_window_pattern": None}, drop=("layer_types",)),
    case("hidden pattern", ("gemma3_text",), {"_sliding_window_pattern": 2}, drop=("layer_types",), here=NOT_READ),
    case("one rope for both", ("gemma3_text",), rope("linear", factor=4.0), here=NOT_READ),
    case("ropes by default", ("gemma3_text",), drop=V5),
    case("thetas on top", ("gemma3_text",), {"rope_theta": 500.0, "rope_local_base_freq": 70.0}, drop=V5),
    case("thetas on top and below", ("gemma3_text",), {"rope_theta": 500.0, "rope_local_base_freq": 70.0}),
    case("only the full rope", ("gemma3_text",), {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 9.0}}, "rope_local_base_freq": 70.0}),
    case("only the sliding rope", ("gemma3_text",), {"rope_parameters": {"sliding_attention": {"rope_type": "default", "rope_theta": 9.0}}, "rope_theta": 70.0}),
    case("sliding linear", ("gemma3_text",), {"rope_parameters": {**BY_TYPE, "sliding_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1000.0}}}),
    case("full by older type", ("gemma3_text",), {"rope_parameters": {**BY_TYPE, "full_attention": {"type": "linear", "factor": 4.0, "rope_theta": 50000.0}}}),
    case("full yarn", ("gemma3_text",), {"rope_parameters": {**BY_TYPE, "full_attention": {"rope_type": "yarn", "factor": 4.0, "rope_theta": 50000.0, "original_max_position_embeddings": 16}}}),
    case("full yarn, original on top", ("gemma3_text",), {"rope_parameters": {**BY_TYPE, "full_attention": {"rope_type": "yarn", "factor": 4.0, "rope_theta": 50000.0}}, "original_max_position_embeddings": 16}),
    case("full yarn, not truncated", ("gemma3_text",), {"rope_parameters": {**BY_TYPE, "full_attention": {"rope_type": "yarn", "factor": 4.0, "rope_theta": 50000.0, "truncate": False}}}, here=NOT_READ),
    case("full fraction", ("gemma3_text",), {"rope_parameters": {**BY_TYPE, "full_attention": {"rope_type": "default", "rope_theta": 50000.0, "partial_rotary_factor": 0.5}}}),
    case("scaling over the full rope", ("gemma3_text",), scaling(rope_type="linear", factor=4.0)),
    case("scaling alone", ("gemma3_text",), scaling(rope_type="linear", factor=4.0), drop=V5),
    case("scaling with a theta", ("gemma3_text",), scaling(rope_type="default", rope_theta=9.0)),
    case("scaling by older type", ("gemma3_text",), scaling(type="linear", factor=4.0), drop=V5, here=NOT_READ),
    case("scaling by older type beside", ("gemma3_text",), scaling(type="linear", factor=4.0), here=NOT_READ),
    case("scaling by layer type", ("gemma3_text",), {"rope_scaling": {"rope_type": "default", "full_attention": {"rope_type": "linear", "factor": 4.0}}}, here=NOT_READ),
    case("empty scaling", ("gemma3_text",), scaling()),
    case("the multimodal type", ("gemma3_text",), {"model_type": "gemma3"}, here="not served"),
]


def build(name: str, folder: Path) -> None:
    model = tf.AutoModelForCausalLM.from_config(CONFIGS[name], dtype=torch.float32, attn_implementation="eager")
    plus_one = name.startswith("gemma")
    with torch.no_grad():
        for key, p in model.named_parameters():
            at = ("spellings", name, key)
            if p.dim() == 1:
                p.copy_(rand.normal(p.shape, 0.3, *at) + (0.0 if plus_one or key.endswith("bias") else 1.0))
            else:
                p.copy_(rand.normal(p.shape, 0.4 if "embed" in key else 1.7 / p.shape[-1] ** 0.5, *at))
    model.save_pretrained(folder)
    (folder / "generation_config.json").unlink()


@torch.no_grad()
def generated(model, prompt: list[int], steps: int) -> reference.Trace:
    """What generate() gives, cache and all."""
    out = model.generate(
        input_ids=torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.long), max_new_tokens=steps,
        do_sample=False, use_cache=True, return_dict_in_generate=True, output_logits=True,
    )
    trace = reference.Trace(prompt, out.sequences[0, len(prompt):].tolist(), [], [], [])
    for row in out.logits:
        logits = row[0].double()
        values, order = torch.log_softmax(logits, -1).topk(reference.TOP)
        trace.logprobs.append(values[0].item())
        trace.margins.append((logits[order[0]] - logits[order[1]]).item())
        trace.top.append(list(zip(order.tolist(), values.tolist())))
    return trace


def change_tensors(folder: Path, change: str | None) -> None:
    if change is None:
        return
    path = folder / "model.safetensors"
    tensors = load_file(path)
    embedding = tensors["model.embed_tokens.weight"]
    if change == "same_head":
        tensors["lm_head.weight"] = embedding.clone()
    elif change == "only_head":
        tensors["lm_head.weight"] = tensors.pop("model.embed_tokens.weight")
    elif change == "other_head":
        tensors["lm_head.weight"] = embedding.flip(0).contiguous()
    save_file(tensors, path, metadata={"format": "pt"})


def run(base: Path, spec: dict, family: str) -> dict:
    out = {key: spec[key] for key in ("name", "set", "drop", "tensors")}
    if spec["here"]:
        return {**out, "refused": f"here: {spec['here']}"}
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder) / "base"
        shutil.copytree(base, folder)
        config = json.loads((folder / "config.json").read_text())
        config = {key: value for key, value in config.items() if key not in spec["drop"]} | copy.deepcopy(spec["set"])
        (folder / "config.json").write_text(json.dumps(config))
        change_tensors(folder, spec["tensors"])
        try:
            model = tf.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
            model.generation_config = tf.GenerationConfig(bos_token_id=1, pad_token_id=0, do_sample=False)
            reference.last_logits(model, [1, 2, 3])
        except Exception as error:  # noqa: BLE001
            return {**out, "refused": f"transformers: {type(error).__name__}"}
        for attempt in range(200):
            prompt = rand.token_ids(spec["length"], 40, "spellings", family, spec["name"], attempt)
            grows = spec["grows"]
            trace = generated(model, prompt, grows) if grows else reference.greedy(model, prompt, NEW_TOKENS)
            if min(trace.margins) >= MARGIN:
                if not grows:
                    reference.check_cached(model, trace)
                return {**out, "grows": grows > 0, **trace.case(spec["name"], None, {})}
    raise AssertionError(f"no usable prompt for {family}/{spec['name']}")


def main() -> int:
    torch.set_num_threads(1)
    tf.logging.set_verbosity_error()
    tf.logging.disable_progress_bar()
    warnings.filterwarnings("ignore")
    failed = 0
    for family in sys.argv[1:] or CONFIGS:
        folder = ROOT / family
        shutil.rmtree(folder, ignore_errors=True)
        build(family, folder / "base")
        lines = []
        for spec in CASES:
            if family not in spec["families"]:
                continue
            try:
                found = run(folder / "base", spec, family)
                lines.append(json.dumps(found, separators=(",", ":")))
                if "refused" in found:
                    print(f"  {family}/{spec['name']}: {found['refused']}")
            except Exception as error:  # noqa: BLE001
                failed = 1
                print(f"FAILED {family}/{spec['name']}: {type(error).__name__}: {error}", file=sys.stderr)
        head = json.dumps({"transformers": tf.__version__, "torch": torch.__version__.split("+")[0]})
        (folder / "cases.json").write_text(head[:-1] + ', "cases": [\n' + ",\n".join(lines) + "\n]}\n")
        print(f"{family}: {len(lines)} cases", flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(main())
