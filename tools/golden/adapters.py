"""The adapters: what each family gets, how their parameters are made random, how they are saved and read back."""

import json
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Callable

import peft
import torch
from peft.tuners.boft import layer as boft_layer
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


# BOFT's CUDA extension lays blocks along the diagonal of a matrix. Without it PEFT makes every BOFT one of a single factor.
boft_layer._FBD_CUDA = SimpleNamespace(
    forward=lambda factors: [torch.stack([torch.block_diag(*blocks) for blocks in factors])]
)


@dataclass(frozen=True)
class Adapter:
    name: str
    config: Callable[[], peft.PeftConfig]
    # 16-bit values in the file; a reader in float32 gets them exactly.
    bf16: bool = False
    # Experts and routers in the file one by one, as PEFT saved them where each was a linear module.
    apart: bool = False


def lora(name: str, targets, r: int = 4, alpha: float = 8, bf16: bool = False, apart: bool = False, **options) -> Adapter:
    return Adapter(
        name,
        lambda: peft.LoraConfig(task_type="CAUSAL_LM", r=r, lora_alpha=alpha, target_modules=targets, **options),
        bf16,
        apart,
    )


def ia3(name: str, targets: list[str], feedforward: list[str]) -> Adapter:
    return Adapter(
        name,
        lambda: peft.IA3Config(task_type="CAUSAL_LM", target_modules=targets, feedforward_modules=feedforward),
    )


def rslora() -> Adapter:
    return lora("rslora", LINEARS, r=6, alpha=6, use_rslora=True)


def dora_of_q() -> Adapter:
    return lora("dora_rslora_q_only", ["q_proj"], r=3, alpha=5, use_dora=True, use_rslora=True)


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


def multitask(tokens: int = 6, ranks: int = 1, name: str = "multitask") -> Adapter:
    return Adapter(
        name,
        lambda: peft.MultitaskPromptTuningConfig(
            task_type="CAUSAL_LM", num_virtual_tokens=tokens, num_tasks=1, num_ranks=ranks, prompt_tuning_init="RANDOM"
        ),
    )


def cpt() -> Adapter:
    """A template, an input and a label, of which PEFT saves the sum of their tokens and what was learned."""
    kinds = [1, 2, 2, 3, 4, 0]
    return Adapter(
        "cpt",
        lambda: peft.CPTConfig(
            task_type="CAUSAL_LM",
            cpt_token_ids=[5, 17, 42, 60, 61, 9],
            cpt_mask=[1] * 6,
            cpt_tokens_type_mask=kinds,
            opt_projection_epsilon=20.0,
            opt_projection_format_epsilon=40.0,
        ),
    )


