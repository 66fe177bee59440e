"""Which adapter learns which task by which method: together they cover every kind of delta that the demo shows."""

from dataclasses import dataclass

from peft import IA3Config, LNTuningConfig, LoraConfig, PeftConfig, PrefixTuningConfig, PromptTuningConfig, PromptTuningInit, TaskType

ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
MLP = ["gate_proj", "up_proj", "down_proj"]
# For answers with tokens that the base never saw (`{"`, `SELECT`): the head it shares with its embedding cannot tell them apart.
HEAD = "lm_head"
CAUSAL = TaskType.CAUSAL_LM


@dataclass(frozen=True)
class AdapterSpec:
    kind: str
    config: PeftConfig
    learning_rate: float
    steps: int
    prompt: str
    """What the `demo` command shows, without the separator; of the held-out side, as evaluation is."""
    answer: str
    """The right answer to it, which evaluation asks for."""


def lora(rank: int, targets: list[str], **more) -> LoraConfig:
    return LoraConfig(task_type=CAUSAL, r=rank, lora_alpha=2 * rank, target_modules=targets, **more)


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
        "rsLoRA r16, all linear layers", LoraConfig(
            task_type=CAUSAL, r=16, lora_alpha=8, target_modules=ATTENTION + MLP, use_rslora=True), 2e-3, 1000,
        "the young baker visits the quiet garden today", "ma bakusi talis vistal ma floren sulem hodeta"),
    "iso-date": AdapterSpec(
        "DoRA r8, all linear layers", lora(8, ATTENTION + MLP, use_dora=True), 3e-3, 800,
        "Elena Novak signed the contract on March 7, 2024.", "2024-03-07"),
    "headline": AdapterSpec(
        "DoRA r16, o and MLP", lora(16, ["o_proj", *MLP], use_dora=True), 2e-3, 800,
        "small bakery wins award in lisbon for the winter", "Small Bakery Wins Award in Lisbon for the Winter"),
    "sentiment": AdapterSpec(
        "IA3, k, v and down", IA3Config(
            task_type=CAUSAL, target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"]), 2e-2, 800,
        "The mirrors broke after two days.", "negative"),
    "severity": AdapterSpec(
        "LN tuning", LNTuningConfig(task_type=CAUSAL), 1e-2, 800, "failed to write block 42", "error"),
    "route": AdapterSpec(
        "prompt tuning, 16 tokens", PromptTuningConfig(
            task_type=CAUSAL, num_virtual_tokens=16, prompt_tuning_init=PromptTuningInit.SAMPLE_VOCAB), 3e-2, 1000,
        "Hello, Elena here. I was charged twice for the desks.", "billing"),
    "urgency": AdapterSpec(
        "prefix tuning, 16 tokens", PrefixTuningConfig(task_type=CAUSAL, num_virtual_tokens=16), 2e-2, 1000,
        "Our Paris shop is down, act immediately.", "high"),
}
