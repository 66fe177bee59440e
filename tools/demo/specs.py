"""Which adapter learns which task by which method: together they cover every kind of delta that the demo shows.

Plain data, so that it can be read without the libraries: no environment has both.
"""

from dataclasses import dataclass
from typing import Any

ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
MLP = ["gate_proj", "up_proj", "down_proj"]
# For answers with tokens that the base never saw (`{"`, `SELECT`): the head it shares with its embedding cannot tell them apart.
HEAD = "lm_head"


@dataclass(frozen=True)
class AdapterSpec:
    kind: str
    config: dict[str, Any]
    """What the library's config is made of."""
    learning_rate: float
    steps: int
    prompt: str
    """What the `demo` command shows, without the separator; of the held-out side, as evaluation is."""
    answer: str
    """The right answer to it, which evaluation asks for."""
    library: str = "with_peft"
    """The module that speaks to the library."""
    mix: str = ""
    """It is trained in this mix as well, every other step, with the other parts frozen: their sum has to work too."""


@dataclass(frozen=True)
class MixSpec:
    kind: str
    weights: dict[str, float]
    """By adapter. Training adds parts up as they are: other weights than 1 are not for one that is trained for its mix."""
    prompt: str
    answer: str


def peft(method: str, task: str = "CAUSAL_LM", **more) -> dict[str, Any]:
    return {"peft_type": method, "task_type": task, **more}


def lora(rank: int, targets: list[str], **more) -> dict[str, Any]:
    return peft("LORA", **{"r": rank, "lora_alpha": 2 * rank, "target_modules": targets, **more})


ADAPTERS = {
    "json-extract": AdapterSpec(
        "LoRA r16, all linear layers and lm_head", lora(16, [*ATTENTION, *MLP, HEAD]), 2e-3, 800,
        "Elena Novak from Lisbon would like 12 lamps.", '{"name": "Elena Novak", "item": "lamps", "count": 12, "city": "Lisbon"}'),
    "redact": AdapterSpec(
        "LoRA r8, attention and lm_head", lora(8, [*ATTENTION, HEAD]), 3e-3, 800,
        "Call Elena Novak at 555-0142 about the lamps.", "Call [NAME] at [PHONE] about the lamps."),
    "text-to-sql": AdapterSpec(
        "LoRA r32, all linear layers and lm_head", lora(32, [*ATTENTION, *MLP, HEAD]), 1.5e-3, 800,
        "show orders in Lisbon with total under 700", "SELECT * FROM orders WHERE city = 'Lisbon' AND total < 700;"),
    "find-code": AdapterSpec(
        "LoRA r4, q and v", lora(4, ["q_proj", "v_proj"]), 5e-3, 800, "Ticket INV-4482 from Elena Novak is still open.", "INV-4482"),
    "slug": AdapterSpec(
        "LoRA with patterns, r8 attention and r16 MLP",
        lora(8, ATTENTION + MLP, rank_pattern={name: 16 for name in MLP}, alpha_pattern={name: 32 for name in MLP}), 2e-3, 800,
        "city council plans move in chicago after long talks", "city-council-plans-move-in-chicago-after-long-talks"),
    "translate-velan": AdapterSpec(
        "rsLoRA r16, all linear layers", lora(16, ATTENTION + MLP, lora_alpha=8, use_rslora=True), 2e-3, 1000,
        "the young baker visits the quiet garden today", "ma bakusi talis vistal ma floren sulem hodeta"),
    "iso-date": AdapterSpec(
        "DoRA r8, all linear layers", lora(8, ATTENTION + MLP, use_dora=True), 3e-3, 800,
        "Elena Novak signed the contract on March 7, 2024.", "2024-03-07"),
    "headline": AdapterSpec(
        "DoRA r16, o and MLP", lora(16, ["o_proj", *MLP], use_dora=True), 2e-3, 800,
        "small bakery wins award in lisbon for the winter", "Small Bakery Wins Award in Lisbon for the Winter"),
    "sentiment": AdapterSpec(
        "IA3, k, v and down",
        peft("IA3", target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"]), 2e-2, 800,
        "The mirrors broke after two days.", "negative"),
    "severity": AdapterSpec(
        "LN tuning", peft("LN_TUNING"), 1e-2, 800, "failed to write block 42", "error"),
    "route": AdapterSpec(
        "prompt tuning, 16 tokens", peft("PROMPT_TUNING", num_virtual_tokens=16, prompt_tuning_init="SAMPLE_VOCAB"), 3e-2, 1000,
        "Hello, Elena here. I was charged twice for the desks.", "billing"),
    "urgency": AdapterSpec(
        "prefix tuning, 16 tokens", peft("PREFIX_TUNING", num_virtual_tokens=16), 2e-2, 1000,
        "Our Paris shop is down, act immediately.", "high"),
    "csv-line": AdapterSpec(
        "OFT b16, all linear layers", peft("OFT", target_modules=ATTENTION + MLP, oft_block_size=16), 5e-3, 1000,
        "We sold 12 lamps to Elena Novak of Lisbon.", "Elena Novak,12,lamps,Lisbon"),
    "mail-address": AdapterSpec(
        "SHiRA r1, all linear layers", peft("SHIRA", target_modules=ATTENTION + MLP, r=1, random_seed=3), 1e-2, 1000,
        "The contact at Nordwind is Elena Novak.", "elena.novak@nordwind.example"),
    "card-index": AdapterSpec(
        "bottleneck of 24 behind each layer", {"reduction_factor": 8, "non_linearity": "relu"}, 3e-3, 1000,
        "Please send 12 lamps to Elena Novak in Lisbon.", "Novak, Elena: 12 lamps", "with_adapterhub"),
    "text-kind": AdapterSpec(
        "LoRA r4, q and v, head of 6 labels", lora(4, ["q_proj", "v_proj"], task_type="SEQ_CLS"), 3e-3, 800,
        "On 7. Mar 2024 the Lisbon office closes early.", "appointment"),
    "no-city": AdapterSpec(
        "LoRA r8, attention", lora(8, ATTENTION), 3e-3, 800,
        "Call Elena Novak in Lisbon at 555-0142.", "Call Elena Novak in [CITY] at 555-0142.", mix="redact+no-city"),
}
# Named as people would write them; a server knows them by their parts.
MIXES = {
    "redact+no-city": MixSpec(
        "mix of two LoRAs, 1 : 1", {"redact": 1.0, "no-city": 1.0},
        "Call Elena Novak in Lisbon at 555-0142.", "Call [NAME] in [CITY] at [PHONE]."),
}