def llama_adapters() -> list[Adapter]:
    """Every option once."""
    return [
        lora("lora_r4", ["q_proj", "v_proj"]),
        lora("lora_all_r8", LINEARS, r=8, alpha=16),
        lora("lora_odd_r3", ["k_proj", "o_proj", "up_proj"], r=3, alpha=7),
        lora("lora_r5_o_down", ["o_proj", "down_proj"], r=5, alpha=5),
        lora("lora_r1", ["v_proj"], r=1, alpha=4),
        rslora(),
        lora("dora", LINEARS, use_dora=True),
        dora_of_q(),
        # One key is a suffix, one a full path, one a regular expression.
        lora(
            "patterns",
            ["q_proj", "k_proj", "v_proj", "down_proj"],
            rank_pattern={"v_proj": 7, "model.layers.1.mlp.down_proj": 2, r"layers\.0\.self_attn\.k_proj": 3},
            alpha_pattern={"q_proj": 3, r"layers\.\d+\.mlp\.down_proj": 5},
        ),
        # Of the last layer what leaves its K and V alone.
        lora("behind_kv", ["q_proj", "o_proj", "gate_proj", "up_proj", "down_proj"], layers_to_transform=[1]),
        lora("layers_to_transform", ["q_proj", "v_proj", "gate_proj"], layers_to_transform=[1]),
        lora("regex_targets", r".*layers\.0\.(self_attn\.(q|v)_proj|mlp\.down_proj)"),
        lora("exclude_modules", LINEARS, exclude_modules=["o_proj", "layers.0.mlp.gate_proj"]),
        lora("lora_bias", ["q_proj", "v_proj", "o_proj", "down_proj"], lora_bias=True),
        lora("all_linear", "all-linear", r=2, alpha=4),
        lora("lora_parameters", ["v_proj"], target_parameters=["self_attn.q_proj.weight", "mlp.down_proj.weight"],
             rank_pattern={"down_proj.weight": 3}),
        lora("embed", ["embed_tokens"]),
        lora("lm_head", ["lm_head"]),
        lora("embed_lm_head", ["embed_tokens", "lm_head", "q_proj"]),
        lora("dora_embed", ["embed_tokens", "v_proj"], use_dora=True),
        lora("dora_lm_head", ["lm_head"], use_dora=True),
        lora("save_lm_head", ["q_proj", "v_proj"], modules_to_save=["lm_head"]),
        lora("save_norm", ["q_proj", "v_proj"], modules_to_save=["norm"]),
        lora("save_embed", ["q_proj", "v_proj"], modules_to_save=["embed_tokens"]),
        lora("lora_tokens", ["q_proj", "v_proj"], trainable_token_indices=[5, 17, 42, 60, 61, 62]),
        lora("lora_tokens_head", ["v_proj"], trainable_token_indices={"embed_tokens": [70, 3, 41], "lm_head": [99, 0, 57, 18]}),
        trainable_tokens(),
        trainable_tokens("trainable_tokens_head", ["embed_tokens", "lm_head"]),
        lora("lora_bf16", ["q_proj", "k_proj", "v_proj"], bf16=True),
        ia3("ia3", ["k_proj", "v_proj", "down_proj"], ["down_proj"]),
        ia3("ia3_up_input", ["up_proj"], ["up_proj"]),
        ia3("ia3_gate_input", ["gate_proj", "v_proj"], ["gate_proj"]),
        ia3("ia3_gate_up_output", ["gate_proj", "up_proj"], []),
        ia3("ia3_q_o", ["q_proj", "o_proj"], []),
        of_task(peft.IA3Config, "ia3_save_embed", ["k_proj", "down_proj"], feedforward_modules=["down_proj"], modules_to_save=["embed_tokens"]),
        ia3("ia3_o_input", ["k_proj", "o_proj"], ["o_proj"]),
        prompt_tuning(),
        p_tuning(),
        multitask(),
        multitask(tokens=4, ranks=3, name="multitask_r3"),
        cpt(),
        prefix_tuning(),
        prefix_tuning(name="prefix_projection", projection=True),
        *many_virtual_tokens(),
        norms("ln_tuning", NORMS),
        *folded(),
        *turned(),
        *sparse(),
        *rotated(),
        *activated(),
        *dense(),
        *saved(),
    ]


def activated() -> list[Adapter]:
    """aLoRA: invocations of several tokens and of one, on every linear module and on the head."""
    return [
        lora("alora", LINEARS, r=8, alpha=16, alora_invocation_tokens=[17, 42, 8]),
        lora("alora_bias", ["k_proj", "v_proj", "down_proj"], lora_bias=True, alora_invocation_tokens=[61, 61]),
        lora("alora_head", ["q_proj", "lm_head"], r=3, alpha=5, use_rslora=True, alora_invocation_tokens=[23]),
    ]


def of_task(config: type[peft.PeftConfig], name: str, targets, **options) -> Adapter:
    return Adapter(name, lambda: config(task_type="CAUSAL_LM", target_modules=targets, **options))


