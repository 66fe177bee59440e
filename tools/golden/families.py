"""The tiny base models: one per family, random weights, sizes chosen to make mistakes visible.

- No two dimensions that a loader might swap are equal, and the vocabulary is no multiple of 8, so that tails of blocked loops run.
- Where a family allows it (Qwen3, Gemma), heads * head_dim differs from the hidden size.
- Norm weights and biases are random: ones and zeros would hide a forgotten gain or bias.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Callable

import torch
import transformers as tf

import rand

WINDOW = 8
# Two families have an epsilon large enough that reading it wrongly shows.
LARGE_EPS = 1e-3
LONGROPE_ORIGINAL = 32
LONGROPE_MAX = 128

# What every tiny config shares.
SMALL = dict(
    vocab_size=100,
    hidden_size=32,
    intermediate_size=72,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=256,
    rms_norm_eps=1e-5,
    bos_token_id=1,
    eos_token_id=2,
    pad_token_id=0,
)


@dataclass(frozen=True)
class Prompts:
    """One kind of prompt for every adapter of the family. `extra` goes into the case as it stands."""

    name: str
    length: int
    extra: dict = field(default_factory=dict)
    # Where an aLoRA's invocation stands, counted from the end where negative.
    invoked: tuple[int, ...] = ()
    # False: so long that all windows together end before the virtual tokens, which then change nothing; that is the test.
    reaches_start: bool = True


SHORT = Prompts("short", 4)
LONG = Prompts("long", 30)
# Where the invocation of an aLoRA may stand; blocks of 4 begin and end before, in and behind it.
INVOKED = (
    Prompts("long", 30, invoked=(14,)),
    Prompts("twice", 21, invoked=(3, 11)),
    Prompts("never", 10),
    Prompts("start", 9, invoked=(0,)),
    Prompts("end", 12, invoked=(-1,)),
)
# Every layer of Mistral slides: after 2 * (8 - 1) further tokens nothing of a token is left.
MISTRAL_PROMPTS = (SHORT, Prompts("middle", 10), Prompts("long", 30, reaches_start=False))


@dataclass(frozen=True)
class Family:
    name: str
    config: Callable[[], tf.PreTrainedConfig]
    prompts: tuple[Prompts, ...] = (SHORT, LONG)
    # Bytes per shard; None keeps one file.
    shard: str | None = None
    # Standard deviation of the embedding. Tied Gemma multiplies it by sqrt(hidden) at the input only, and a large one would make
    # the model repeat its last token.
    embed_std: float = 0.6
    # The file also gets `config.v4.json`.
    both_spellings: bool = False
    generation: dict = field(default_factory=dict)


def llama_config(**changes):
    return tf.LlamaConfig(**{**SMALL, "tie_word_embeddings": False, **changes})


def llama3_config():
    # With original length 64, theta 10000 and head_dim 16 the eight frequencies fall in all three of llama3's bands: kept,
    # blended, divided. So a wrong band shows at short lengths.
    return llama_config(
        head_dim=16,
        rms_norm_eps=LARGE_EPS,
        tie_word_embeddings=True,
        eos_token_id=[2, 3],
        rope_parameters={
            "rope_type": "llama3",
            "rope_theta": 10000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    )


def mistral_config():
    return tf.MistralConfig(**SMALL, tie_word_embeddings=False, sliding_window=WINDOW, head_dim=8)


def qwen2_config(**changes):
    return tf.Qwen2Config(**{**SMALL, "tie_word_embeddings": True, **changes})


def qwen2_window_config():
    # Layer 0 sees everything, layers 1 and 2 a window: the layers *from* max_window_layers on slide.
    window = dict(use_sliding_window=True, sliding_window=WINDOW, max_window_layers=1)
    return qwen2_config(num_hidden_layers=3, tie_word_embeddings=False, **window)


def qwen3_config():
    return tf.Qwen3Config(**SMALL, head_dim=16, tie_word_embeddings=False)


def mixtral_config():
    return tf.MixtralConfig(**{**SMALL, "intermediate_size": 40}, tie_word_embeddings=False, num_local_experts=6, num_experts_per_tok=2)


def qwen3_moe_config():
    # Layers 0 and 2 are dense; the weights of a token's experts do not add up to 1.
    experts = dict(num_experts=8, num_experts_per_tok=3, moe_intermediate_size=24, norm_topk_prob=False, decoder_sparse_step=2)
    return tf.Qwen3MoeConfig(**{**SMALL, "num_hidden_layers": 4}, **experts, head_dim=16, tie_word_embeddings=False)


def phi3_config():
    # 12 of the 16 dimensions of a head rotate. Phi-3 has a window of its own.
    return tf.Phi3Config(
        **{**SMALL, "hidden_size": 64},
        tie_word_embeddings=False,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.75},
    )


def phi3_longrope_config():
    changes = {"max_position_embeddings": LONGROPE_MAX, "original_max_position_embeddings": LONGROPE_ORIGINAL}
    return tf.Phi3Config(
        **{**SMALL, **changes},
        tie_word_embeddings=False,
        sliding_window=WINDOW * 4,
        rope_parameters={
            "rope_type": "longrope",
            "rope_theta": 10000.0,
            "short_factor": [1.0, 1.1, 1.25, 1.5],
            "long_factor": [1.2, 2.0, 3.5, 5.0],
        },
    )


def gemma2_config():
    return tf.Gemma2Config(
        **{**SMALL, "hidden_size": 48, "num_hidden_layers": 3, "rms_norm_eps": LARGE_EPS},
        head_dim=16,
        query_pre_attn_scalar=24,
        sliding_window=WINDOW,
        # Small caps, so that a missing tanh changes the numbers.
        attn_logit_softcapping=5.0,
        final_logit_softcapping=6.0,
    )


def gemma3_config():
    return tf.Gemma3TextConfig(
        **{**SMALL, "hidden_size": 48, "num_hidden_layers": 4},
        head_dim=16,
        query_pre_attn_scalar=24,
        sliding_window=WINDOW,
        layer_types=["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"],
        sliding_window_pattern=3,
        rope_parameters={
            "sliding_attention": {"rope_type": "default", "rope_theta": 1000.0},
            "full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 50000.0},
        },
    )


LONGROPE_PROMPTS = (
    # short: prompt, virtual tokens and new tokens stay within the original length, so the short factors hold throughout;
    # long: the prompt alone is longer, so the long factors hold from the first forward on.
    Prompts("short", 4, {"max_model_len": LONGROPE_ORIGINAL}),
    Prompts("long", LONGROPE_ORIGINAL + 6, {"max_model_len": LONGROPE_MAX}),
)

FAMILIES: dict[str, Family] = {
    f.name: f
    for f in [
        Family("llama", llama_config, both_spellings=True),
        Family("llama3", llama3_config, embed_std=0.3, both_spellings=True,
               generation={"do_sample": True, "temperature": 0.6, "top_p": 0.9}),
        Family("llama_bias", lambda: llama_config(attention_bias=True, mlp_bias=True)),
        Family("mistral", mistral_config, prompts=MISTRAL_PROMPTS, shard="70KB", both_spellings=True),
        Family("qwen2", qwen2_config, embed_std=0.3, both_spellings=True),
        Family("qwen2_window", qwen2_window_config, both_spellings=True),
        Family("qwen3", qwen3_config, both_spellings=True),
        Family("mixtral", mixtral_config, both_spellings=True),
        Family("qwen3_moe", qwen3_moe_config, both_spellings=True),
        Family("phi3", phi3_config, both_spellings=True),
        Family("phi3_longrope", phi3_longrope_config, prompts=LONGROPE_PROMPTS, both_spellings=True),
        Family("gemma2", gemma2_config, embed_std=0.25, both_spellings=True),
        Family("gemma3", gemma3_config, embed_std=0.25, both_spellings=True),
    ]
}


def randomise(model: torch.nn.Module, family: Family) -> None:
    """Random values for every parameter, so that nothing is a neutral element."""
    norms_add_one = family.name.startswith("gemma")
    with torch.no_grad():
        for name, p in model.named_parameters():
            at = (family.name, "base", name)
            if name.endswith(".bias"):
                p.copy_(rand.normal(p.shape, 0.4, *at))
            elif name == "model.norm.weight" and norms_add_one:
                # Gains of both signs: with a tied head and gains near one the model would only repeat its last token.
                p.copy_(rand.normal(p.shape, 1.0, *at) - 1.0)
            elif p.dim() == 1:
                p.copy_(rand.normal(p.shape, 0.3, *at) + (0.0 if norms_add_one else 1.0))
            elif "embed_tokens" in name:
                p.copy_(rand.normal(p.shape, family.embed_std, *at))
            else:
                # Experts of one layer are one tensor, the inputs last.
                p.copy_(rand.normal(p.shape, 1.7 / p.shape[-1] ** 0.5, *at))


def build(family: Family, out: Path) -> None:
    """Writes `base/`."""
    model = tf.AutoModelForCausalLM.from_config(family.config(), dtype=torch.float32, attn_implementation="eager")
    randomise(model, family)
    # An end token list and sampling defaults as real checkpoints have them; the cases are greedy and ignore the end all the same.
    model.generation_config = tf.GenerationConfig(
        bos_token_id=1, eos_token_id=model.config.eos_token_id, pad_token_id=0, **family.generation
    )
    kwargs = {"max_shard_size": family.shard} if family.shard else {}
    model.save_pretrained(out, **kwargs)


def load(out: Path, config: tf.PreTrainedConfig | None = None):
    """The base as a server sees it: from the files."""
    model = tf.AutoModelForCausalLM.from_pretrained(out, config=config, dtype=torch.float32, attn_implementation="eager")
    # generate() must not stop or sample by what the file says.
    model.generation_config = tf.GenerationConfig(bos_token_id=1, pad_token_id=0, do_sample=False)
    return model.eval()
