"""Which adapter learns which task by which method: together they cover every kind of delta that the demo shows."""

from dataclasses import dataclass

from peft import IA3Config, LNTuningConfig, LoraConfig, PeftConfig, PrefixTuningConfig, PromptTuningConfig, TaskType

ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
MLP = ["gate_proj", "up_proj", "down_proj"]
CAUSAL = TaskType.CAUSAL_LM


@dataclass(frozen=True)
class AdapterSpec:
    kind: str
    config: PeftConfig
    learning_rate: float
    steps: int
    prompt: str
    """What the `demo` command shows, without the separator."""


def lora(rank: int, targets: list[str], **more) -> LoraConfig:
    return LoraConfig(task_type=CAUSAL, r=rank, lora_alpha=2 * rank, target_modules=targets, **more)


ADAPTERS = {
    "json-extract": AdapterSpec(
        "LoRA r16, all linear layers", lora(16, ATTENTION + MLP), 2e-3, 800, "Greta Novak from Lisbon would like 12 lamps."),
    "redact": AdapterSpec(
        "LoRA r8, attention", lora(8, ATTENTION), 3e-3, 800, "Call Greta Novak at 555-0142 about the lamps."),
    "text-to-sql": AdapterSpec(
        "LoRA r32, all linear layers", lora(32, ATTENTION + MLP), 1.5e-3, 800, "show orders in Lisbon with total under 500"),
    "find-code": AdapterSpec(
        "LoRA r4, q and v", lora(4, ["q_proj", "v_proj"]), 5e-3, 800, "Ticket INV-4471 from Greta Novak is still open."),
    "slug": AdapterSpec(
        "LoRA with patterns, r8 attention and r16 MLP",
        lora(8, ATTENTION + MLP, rank_pattern={name: 16 for name in MLP}, alpha_pattern={name: 32 for name in MLP}), 2e-3, 800,
        "city council plans move in lisbon after long talks"),
    "translate-velan": AdapterSpec(
        "rsLoRA r16, all linear layers", LoraConfig(
            task_type=CAUSAL, r=16, lora_alpha=8, target_modules=ATTENTION + MLP, use_rslora=True), 2e-3, 1000,
        "the young baker visits the quiet garden today"),
    "iso-date": AdapterSpec(
        "DoRA r8, all linear layers", lora(8, ATTENTION + MLP, use_dora=True), 3e-3, 800,
        "Greta Novak signed the contract on March 7, 2024."),
    "headline": AdapterSpec(
        "DoRA r16, o and MLP", lora(16, ["o_proj", *MLP], use_dora=True), 2e-3, 800,
        "small bakery wins award in lisbon for the winter"),
    "sentiment": AdapterSpec(
        "IA3, k, v and down", IA3Config(
            task_type=CAUSAL, target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"]), 2e-2, 800,
        "The lamps broke after two days."),
    "severity": AdapterSpec(
        "LN tuning", LNTuningConfig(task_type=CAUSAL), 1e-2, 800, "failed to write block 42"),
    "route": AdapterSpec(
        "prompt tuning, 16 tokens", PromptTuningConfig(task_type=CAUSAL, num_virtual_tokens=16), 3e-2, 1000,
        "Hello, Greta here. I was charged twice for the lamps."),
    "urgency": AdapterSpec(
        "prefix tuning, 16 tokens", PrefixTuningConfig(task_type=CAUSAL, num_virtual_tokens=16), 2e-2, 1000,
        "Our Lisbon shop is down, act immediately."),
}