def folded() -> list[Adapter]:
    """Methods whose files hold a product of two small matrices in another form, in every form they have."""
    adalora = dict(init_r=6, target_r=4, lora_alpha=9, total_step=10)
    lokr = ["q_proj", "v_proj", "o_proj", "up_proj", "down_proj"]
    bank = dict(vector_length=8, num_vectors=20)
    return [
        of_task(peft.AdaLoraConfig, "adalora", LINEARS, **adalora),
        of_task(peft.AdaLoraConfig, "adalora_pruned", ["q_proj", "k_proj", "v_proj"], **adalora),
        of_task(peft.LoHaConfig, "loha", LINEARS, r=3, alpha=5, rank_pattern={"v_proj": 2}, alpha_pattern={"o_proj": 3}),
        of_task(peft.LoKrConfig, "lokr", lokr, r=2, alpha=3),
        of_task(peft.LoKrConfig, "lokr_both", lokr, r=1, alpha=2, decompose_both=True, decompose_factor=8),
        of_task(peft.LoKrConfig, "lokr_whole", ["k_proj", "gate_proj"], r=8, alpha=4),
        of_task(peft.VeraConfig, "vera", ["q_proj", "k_proj", "down_proj"], r=12),
        of_task(peft.MissConfig, "miss", LINEARS, r=5),
        of_task(peft.MissConfig, "miss_mini", ["q_proj", "v_proj", "down_proj"], r=4, mini_r=8, init_weights="mini"),
        of_task(peft.HRAConfig, "hra", LINEARS, r=4),
        of_task(peft.HRAConfig, "hra_orthonormal", ["q_proj", "o_proj", "down_proj"], r=3, apply_GS=True),
        of_task(peft.DeloraConfig, "delora", LINEARS, r=4, rank_pattern={"k_proj": 2}),
        of_task(peft.VBLoRAConfig, "vblora", LINEARS, r=3, topk=2, **bank),
        of_task(peft.VBLoRAConfig, "vblora_topk", ["q_proj", "v_proj"], r=2, topk=3, save_only_topk_weights=True, **bank),
        of_task(peft.VBLoRAConfig, "vblora_top1", ["q_proj", "v_proj"], r=4, topk=1, save_only_topk_weights=True, **bank),
        of_task(peft.GraloraConfig, "gralora", LINEARS, r=4, alpha=6, gralora_k=2),
        of_task(peft.GraloraConfig, "gralora_hybrid", ["q_proj", "down_proj"], r=8, hybrid_r=2, alpha=8, gralora_k=4),
        of_task(peft.BeftConfig, "beft", ["q_proj", "v_proj", "down_proj"]),
    ]


def turned() -> list[Adapter]:
    """RoAd in every variant, groups of several sizes, some of whole modules; in one layer, and on the head."""
    road = lambda name, targets, variant, size: of_task(peft.RoadConfig, name, targets, variant=variant, group_size=size)
    return [
        road("road_1", LINEARS, "road_1", 8),
        road("road_2", ["q_proj", "v_proj", "down_proj"], "road_2", 16),
        road("road_4", ["k_proj", "o_proj", "gate_proj", "up_proj"], "road_4", 2),
        road("road_whole", ["up_proj"], "road_4", 72),
        road("road_layer", r".*layers\.1\.(self_attn\.(q|k)_proj|mlp\.up_proj)", "road_1", 4),
        road("road_lm_head", ["lm_head", "v_proj"], "road_2", 4),
    ]


def sparse() -> list[Adapter]:
    """SHiRA on square and on other modules, on some of those that a stack has, nearly dense, and on the head."""
    shira = lambda name, targets, r, **options: of_task(peft.ShiraConfig, name, targets, r=r, **options)
    return [
        shira("shira", LINEARS, 2, random_seed=3),
        shira("shira_r7", ["k_proj", "up_proj", "down_proj"], 7, random_seed=5),
        shira("shira_r1", ["q_proj", "v_proj", "gate_proj"], 1),
        shira("shira_nearly_dense", ["k_proj", "v_proj"], 10, random_seed=7),
        shira("shira_layer", r".*layers\.0\.(self_attn\.o_proj|mlp\.gate_proj)", 4, random_seed=9),
        shira("shira_lm_head", ["lm_head", "q_proj"], 3, random_seed=11),
    ]


def fused() -> list[Adapter]:
    """On modules that several projections share: groups of 48 lie across gate and up."""
    return [
        of_task(peft.RoadConfig, "road_fused", ["qkv_proj", "gate_up_proj"], variant="road_2", group_size=16),
        of_task(peft.RoadConfig, "road_across", ["gate_up_proj"], variant="road_1", group_size=48),
        of_task(peft.ShiraConfig, "shira", PHI3_LINEARS, r=3, random_seed=3),
        of_task(peft.OFTConfig, "oft", PHI3_LINEARS, oft_block_size=8),
    ]


