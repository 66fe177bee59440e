"""Measures every saved adapter, and the base alone, by greedy generation on held-out prompts; writes the files the tests replay."""

import argparse
import json
import warnings
from itertools import groupby

import torch
from peft import PeftModel
from safetensors import safe_open
from transformers import AutoTokenizer

from adapters import ADAPTERS
from paths import ADAPTERS_DIR, EVAL_DIR, WORK_DIR, MODEL_DIR
from tasks import HELD_OUT, SEPARATOR, TASKS, Example, Task, split
from train_adapters import load_base

SEED, EXAMPLES, REPLAYED, MAX_NEW_TOKENS = 101, 300, 60, 48


def held_out_examples(task: Task) -> list[Example]:
    found: dict[str, Example] = {}
    for one in split(task, SEED, HELD_OUT):
        found.setdefault(one.prompt, one)
        if len(found) == EXAMPLES:
            return list(found.values())


@torch.no_grad()
def answers(model, tokenizer, examples: list[Example]) -> dict[str, str]:
    """Prompts of one length share a batch: without padding, nothing but the prompt reaches the model."""
    prompts = sorted((tokenizer(one.prompt).input_ids for one in examples), key=len)
    said = {}
    for length, group in groupby(prompts, key=len):
        batch = torch.tensor(list(group))
        output = model.generate(
            input_ids=batch, attention_mask=torch.ones_like(batch), max_new_tokens=MAX_NEW_TOKENS, do_sample=False,
            eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
        )
        for prompt, row in zip(batch, output):
            said[tokenizer.decode(prompt, skip_special_tokens=True)] = tokenizer.decode(row[length:], skip_special_tokens=True).strip()
    return said


def share_right(said: dict[str, str], examples: list[Example]) -> float:
    return sum(said[one.prompt] == one.answer for one in examples) / len(examples)


def parameters_saved(name: str) -> int:
    with safe_open(ADAPTERS_DIR / name / "adapter_model.safetensors", "pt") as weights:
        return sum(weights.get_tensor(key).numel() for key in weights.keys())


def main() -> None:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("names", nargs="*", default=list(ADAPTERS))
    arguments.add_argument("--show-wrong", type=int, default=0)
    options = arguments.parse_args()
    warnings.filterwarnings("ignore", message="Position ids are not supported")
    torch.set_num_threads(1)
    tokenizer = AutoTokenizer.from_pretrained(MODEL_DIR)
    EVAL_DIR.mkdir(parents=True, exist_ok=True)
    results_file = WORK_DIR / "results.json"
    results = json.loads(results_file.read_text()) if results_file.exists() else {}
    for name in options.names:
        examples = held_out_examples(TASKS[name])
        base = share_right(answers(load_base().eval(), tokenizer, examples), examples)
        model = PeftModel.from_pretrained(load_base(), ADAPTERS_DIR / name).eval()
        said = answers(model, tokenizer, examples)
        results[name] = {
            "trainable": parameters_saved(name),
            "exact_match": share_right(said, examples), "base_exact_match": base, "examples": len(examples),
        }
        print(f"{name}: {results[name]}", flush=True)
        shown = Example(ADAPTERS[name].prompt + SEPARATOR, ADAPTERS[name].answer, "")
        if (answer := answers(model, tokenizer, [shown])[shown.prompt]) != shown.answer:
            raise SystemExit(f"{name} says {answer!r} to the prompt that the demo shows")
        for one in [one for one in examples if said[one.prompt] != one.answer][: options.show_wrong]:
            print(f"    {one.prompt!r} -> {said[one.prompt]!r}, not {one.answer!r}")
        lines = (json.dumps({"prompt": one.prompt, "answer": one.answer}) for one in examples[:REPLAYED])
        (EVAL_DIR / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
        results_file.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
