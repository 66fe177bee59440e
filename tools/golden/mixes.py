"""Mixes: weighted sums of adapters that are in the fixtures by themselves. Nothing of them is saved."""

from dataclasses import dataclass
from pathlib import Path

import peft
import torch

import adapters
import families
import reference
from families import Family


@dataclass(frozen=True)
class Mix:
    name: str
    # Adapter and weight.
    parts: tuple[tuple[str, float], ...]
    # All are LoRA without biases, of which PEFT itself makes a mix. (With a first part that is rsLoRA it scales the result once more.)
    cat: bool = False


def of(family: Family) -> list[Mix]:
    match family.name:
        case "llama":
            return [
                Mix("mix_two", (("lora_r4", 0.7), ("lora_all_r8", -0.4)), cat=True),
                Mix("mix_three", (("patterns", 0.5), ("lora_odd_r3", -0.8), ("embed_lm_head", 0.6)), cat=True),
                Mix("mix_kinds", (("loha", 0.5), ("rslora", -0.6), ("hra", 0.4), ("lora_bf16", 0.3))),
            ]
        case "llama_bias":
            return [Mix("mix_biases", (("bias_all", 0.5), ("lora_bias", -0.7), ("bias_lora_only", 0.4)))]
        case "mixtral":
            return [Mix("mix_experts", (("lora_experts", 0.6), ("lora_all_r4", 0.5), ("lora_experts_apart", -0.7), ("lora_router", 0.4)))]
    return []


def load(base: Path, folder: Path, mix: Mix):
    """The base with the mix: as PEFT mixes adapters, where it does, which is the sum of what merging each adds to the base."""
    summed = added_up(base, folder, mix)
    if not mix.cat:
        return summed
    model = concatenated(base, folder, mix)
    ids = list(range(3, 40))
    gap = (reference.last_logits(model, ids) - reference.last_logits(summed, ids)).abs().max().item()
    assert gap < 1e-4, f"{mix.name}: concatenated and added up differ by {gap}"
    return model


def concatenated(base: Path, folder: Path, mix: Mix):
    names, weights = zip(*mix.parts)
    model = peft.PeftModel.from_pretrained(families.load(base), folder / names[0], adapter_name=names[0])
    for name in names[1:]:
        model.load_adapter(folder / name, adapter_name=name)
    model.add_weighted_adapter(list(names), list(weights), mix.name, combination_type="cat")
    model.set_adapter(mix.name)
    return model.eval()


@torch.no_grad()
def added_up(base: Path, folder: Path, mix: Mix):
    model, plain = families.load(base), dict(families.load(base).named_parameters())
    for name, weight in mix.parts:
        merged = dict(adapters.load(families.load(base), folder / name).merge_and_unload().named_parameters())
        assert merged.keys() == plain.keys(), f"{mix.name}: {name} adds parameters"
        for key, parameter in model.named_parameters():
            parameter += weight * (merged[key] - plain[key])
    return model