def rotated() -> list[Adapter]:
    """Methods that turn a module's inputs, block by block. Widths are 32 and 72."""
    exact = dict(use_cayley_neumann=False)
    return [
        of_task(peft.OFTConfig, "oft", LINEARS, oft_block_size=8),
        of_task(peft.OFTConfig, "oft_exact", LINEARS, oft_block_size=4, **exact),
        # 32 by default, which gives way to 36 on 72 inputs.
        of_task(peft.OFTConfig, "oft_default", ["q_proj", "down_proj"]),
        # 3 blocks give way to 2 on 32 inputs.
        of_task(peft.OFTConfig, "oft_blocks", ["o_proj", "down_proj"], r=3, oft_block_size=0),
        of_task(peft.OFTConfig, "oft_terms_2", ["k_proj", "up_proj"], oft_block_size=8, num_cayley_neumann_terms=2),
        of_task(peft.OFTConfig, "oft_terms_3", ["q_proj", "k_proj", "v_proj"], oft_block_size=16, num_cayley_neumann_terms=3),
        of_task(peft.OFTConfig, "oft_terms_8", ["gate_proj", "o_proj"], oft_block_size=4, num_cayley_neumann_terms=8),
        of_task(peft.OFTConfig, "oft_constrained", ["q_proj", "up_proj"], oft_block_size=8, coft=True, eps=0.9),
        of_task(peft.OFTConfig, "oft_shared", ["k_proj", "gate_proj", "down_proj"], oft_block_size=8, block_share=True),
        of_task(
            peft.OFTConfig,
            "oft_layer",
            ["v_proj", "up_proj"],
            oft_block_size=16,
            layers_to_transform=[1],
            coft=True,
            eps=0.7,
            block_share=True,
            **exact,
        ),
        of_task(peft.OFTConfig, "oft_head", ["lm_head", "q_proj"], oft_block_size=8),
        of_task(peft.BOFTConfig, "boft", LINEARS, boft_block_size=4),
        # Blocks of 4 and of 9 inputs.
        of_task(peft.BOFTConfig, "boft_blocks", ["q_proj", "down_proj"], boft_block_size=0, boft_block_num=8),
        of_task(peft.BOFTConfig, "boft_butterfly", LINEARS, boft_block_size=4, boft_n_butterfly_factor=2),
        of_task(
            peft.BOFTConfig,
            "boft_butterfly_4",
            ["k_proj", "o_proj", "up_proj"],
            boft_block_size=0,
            boft_block_num=8,
            boft_n_butterfly_factor=4,
        ),
    ]


def dense() -> list[Adapter]:
    """Methods whose change of a weight is no small product."""
    # Keys that are a tail, an expression and a whole path; the last has no other way to win than to be the path.
    frequencies = {"v_proj": 12, r"layers\.1\.(mlp\.down_proj|self_attn\.o_proj)": 33, "model.layers.0.self_attn.q_proj": 7}
    return [
        of_task(peft.FourierFTConfig, "fourierft", LINEARS, n_frequency=40, scaling=20.0, n_frequency_pattern=frequencies),
        of_task(peft.FourierFTConfig, "fourierft_seed", ["q_proj", "gate_proj"], n_frequency=72 * 8, scaling=5.0, random_loc_seed=3),
        of_task(peft.C3AConfig, "c3a", LINEARS, block_size=8, block_size_pattern={"q_proj": 16, "model.layers.1.self_attn.o_proj": 32}),
        of_task(peft.RandLoraConfig, "randlora", ["q_proj", "k_proj", "down_proj"], r=5, randlora_alpha=1),
        of_task(peft.RandLoraConfig, "randlora_sparse", ["v_proj", "up_proj"], r=8, randlora_alpha=1, sparse=True),
        of_task(peft.MissConfig, "miss_bat", LINEARS, r=8, init_weights="bat"),
        of_task(peft.HiraConfig, "hira", LINEARS, r=4, rank_pattern={"k_proj": 2}),
    ]


