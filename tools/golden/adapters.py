"""The adapters: what each family gets, how their parameters are made random, how they are saved and read back."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Callable

import peft
import torch
from safetensors.torch import load_file, save_file

import rand
from families import Family

ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
MLP = ["gate_proj", "up_proj", "down_proj"]
LINEARS = ATTENTION + MLP
PHI3_LINEARS = ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"]
NORMS = ["input_layernorm", "post_attention_layernorm", "norm"]
GEMMA_NORMS = NORMS + ["pre_feedforward_layernorm", "post_feedforward_layernorm"]
HEAD_NORMS = ["q_norm", "k_norm"]


@dataclass(frozen=True)
class Adapter:
    name: str
    config: Callable[[], peft.PeftConfig]
    # 16-bit values in the file; a reader in float32 gets them exactly.
    bf16: bool = False


def lora(name: str, targets, r: int = 4, alpha: float = 8, bf16: bool = False, **options) -> Adapter:
    return Adapter(
        name,
        lambda: peft.LoraConfig(task_type="CAUSAL_LM", r=r, lora_alpha=alpha, target_modules=targets, **options),
        bf16,
    )


def ia3(name: str, targets: list[str], feedforward: list[str]) -> Adapter:
    return Adapter(
        name,
        lambda: peft.IA3Config(task_type="CAUSAL_LM", target_modules=targets, feedforward_modules=feedforward),
    )


def norms(name: str, targets: list[str]) -> Adapter:
    return Adapter(name, lambda: peft.LNTuningConfig(task_type="CAUSAL_LM", target_modules=targets))


def prompt_tuning(tokens: int = 5, name: str = "prompt_tuning") -> Adapter:
    return Adapter(
        name,
        lambda: peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=tokens, prompt_tuning_init="RANDOM"),
    )


def prefix_tuning(tokens: int = 4, name: str = "prefix_tuning", projection: bool = False) -> Adapter:
    """With `projection` PEFT trains an MLP, but saves what it puts out: the file has the same form."""
    return Adapter(
        name,
        lambda: peft.PrefixTuningConfig(
            task_type="CAUSAL_LM",
            num_virtual_tokens=tokens,
            prefix_projection=projection,
            encoder_hidden_size=20 if projection else None,
        ),
    )


def p_tuning(tokens: int = 3) -> Adapter:
    return Adapter(
        "p_tuning",
        lambda: peft.PromptEncoderConfig(task_type="CAUSAL_LM", num_virtual_tokens=tokens, encoder_hidden_size=16),
    )


def llama_adapters() -> list[Adapter]:
    """Every option once."""
    return [
        lora("lora_r4", ["q_proj", "v_proj"]),
        lora("lora_all_r8", LINEARS, r=8, alpha=16),
        lora("lora_odd_r3", ["k_proj", "o_proj", "up_proj"], r=3, alpha=7),
        lora("lora_r5_o_down", ["o_proj", "down_proj"], r=5, alpha=5),
        lora("lora_r1", ["v_proj"], r=1, alpha=4),
        lora("rslora", LINEARS, r=6, alpha=6, use_rslora=True),
        lora("dora", LINEARS, use_dora=True),
        lora("dora_rslora_q_only", ["q_proj"], r=3, alpha=5, use_dora=True, use_rslora=True),
        # One key is a suffix, one a full path, one a regular expression.
        lora(
            "patterns",
            ["q_proj", "k_proj", "v_proj", "down_proj"],
            rank_pattern={"v_proj": 7, "model.layers.1.mlp.down_proj": 2, r"layers\.0\.self_attn\.k_proj": 3},
            alpha_pattern={"q_proj": 3, r"layers\.\d+\.mlp\.down_proj": 5},
        ),
        lora("layers_to_transform", ["q_proj", "v_proj", "gate_proj"], layers_to_transform=[1]),
        lora("regex_targets", r".*layers\.0\.(self_attn\.(q|v)_proj|mlp\.down_proj)"),
        lora("exclude_modules", LINEARS, exclude_modules=["o_proj", "layers.0.mlp.gate_proj"]),
        lora("lora_bias", ["q_proj", "v_proj", "o_proj", "down_proj"], lora_bias=True),
        lora("all_linear", "all-linear", r=2, alpha=4),
        lora("embed", ["embed_tokens"]),
        lora("lm_head", ["lm_head"]),
        lora("embed_lm_head", ["embed_tokens", "lm_head", "q_proj"]),
        lora("dora_embed", ["embed_tokens", "v_proj"], use_dora=True),
        lora("dora_lm_head", ["lm_head"], use_dora=True),
        lora("save_lm_head", ["q_proj", "v_proj"], modules_to_save=["lm_head"]),
        lora("save_norm", ["q_proj", "v_proj"], modules_to_save=["norm"]),
        lora("save_embed", ["q_proj", "v_proj"], modules_to_save=["embed_tokens"]),
        lora("lora_tokens", ["q_proj", "v_proj"], trainable_token_indices=[5, 17, 42, 60, 61, 62]),
        Adapter(
            "trainable_tokens",
            lambda: peft.TrainableTokensConfig(
                task_type="CAUSAL_LM", target_modules=["embed_tokens"], token_indices=list(range(10, 60, 2))
            ),
        ),
        lora("lora_bf16", ["q_proj", "k_proj", "v_proj"], bf16=True),
        ia3("ia3", ["k_proj", "v_proj", "down_proj"], ["down_proj"]),
        ia3("ia3_up_input", ["up_proj"], ["up_proj"]),
        ia3("ia3_gate_input", ["gate_proj", "v_proj"], ["gate_proj"]),
        ia3("ia3_gate_up_output", ["gate_proj", "up_proj"], []),
        ia3("ia3_q_o", ["q_proj", "o_proj"], []),
        ia3("ia3_o_input", ["k_proj", "o_proj"], ["o_proj"]),
        prompt_tuning(),
        p_tuning(),
        prefix_tuning(),
        prefix_tuning(name="prefix_projection", projection=True),
        *many_virtual_tokens(),
        norms("ln_tuning", NORMS),
    ]


def many_virtual_tokens() -> list[Adapter]:
    """More than a KV block of 16, more than a window of 8, and no multiple of either."""
    return [prompt_tuning(21, "prompt_long"), prefix_tuning(19, "prefix_long")]


def common(linears: list[str], ia3_targets: list[str], norm_names: list[str], all_norms: list[str] | None = None) -> list[Adapter]:
    out = [
        lora("lora_all_r4", linears),
        lora("dora", linears, r=3, alpha=6, use_dora=True),
        ia3("ia3", ia3_targets, ["down_proj"]),
        prompt_tuning(),
        prefix_tuning(),
        norms("ln_tuning", norm_names),
    ]
    if all_norms:
        out.append(norms("ln_tuning_all", all_norms))
    return out


def tied() -> list[Adapter]:
    """On a tied base: the embedding without the head, the head without the embedding, both with and without ensure_weight_tying."""
    return [
        lora("embed", ["embed_tokens"]),
        lora("lm_head", ["lm_head"]),
        lora("embed_lm_head", ["embed_tokens", "lm_head"]),
        lora("embed_tied", ["embed_tokens", "v_proj"], ensure_weight_tying=True),
    ]


IA3 = ["k_proj", "v_proj", "down_proj"]


def biases() -> list[Adapter]:
    """bias="all" also saves the biases of modules without LoRA; "lora_only" just those with."""
    return [
        lora("bias_all", ["q_proj", "v_proj"], bias="all"),
        lora("bias_lora_only", ["q_proj", "v_proj"], bias="lora_only"),
    ]


def of(family: Family) -> list[Adapter]:
    match family.name:
        case "llama":
            return llama_adapters()
        case "llama_bias":
            return [
                *common(LINEARS, IA3, NORMS),
                *biases(),
                lora("lora_bias", LINEARS, lora_bias=True),
                lora("dora_bias_all", ["q_proj", "o_proj", "up_proj"], use_dora=True, bias="all"),
                ia3("ia3_outputs", ["q_proj", "o_proj", "gate_proj"], []),
            ]
        case "llama3":
            return [
                *common(LINEARS, IA3, NORMS),
                *tied(),
                lora("save_lm_head", ["q_proj"], modules_to_save=["lm_head"]),
                lora("lora_tokens", ["q_proj", "v_proj"], trainable_token_indices=list(range(10, 60, 2))),
            ]
        case "qwen2":
            return [*common(LINEARS, IA3, NORMS), *tied(), *biases()]
        case "qwen3":
            return common(LINEARS, IA3, NORMS, NORMS + HEAD_NORMS)
        case "phi3" | "phi3_longrope":
            out = common(PHI3_LINEARS, ["qkv_proj", "down_proj"], NORMS)
            return [*out, ia3("ia3_gate_up", ["gate_up_proj", "o_proj"], ["gate_up_proj"])]
        case "gemma2":
            return [*common(LINEARS, IA3, GEMMA_NORMS), *tied()[:2]]
        case "gemma3":
            return [*common(LINEARS, IA3, GEMMA_NORMS, GEMMA_NORMS + HEAD_NORMS), *tied()[:2], *many_virtual_tokens()]
        case "mistral":
            return [*common(LINEARS, IA3, NORMS), *many_virtual_tokens()]
        case _:
            return common(LINEARS, IA3, NORMS)


def randomise(model: peft.PeftModel, family: Family, adapter: Adapter) -> None:
    """Random values for every parameter that the adapter trains: a B of zeros or a scale of ones would test nothing.

    Scales are such that an adapter changes the logits clearly without drowning the base.
    """
    with torch.no_grad():
        for name, p in model.named_parameters():
            if not p.requires_grad:
                continue
            at = (family.name, adapter.name, name)
            if "lora_embedding_A" in name:
                value = rand.normal(p.shape, 1.0, *at)
            elif "lora_embedding_B" in name:
                value = rand.normal(p.shape, 0.4 * family.embed_std, *at)
            elif "lora_A" in name:
                value = rand.normal(p.shape, p.shape[1] ** -0.5, *at)
            elif "lora_B" in name:
                value = rand.normal(p.shape, 0.3, *at)
            elif "lora_magnitude_vector" in name:
                value = p * rand.uniform(p.shape, 0.5, 1.5, *at)
            elif "ia3_l" in name:
                value = 1 + rand.normal(p.shape, 0.5, *at)
            elif "trainable_tokens_delta" in name:
                value = rand.normal(p.shape, family.embed_std, *at)
            elif "prompt_encoder" in name:
                value = rand.normal(p.shape, _prompt_std(name, family, adapter), *at)
            elif "ln_tuning_layers" in name or p.dim() == 1:
                # A norm or a bias as a whole: near the base's value, so that "replaces" and "adds to" differ.
                value = p + rand.normal(p.shape, 0.4, *at)
            elif "modules_to_save" in name:
                value = p + rand.normal(p.shape, 0.1, *at)
            else:
                raise AssertionError(f"no rule for {name}")
            if adapter.bf16:
                value = value.bfloat16().float()
            p.copy_(value)


def _prompt_std(name: str, family: Family, adapter: Adapter) -> float:
    if adapter.name in ("prefix_tuning", "prefix_long"):
        return 1.0
    if "transform" in name or "mlp_head" in name:
        return 0.4
    # Embeddings of virtual tokens enter as they are, so with the scale that real tokens have after Gemma's factor.
    return 1.7 if family.name.startswith("gemma") else family.embed_std


def build(base, family: Family, adapter: Adapter, out: Path) -> peft.PeftModel:
    """Wraps `base`, randomises, saves to `out`; returns the model in memory, to be compared with what the files give."""
    torch.manual_seed(0)
    model = peft.get_peft_model(base, adapter.config())
    randomise(model, family, adapter)
    model.save_pretrained(out)
    (out / "README.md").unlink(missing_ok=True)
    # PEFT writes where the base lay on the machine, and sets in an order that changes from run to run.
    path = out / "adapter_config.json"
    config = json.loads(path.read_text())
    config["base_model_name_or_path"] = f"golden/{family.name}"
    for key in ("target_modules", "exclude_modules", "feedforward_modules", "modules_to_save"):
        if isinstance(config.get(key), list):
            config[key].sort()
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    if adapter.bf16:
        path = out / "adapter_model.safetensors"
        save_file({k: v.bfloat16() for k, v in load_file(path).items()}, path, metadata={"format": "pt"})
    return model.eval()


def load(base, out: Path) -> peft.PeftModel:
    return peft.PeftModel.from_pretrained(base, out).eval()
