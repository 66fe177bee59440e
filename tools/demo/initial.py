"""Starting weights that already hold the outline of an induction circuit.

Copying from the context needs two attention layers that are of no use without each other, so from a purely random start it appears
late and suddenly, long after the few million tokens that two processor cores can afford. Here the first layer starts out looking one
token back and the second one looking for places where its own token stood before; training does the rest, and may undo it.
"""

import torch
from transformers import LlamaForCausalLM

EMBEDDING_SCALE = 0.05
# One coordinate is the same in every embedding: it lets a head attend by position alone although Llama's projections have no bias.
CONSTANT = 0.2
LOOK_BACK_SHARPNESS, MATCH_SHARPNESS, COPY_GAIN = 2.2, 3.0, 6.0
# Fast-turning rotary pairs tell neighbours apart; slow ones leave a match of contents undisturbed by distance.
FAST_PAIRS, SLOW_PAIRS = range(0, 4), range(8, 16)


def orthonormal_rows(count: int, width: int) -> torch.Tensor:
    rows = torch.linalg.qr(torch.randn(width, count))[0].T
    rows[:, 0] = 0
    return rows


def head_rows(index: int, head_dim: int) -> slice:
    return slice(index * head_dim, (index + 1) * head_dim)


@torch.no_grad()
def initialise(model: LlamaForCausalLM) -> None:
    config = model.config
    width, head_dim = config.hidden_size, config.head_dim
    half = head_dim // 2
    queries_per_key = config.num_attention_heads // config.num_key_value_heads
    turn = config.rope_parameters["rope_theta"] ** (-torch.arange(half) / half)

    embedding = model.model.embed_tokens.weight
    embedding.normal_(std=EMBEDDING_SCALE)
    embedding[:, 0] = CONSTANT
    for layer in model.model.layers:
        layer.self_attn.o_proj.weight.zero_()
        layer.mlp.down_proj.weight.zero_()

    back, match = model.model.layers[0].self_attn, model.model.layers[1].self_attn
    identity = orthonormal_rows(head_dim, width)
    previous = orthonormal_rows(head_dim, width)
    # The two query heads of one key head look one and two tokens back.
    for query in range(queries_per_key):
        rows = back.q_proj.weight[head_rows(query, head_dim)]
        for pair in FAST_PAIRS:
            angle = -turn[pair] * (query + 1)
            rows[pair, 0] = LOOK_BACK_SHARPNESS * torch.cos(angle)
            rows[pair + half, 0] = LOOK_BACK_SHARPNESS * torch.sin(angle)
    for pair in FAST_PAIRS:
        back.k_proj.weight[pair, 0] = LOOK_BACK_SHARPNESS
    back.v_proj.weight[head_rows(0, head_dim)] = identity
    back.o_proj.weight[:, head_rows(0, head_dim)] = EMBEDDING_SCALE * previous.T

    slow = [*SLOW_PAIRS, *(pair + half for pair in SLOW_PAIRS)]
    for key in range(2):
        match.k_proj.weight[head_rows(key, head_dim)][slow] = MATCH_SHARPNESS * previous[slow]
        copied = orthonormal_rows(head_dim, width)
        match.v_proj.weight[head_rows(key, head_dim)] = copied
        query = key * queries_per_key
        match.q_proj.weight[head_rows(query, head_dim)][slow] = MATCH_SHARPNESS * identity[slow]
        match.o_proj.weight[:, head_rows(query, head_dim)] = COPY_GAIN * EMBEDDING_SCALE * copied.T