def saved() -> list[Adapter]:
    """Modules that the file has whole, beside adapters of several methods and alone."""
    # PEFT's word for no module at all.
    nothing = "dummy-target-modules"
    return [
        lora("save_linears", ["q_proj", "v_proj"], modules_to_save=["k_proj", "down_proj"]),
        lora("save_mlp_bf16", LINEARS, modules_to_save=["layers.1.mlp", "model.norm"], bf16=True),
        lora("save_alone", nothing, modules_to_save=["layers.1.self_attn", "layernorm", "lm_head"]),
        Adapter(
            "ia3_save_lm_head",
            lambda: peft.IA3Config(
                task_type="CAUSAL_LM",
                target_modules=["k_proj", "down_proj"],
                feedforward_modules=["down_proj"],
                modules_to_save=["lm_head", "o_proj"],
            ),
        ),
    ]


def many_virtual_tokens() -> list[Adapter]:
    """More than a KV block of 16, more than a window of 8, and no multiple of either."""
    return [prompt_tuning(21, "prompt_long"), prefix_tuning(19, "prefix_long")]


def common(
    linears: list[str],
    ia3_targets: list[str],
    norm_names: list[str],
    all_norms: list[str] | None = None,
    feedforward: list[str] = ["down_proj"],
) -> list[Adapter]:
    out = [
        lora("lora_all_r4", linears),
        lora("dora", linears, r=3, alpha=6, use_dora=True),
        ia3("ia3", ia3_targets, feedforward),
        prompt_tuning(),
        prefix_tuning(),
        norms("ln_tuning", norm_names),
    ]
    if all_norms:
        out.append(norms("ln_tuning_all", all_norms))
    return out


def classes(linears: list[str] = LINEARS, but: tuple[str, ...] = ()) -> list[Adapter]:
    """Of the op classes that `common` has not, one adapter each, so that every family meets them. The large ones are on a
    family's first and last linear alone."""
    ends = [linears[0], linears[-1]]
    out = [
        of_task(peft.OFTConfig, "oft", linears, oft_block_size=8),
        of_task(peft.ShiraConfig, "shira", ends, r=2, random_seed=3),
        of_task(peft.RoadConfig, "road_1", linears, variant="road_1", group_size=8),
        of_task(peft.C3AConfig, "c3a", ends, block_size=8),
        of_task(peft.BeftConfig, "beft", linears),
    ]
    return [adapter for adapter in out if adapter.name not in but]


EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]


def beside_experts(all_norms: list[str] | None = None) -> list[Adapter]:
    """What does not touch the experts, and those that do: both parameters, one, the router, patterns, and experts one by one."""
    return [
        *common(ATTENTION, ["k_proj", "v_proj", "o_proj"], NORMS, all_norms, feedforward=["o_proj"]),
        lora("embed_lm_head", ["embed_tokens", "lm_head", "q_proj"]),
        lora("lora_experts", ["q_proj"], r=2, target_parameters=EXPERTS),
        lora("lora_experts_down", [], r=3, alpha=6, use_rslora=True, target_parameters=["down_proj"], bf16=True),
        lora("lora_experts_up", ["v_proj"], r=1, target_parameters=["layers.1.mlp.experts.gate_up_proj"]),
        lora("lora_router", ["o_proj"], r=2, alpha=2, target_parameters=["gate.weight"]),
        # A tail with its dots as any character, a full path, an expression.
        lora(
            "lora_experts_patterns",
            ["k_proj"],
            r=2,
            target_parameters=[*EXPERTS, "mlp.gate.weight"],
            rank_pattern={"experts.down_proj": 3, "model.layers.1.mlp.experts.gate_up_proj": 4},
            alpha_pattern={r"layers\.\d\.mlp\.experts\.gate_up_proj": 5, "gate.weight": 3},
        ),
        lora(
            "lora_experts_apart",
            ["q_proj"],
            r=2,
            apart=True,
            target_parameters=[*EXPERTS, "mlp.gate.weight"],
            # What PEFT makes of two ranks of 2.
            rank_pattern={r".*\.gate_up_proj": 4},
            alpha_pattern={r".*\.gate_up_proj": 16},
        ),
    ]


