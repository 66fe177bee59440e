"""Trains the adapters on the frozen base and saves each one the way peft does; name some to train only those."""

import argparse
import json
import shutil
import time
from itertools import islice

import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, LlamaForCausalLM

from adapters import ADAPTERS, AdapterSpec
from paths import ADAPTERS_DIR, MODEL_DIR
from tasks import DEVELOPMENT, TASKS, TRAINING, Example, split

SEED, BATCH, WARMUP, DECAY = 5, 32, 30, 100
DEV_SEED, DEV_EXAMPLES, GOOD_ENOUGH = 77, 128, 0.97
IGNORED = -100


def encode(tokenizer, examples: list[Example]) -> dict[str, torch.Tensor]:
    """Prompt and answer are tokenised apart, because the server will see the prompt alone."""
    sequences = []
    for one in examples:
        prompt = tokenizer(one.prompt).input_ids
        answer = tokenizer(" " + one.answer, add_special_tokens=False).input_ids + [tokenizer.eos_token_id]
        sequences.append((prompt, answer))
    longest = max(len(prompt) + len(answer) for prompt, answer in sequences)
    batch = {"input_ids": [], "attention_mask": [], "labels": []}
    for prompt, answer in sequences:
        padding = longest - len(prompt) - len(answer)
        batch["input_ids"].append(prompt + answer + [tokenizer.pad_token_id] * padding)
        batch["attention_mask"].append([1] * (longest - padding) + [0] * padding)
        batch["labels"].append([IGNORED] * len(prompt) + answer + [IGNORED] * padding)
    return {key: torch.tensor(value) for key, value in batch.items()}


@torch.no_grad()
def exact_match(model, batch: dict[str, torch.Tensor]) -> float:
    """Greedy decoding is exact precisely when every answer token is the most likely one after the true ones before it."""
    logits = model(**batch).logits[:, -batch["labels"].shape[1]:]
    labels = batch["labels"][:, 1:]
    right = (logits[:, :-1].argmax(-1) == labels) | (labels == IGNORED)
    return right.all(-1).float().mean().item()


def load_base() -> LlamaForCausalLM:
    model = LlamaForCausalLM.from_pretrained(MODEL_DIR, dtype=torch.float32)
    # peft writes this name into the adapter, and the place where the model lay on the training machine is nobody's business.
    model.config._name_or_path = model.name_or_path = "polydelta-demo"
    return model


def train(name: str, spec: AdapterSpec, tokenizer) -> PeftModel:
    """Full rate until the development examples are nearly all right, or the steps run out, then a short decay."""
    torch.manual_seed(SEED)
    model = get_peft_model(load_base(), spec.config)
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trainable, spec.learning_rate, betas=(0.9, 0.98), weight_decay=0.0)
    examples = split(TASKS[name], SEED, TRAINING)
    dev = encode(tokenizer, list(islice(split(TASKS[name], DEV_SEED, DEVELOPMENT), DEV_EXAMPLES)))
    started = time.time()
    print(f"{name}: {spec.kind}, {sum(p.numel() for p in trainable):,} trainable", flush=True)
    step, last_step = 0, spec.steps
    while step < last_step:
        optimizer.param_groups[0]["lr"] = spec.learning_rate * min((step + 1) / WARMUP, (last_step - step) / DECAY, 1)
        loss = model(**encode(tokenizer, list(islice(examples, BATCH)))).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trainable, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        step += 1
        if step % 25 == 0 or step == last_step:
            model.eval()
            right = exact_match(model, dev)
            print(f"{name} step {step} loss {loss.item():.4f} right {right:.3f} {time.time() - started:.0f} s", flush=True)
            model.train()
            if right >= GOOD_ENOUGH:
                last_step = min(last_step, step + DECAY)
    return model.eval()


def save(model: PeftModel, name: str) -> None:
    folder = ADAPTERS_DIR / name
    shutil.rmtree(folder, ignore_errors=True)
    model.save_pretrained(folder, save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)
    # peft keeps the targets as a set; sorted, the same training writes the same file.
    settings = json.loads((folder / "adapter_config.json").read_text())
    for key in ("target_modules", "feedforward_modules"):
        if settings.get(key):
            settings[key] = sorted(settings[key])
    (folder / "adapter_config.json").write_text(json.dumps(settings, indent=2) + "\n")
    weights = folder / "adapter_model.safetensors"
    # Only the big low-rank factors are halved: rounding the few numbers of the light kinds would save nothing.
    save_file(
        {key: (value.bfloat16() if "lora_A" in key or "lora_B" in key else value) for key, value in load_file(weights).items()},
        weights, metadata={"format": "pt"},
    )
    weights.chmod(0o644)


def main() -> None:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("names", nargs="*", default=list(ADAPTERS))
    names = arguments.parse_args().names
    torch.set_num_threads(1)
    tokenizer = AutoTokenizer.from_pretrained(MODEL_DIR)
    for name in names:
        save(train(name, ADAPTERS[name], tokenizer), name)


if __name__ == "__main__":
    main()
