"""Writes the README beside the fixtures: what is there, how it was made, what the files of PEFT look like."""

import json
from pathlib import Path

import peft
import torch
import transformers

NOTES = {
    "llama": "untied; every adapter option",
    "llama3": "tied; rope scaling `llama3`; a list of end tokens; sampling defaults",
    "llama_bias": "biases on all seven linears",
    "mistral": "window 8 on every layer; two shards",
    "qwen2": "q, k, v biases; tied",
    "qwen2_window": "window 8 on layers 1 and 2, layer 0 sees all; untied",
    "qwen3": "q and k norms; head_dim 16 with 4 heads, hidden 32",
    "mixtral": "6 experts, 2 per token; untied",
    "qwen3_moe": "8 experts, 3 per token, not renormalised; layers 0 and 2 are dense; q and k norms; untied",
    "phi3": "fused `qkv_proj`, `gate_up_proj`; 12 of 16 dimensions rotate",
    "phi3_longrope": "long and short factors; window 32",
    "gemma2": "soft caps; window 8 on every other layer; scale from query_pre_attn_scalar; tied",
    "gemma3": "local and global rope; q and k norms; window 8 but on layer 2; tied",
}

TEXT = """# Golden fixtures

Made by `tools/golden/make.py` with transformers {transformers}, peft {peft}, torch {torch} in float32 on the CPU
(`attn_implementation="eager"`). Do not edit: change the script and run it.

    python tools/golden/make.py [FAMILY ...]

Everything is random and tiny (vocabulary 100, hidden 32 to 64, 2 to 4 layers, 4 heads, 2 KV heads). Norm weights, biases and all
adapter parameters are random too. Total: {total} KiB.

{table}

## Layout

    FAMILY/base/config.json             as transformers {transformers} writes it (v5: rope_parameters, dtype, layer_types)
    FAMILY/base/config.v4.json          the same model in the v4 spelling; make.py proved that both give equal logits
    FAMILY/base/model.safetensors       (mistral: model.safetensors.index.json and two shards; experts one by one)
    FAMILY/base/generation_config.json
    FAMILY/adapters/NAME/               as PEFT saves it; base_model_name_or_path is replaced, lists of module names are sorted
    FAMILY/cases.json
    FAMILY/scores.json                  llama, gemma2, qwen3, mistral

`llama_bias` has no `config.v4.json`.

## cases.json

`{{"transformers", "peft", "torch", "cases": [...]}}`, one case per line:

| field | meaning |
|---|---|
| `name` | `ADAPTER/PROMPT`, or `base/PROMPT` |
| `adapter` | folder under `adapters`, or null for the base, or a name where there is a mix |
| `mix` | of a mix only: pairs of a folder under `adapters` and its weight |
| `prompt` | ids |
| `ids` | the 12 greedy ids that follow; end tokens are ignored |
| `logprobs` | log-softmax at each chosen id, before any temperature |
| `margins` | logit of the best id minus the second, at each step; never below 5e-3 |
| `top` | the 5 best `[id, logprob]` of each step, best first |
| `max_model_len` | phi3_longrope only, see below |

## scores.json

A list, one text per line, scored in one forward: `adapter`; `tokens`, the prompt of a `long` case and its 12 greedy ids; `logprobs`
of each token but the first; `top`, the 3 best `[id, logprob]` at the same places, best first. The ends agree with `logprobs` of
`cases.json` within 5e-5.

## Prompts and checks

Prompts: `short` (4 ids), `long` (30, beyond the window of 8); the base also `single` (1 id); mistral also `middle` (10);
phi3_longrope's `long` has 38. Those of aLoRA hold its invocation once (`long`), `twice`, `never`, at the `start` or at the `end`.
Each case's run was chosen so that every margin is clear, at least 4 different ids occur, and some log-probability differs from the
base's by more than 0.05; without its invocation an aLoRA is the base, and no more than 5e-5 away from it.

**Checks at generation.** The adapter is saved, read back with `PeftModel.from_pretrained` on a freshly loaded base, and only then
run: by full forwards without a KV cache. The model in memory and the one read back agree (1e-5), and PEFT's own `generate()` with
its cache gives the same ids and log-probabilities within 5e-5, for every case. No combination was refused or left out. The same files run in float64 give log-probabilities at most 1.4e-5 away
(median 4e-6): the oracle's own rounding, well inside a tolerance of 1e-4.

**Mixes.** PEFT's `add_weighted_adapter` with `combination_type="cat"` makes those of LoRA, and gives what the base gives with the
weighted sum of what merging each part adds to its parameters (1e-4). The others are that sum.

**Windows.** All layers of mistral slide, so after 2·(8-1) tokens nothing of an earlier token is left: in `mistral` with virtual
tokens the `long` cases equal the base's result, by design and checked.

**phi3_longrope.** transformers picks the factors at each forward: long ones if the highest position + 1 exceeds
`original_max_position_embeddings` (32). A server that picks once needs runs that stay on one side: `short` cases carry
`max_model_len` 32 (prompt, virtual and new tokens together stay below 32: short factors), `long` cases 128 (the prompt alone is
longer than 32: long factors from the first forward on). The factor on cos and sin, sqrt(1 + ln(128/32)/ln(32)), holds on both
sides: it comes from the config's two lengths, not from the run.

## What PEFT writes

M is the full module path with the prefix `base_model.model.`, such as `base_model.model.model.layers.0.self_attn.q_proj`;
`base_model.model.lm_head` for the head. All tensors F32, except in `llama/adapters/lora_bf16` (BF16).

| adapter | tensors |
|---|---|
| LoRA | `M.lora_A.weight` [r, in], `M.lora_B.weight` [out, r] |
| `lora_bias` | and `M.lora_B.bias` [out]; y += s·(B(Ax) + bias) |
| DoRA | and `M.lora_magnitude_vector` [out], without `.weight` |
| LoRA on the embedding | `M.lora_embedding_A` [r, vocab], `M.lora_embedding_B` [dim, r], without `.weight`; and a copy of the base: `M.base_layer.weight` [vocab, dim] |
| DoRA on the embedding | and `M.lora_magnitude_vector` **[dim]**: norms over the vocabulary, per column of E. e = m/‖E + s·(BA)ᵀ‖_col ∘ (E[id] + s·B·A[:,id]) |
| LoRA on `lm_head` | `base_model.model.lm_head.lora_A.weight`, `.lora_B.weight`, and a copy of the base: `.base_layer.weight` |
| `bias="all"` | `M.base_layer.bias` for modules with LoRA, `M.bias` for all others that have a bias: values that **replace** the base's |
| `bias="lora_only"` | `M.base_layer.bias` only |
| `modules_to_save` | `M.weight`, the whole module, plain name |
| `target_parameters` on experts | `…mlp.experts.base_layer.lora_A.weight` [experts·r, in], expert by expert, `.lora_B.weight` [out, r·experts], rank by rank, for `gate_up_proj`; without `base_layer` for `down_proj`, and for either alone |
| `target_parameters` on a router or a linear module | as LoRA on the module; patterns name the parameter, `gate.weight` |
| `lora_experts_apart` | as PEFT saved experts on transformers 4: LoRA on every matrix, `…block_sparse_moe.experts.3.w1` or `…mlp.experts.3.gate_proj`; PEFT puts them together as it reads them |
| trainable tokens in LoRA | `M.token_adapter.trainable_tokens_delta` [n, dim]; ids in `trainable_token_indices`; rows **replace** |
| TRAINABLE_TOKENS | `M.trainable_tokens_delta` [n, dim], no `token_adapter`; ids in `token_indices` |
| aLoRA | as LoRA; `alora_invocation_tokens` in the config |
| IA3 | `M.ia3_l` [out, 1]; for `feedforward_modules` [1, in] |
| OFT | `M.oft_R.weight` [blocks, b·(b-1)/2], what stands above the diagonals, row by row; [1, …] with `block_share` |
| BOFT | `M.boft_R` [factors, blocks, b, b], `M.boft_s` [out, 1]; one factor where PEFT has no CUDA extension, whatever the config says |
| LN tuning | `M.ln_tuning_layers.weight` [dim]: replaces the norm's weight as stored (Gemma: the w of 1 + w) |
| prompt tuning, P-tuning | `prompt_embeddings` [nv, hidden], no prefix; P-tuning's encoder is not saved |
| prefix tuning | `prompt_embeddings` [nv, layers·2·token_dim], no prefix; with or without `prefix_projection` |

- **Prefix layout.** `token_dim` in the config is KV heads · head_dim and `num_attention_heads` the number of **KV** heads (PEFT
  rewrites both for grouped-query attention). A row is [layer][K, then V][KV head][head_dim]. The values enter the cache as stored.
- **Positions.** Real tokens start at nv for prompt and prefix tuning alike; virtual prompt embeddings take 0..nv-1.
- **Gemma.** Embeddings of virtual tokens are **not** multiplied by sqrt(hidden): transformers 5 scales inside the embedding module,
  and PEFT concatenates after it. LoRA on the embedding **is** multiplied: e = sqrt(hidden)·(E[id] + s·B·A[:,id]).
- **Tied bases.** LoRA on `embed_tokens` leaves the head alone, LoRA on `lm_head` leaves the embedding alone, and the two together
  are independent. Each target also saves a `base_layer.weight` equal to the tied base weight. With `ensure_weight_tying` one
  adapter serves both, and the file holds both forms: `lm_head.lora_A` = `lora_embedding_B`ᵀ, `lm_head.lora_B` = `lora_embedding_A`ᵀ,
  although `target_modules` does not name `lm_head` (it gains `model.embed_tokens`). Trainable tokens on a tied base change the
  rows of the head too, unless the head has a list of its own that is another one; beside LoRA the file holds one copy, under
  `embed_tokens`, and of TRAINABLE_TOKENS two. `modules_to_save=["lm_head"]` unties the head, and so does `["embed_tokens"]`: the head
  stays the base's. With `ensure_weight_tying` either gives both the saved rows, which the file holds twice.
- **modules_to_save matches by plain suffix**, without a dot: `["norm"]` also saves `input_layernorm` and
  `post_attention_layernorm`. `target_modules` matches by `.name`.
- **Patterns.** The first matching key of `rank_pattern` or `alpha_pattern` wins, but the file is written with sorted keys. Where two
  keys match one module, PEFT itself may read another rank than it trained and fail; no fixture has that.
- **all-linear** is saved as a list of full paths without the `base_model.model.` prefix, the head left out.
"""


def kib(folder: Path) -> int:
    return sum(f.stat().st_size for f in folder.rglob("*") if f.is_file()) // 1024


def write(root: Path) -> None:
    rows = ["| family | base KiB | all KiB | cases | about | adapters |", "|---|---|---|---|---|---|"]
    for folder in sorted(p for p in root.iterdir() if p.is_dir()):
        cases = json.loads((folder / "cases.json").read_text())["cases"]
        names = " ".join(sorted(p.name for p in (folder / "adapters").iterdir()))
        rows.append(
            f"| {folder.name} | {kib(folder / 'base')} | {kib(folder)} | {len(cases)} | {NOTES[folder.name]} | {names} |"
        )
    text = TEXT.format(
        transformers=transformers.__version__,
        peft=peft.__version__,
        torch=torch.__version__.split("+")[0],
        total=sum(kib(p) for p in root.iterdir() if p.is_dir()),
        table="\n".join(rows),
    )
    (root / "README.md").write_text(text)