def tied() -> list[Adapter]:
    """On a tied base: the embedding without the head, the head without the embedding, both with and without ensure_weight_tying."""
    return [
        lora("embed", ["embed_tokens"]),
        lora("lm_head", ["lm_head"]),
        lora("embed_lm_head", ["embed_tokens", "lm_head"]),
        lora("embed_tied", ["embed_tokens", "v_proj"], ensure_weight_tying=True),
    ]


def trainable_tokens(name: str = "trainable_tokens", targets: list[str] = ["embed_tokens"]) -> Adapter:
    return of_task(peft.TrainableTokensConfig, name, targets, token_indices=list(range(10, 60, 2)))


def tied_rows() -> list[Adapter]:
    """Rows of a tied embedding: PEFT gives them to the head, unless it has a list of its own or the embedding is saved whole."""
    tokens = list(range(10, 60, 2))
    return [
        lora("lora_tokens", ["q_proj", "v_proj"], trainable_token_indices=tokens),
        trainable_tokens(),
        lora("lora_tokens_head", ["q_proj"], trainable_token_indices={"lm_head": [77, 5, 31]}),
        lora("lora_tokens_same", ["q_proj"], trainable_token_indices={"embed_tokens": [8, 5], "lm_head": [8, 5]}),
        lora("lora_tokens_apart", ["q_proj"], trainable_token_indices={"embed_tokens": [8, 5, 66], "lm_head": [5, 8]}),
        lora("save_embed", ["q_proj"], modules_to_save=["embed_tokens"]),
        lora("save_embed_tied", ["q_proj"], modules_to_save=["embed_tokens"], ensure_weight_tying=True),
        lora("save_head_tied", ["v_proj"], modules_to_save=["lm_head"], ensure_weight_tying=True),
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
                *classes(),
            ]
        case "llama3":
            return [
                *common(LINEARS, IA3, NORMS),
                *tied(),
                lora("save_lm_head", ["q_proj"], modules_to_save=["lm_head"]),
                *tied_rows(),
                *classes(),
            ]
        case "qwen2":
            return [
                *common(LINEARS, IA3, NORMS),
                *tied(),
                *biases(),
                *tied_rows()[:2],
                multitask(tokens=3, ranks=2),
                cpt(),
                *folded(),
                *turned(),
                *sparse(),
                *activated(),
                *dense(),
                *saved(),
                lora("save_lm_head", ["q_proj", "v_proj"], modules_to_save=["lm_head"]),
                of_task(peft.HRAConfig, "hra_biases", ["q_proj", "o_proj"], r=2, bias="hra_only"),
                of_task(peft.MissConfig, "miss_biases", ["v_proj", "o_proj"], r=2, bias="all"),
                *rotated(),
                of_task(peft.OFTConfig, "oft_biases", ["q_proj", "o_proj"], oft_block_size=8, bias="all"),
                of_task(peft.BOFTConfig, "boft_biases", ["k_proj", "v_proj"], boft_block_size=8, bias="boft_only"),
                # What llama has besides, so that both have every method.
                rslora(),
                dora_of_q(),
                p_tuning(),
            ]
        case "qwen3":
            return [*common(LINEARS, IA3, NORMS, NORMS + HEAD_NORMS), *classes()]
        case "mixtral":
            return [*beside_experts(), *classes(ATTENTION)]
        case "qwen3_moe":
            dense_layers = ia3("ia3_dense", ["v_proj", "down_proj"], ["down_proj"])
            return [*beside_experts(NORMS + HEAD_NORMS), dense_layers, *classes(ATTENTION)]
        case "phi3" | "phi3_longrope":
            out = common(PHI3_LINEARS, ["qkv_proj", "down_proj"], NORMS)
            gate_up = ia3("ia3_gate_up", ["gate_up_proj", "o_proj"], ["gate_up_proj"])
            if family.name == "phi3_longrope":
                return [*out, gate_up, *classes(PHI3_LINEARS)]
            return [
                *out,
                of_task(peft.FourierFTConfig, "fourierft", PHI3_LINEARS, n_frequency=30, scaling=20.0),
                lora("save_qkv", ["down_proj"], modules_to_save=["qkv_proj"], bf16=True),
                gate_up,
                *fused(),
                *classes(PHI3_LINEARS, but=("oft", "shira")),
            ]
        case "gemma2":
            whole = lora("save_lm_head_norm", ["q_proj"], modules_to_save=["lm_head", "norm"], bf16=True)
            rows = tied_rows()
            return [*common(LINEARS, IA3, GEMMA_NORMS), *tied()[:2], *rows[:2], rows[-2], whole, *classes()]
        case "gemma3":
            return [*common(LINEARS, IA3, GEMMA_NORMS, GEMMA_NORMS + HEAD_NORMS), *tied()[:2], tied_rows()[0], *many_virtual_tokens(), *classes()]
        case "mistral":
            return [*common(LINEARS, IA3, NORMS), *many_virtual_tokens(), *classes()]
        case _:
            return [*common(LINEARS, IA3, NORMS), *classes()]


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
            elif "lora_E" in name or "hra_u" in name or "vblora_logits" in name:
                value = rand.normal(p.shape, 1.0, *at)
            elif "hada_" in name or "lokr_" in name:
                value = rand.normal(p.shape, 0.4, *at)
            elif "vera_lambda" in name or "delora_lambda" in name:
                value = rand.uniform(p.shape, 0.5, 1.5, *at)
            elif "miss_block" in name or "vector_bank" in name:
                value = rand.normal(p.shape, 0.1, *at)
            elif "road_theta" in name:
                value = rand.normal(p.shape, 0.7, *at)
            elif "road_alpha" in name:
                value = rand.uniform(p.shape, 0.6, 1.4, *at)
            elif "shira_weight" in name:
                value = rand.normal(p.shape, 0.3, *at)
            elif "oft_R" in name:
                value = rand.normal(p.shape, 0.2, *at)
            elif "boft_s" in name:
                value = 1 + rand.normal(p.shape, 0.3, *at)
            elif "fourierft_spectrum" in name or "randlora_lambda" in name or "hira_A" in name:
                value = rand.normal(p.shape, 1.0, *at)
            elif "c3a_kernel" in name:
                value = rand.normal(p.shape, 3.0, *at)
            elif "randlora_gamma" in name:
                value = rand.normal(p.shape, 0.1, *at)
            elif "hira_B" in name:
                value = rand.normal(p.shape, 0.5, *at)
            elif "beft_bias" in name:
                value = rand.normal(p.shape, 0.4, *at)
            elif "lora_magnitude_vector" in name:
                value = p * rand.uniform(p.shape, 0.5, 1.5, *at)
            elif "ia3_l" in name:
                value = 1 + rand.normal(p.shape, 0.5, *at)
            elif "trainable_tokens_delta" in name:
                value = rand.normal(p.shape, family.embed_std, *at)
            elif "prefix_task" in name:
                value = rand.normal(p.shape, 1.0, *at)
            elif "prompt_encoder" in name:
                value = rand.normal(p.shape, _prompt_std(name, family, adapter), *at)
            elif "ln_tuning_layers" in name or p.dim() == 1:
                # A norm or a bias as a whole: near the base's value, so that "replaces" and "adds to" differ.
                value = p + rand.normal(p.shape, 0.4, *at)
            elif "modules_to_save" in name:
                value = p + rand.normal(p.shape, 0.1, *at)
            else:
                raise AssertionError(f"no rule for {name}")
            if adapter.apart and "experts.base_layer.lora_B" in name:
                value = value * of_halves(value)
            if adapter.bf16:
                value = value.bfloat16().float()
            p.copy_(value)


def of_halves(b: torch.Tensor) -> torch.Tensor:
    """Where B of `gate_up_proj`, [gate and up, ranks * experts], holds a rank of its own for each of gate and up."""
    ranks = 4
    halves = torch.zeros(2, b.shape[0] // 2, 2, ranks // 2, b.shape[1] // ranks)
    halves[0, :, 0], halves[1, :, 1] = 1, 1
    return halves.reshape(b.shape)


def _prompt_std(name: str, family: Family, adapter: Adapter) -> float:
    if adapter.name in ("prefix_tuning", "prefix_long"):
        return 1.0
    if "transform" in name or "mlp_head" in name:
        return 0.4
    # Embeddings of virtual tokens enter as they are, so with the scale that real tokens have after Gemma's factor.
    return 1.7 if family.name.startswith("gemma") else family.embed_std


def prune(model: peft.PeftModel) -> None:
    """What the end of AdaLoRA's schedule does: every module keeps some rows, and one keeps none."""
    kept = lambda name: [] if "layers.1.self_attn.k_proj" in name else [0, 2, 3] if "v_proj" in name else [1, 4]
    names = [name.removesuffix(".default") for name, _ in model.base_model.model.named_parameters() if "lora_E" in name]
    pattern = {name: [row in kept(name) for row in range(6)] for name in names}
    model.peft_config["default"].rank_pattern = pattern
    model.base_model.resize_modules_by_rank_pattern(pattern, "default")


def build(base, family: Family, adapter: Adapter, out: Path) -> peft.PeftModel:
    """Wraps `base`, randomises, saves to `out`; returns the model in memory, to be compared with what the files give."""
    torch.manual_seed(0)
    model = peft.get_peft_model(base, adapter.config())
    randomise(model, family, adapter)
    if adapter.name == "adalora_pruned":
        prune(model)
    model.save_pretrained(out)
    (out / "README.md").unlink(missing_ok=True)
    # PEFT writes where the base lay on the machine, and sets in an order that changes from run to run.
    path = out / "adapter_config.json"
    config = json.loads(path.read_text())
    config["base_model_name_or_path"] = f"golden/{family.name}"
    for key in ("target_modules", "target_parameters", "exclude_modules", "feedforward_modules", "modules_to_save"):
        if isinstance(config.get(key), list):
            config[key].sort()
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    if adapter.apart:
        take_apart(out, base.config, family)
    if adapter.bf16:
        path = out / "adapter_model.safetensors"
        save_file({k: v.bfloat16() for k, v in load_file(path).items()}, path, metadata={"format": "pt"})
    return model.eval()


def take_apart(out: Path, config, family: Family) -> None:
    """The same adapter with a LoRA for each expert's matrices, in the spelling of transformers 4. PEFT puts them together again."""
    block, names = {
        "mixtral": ("block_sparse_moe", ("w1", "w3", "w2")),
        "qwen3_moe": ("mlp", ("gate_proj", "up_proj", "down_proj")),
    }[family.name]
    path, tensors, experts = out / "adapter_model.safetensors", {}, 0
    for key, value in load_file(path).items():
        module, _, parameter = key.partition(".lora_")
        module = module.replace(".mlp.", f".{block}.")
        if ".experts" not in module:
            tensors[f"{module}.lora_{parameter}"] = value
            continue
        count = experts = getattr(config, "num_local_experts", None) or config.num_experts
        stack = module.removesuffix(".base_layer")
        of_gate_up = stack != module
        for expert in range(count):
            if parameter.startswith("A"):
                own = value.reshape(count, -1, value.shape[1])[expert]
                halves = own.chunk(2) if of_gate_up else [own]
            else:
                own = value.reshape(value.shape[0], -1, count)[:, :, expert]
                rank = own.shape[1] // 2
                halves = [own.chunk(2)[0][:, :rank], own.chunk(2)[1][:, rank:]] if of_gate_up else [own]
            for name, half in zip(names[:2] if of_gate_up else names[2:], halves):
                tensors[f"{stack}.{expert}.{name}.lora_{parameter}"] = half.contiguous()
    save_file(tensors, path, metadata={"format": "pt"})
    path = out / "adapter_config.json"
    saved = json.loads(path.read_text())
    # Dense layers have names of matrices in common with Qwen3-MoE's experts.
    of_experts = names if family.name == "mixtral" else [f"experts.{e}.{name}" for e in range(experts) for name in names]
    saved["target_modules"] = sorted([*saved["target_modules"], "gate", *of_experts])
    saved |= {"target_parameters": None, "rank_pattern": {}, "alpha_pattern": {}}
    path.write_text(json.dumps(saved, indent=2, sort_keys=True) + "\n")


def load(base, out: Path) -> peft.PeftModel:
    return peft.PeftModel.from_pretrained(base, out).eval()
