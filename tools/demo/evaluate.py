"""Measures every saved adapter, every mix and the base alone on held-out prompts, by greedy generation or by their heads; writes the files
that the tests replay."""

import argparse
import importlib
import json
import warnings
from collections.abc import Callable
from itertools import groupby

import torch
from safetensors import safe_open
from transformers import AutoTokenizer

from base import load_base
from paths import EVAL_DIR, WORK_DIR, MODEL_DIR
from specs import ADAPTERS, MIXES
from tasks import HELD_OUT, SEPARATOR, TASKS, Example, Task, split
from train_adapters import names_from

SEED, EXAMPLES, REPLAYED, MAX_NEW_TOKENS = 101, 300, 60, 48


def held_out_examples(task: Task) -> list[Example]:
    found: dict[str, Example] = {}
    for one in split(task, SEED, HELD_OUT):
        found.setdefault(one.prompt, one)
        if len(found) == EXAMPLES:
            return list(found.values())


def generated(model, tokenizer, batch: torch.Tensor) -> list[str]:
    output = model.generate(
        input_ids=batch, attention_mask=torch.ones_like(batch), max_new_tokens=MAX_NEW_TOKENS, do_sample=False,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )
    return [tokenizer.decode(row[batch.shape[1]:], skip_special_tokens=True).strip() for row in output]


def label_of(labels: tuple[str, ...]) -> Callable:
    def scored(model, tokenizer, batch: torch.Tensor) -> list[str]:
        return [labels[index] for index in model(input_ids=batch).logits.argmax(-1)]
    return scored


@torch.no_grad()
def answers(model, tokenizer, examples: list[Example], answer: Callable = generated) -> dict[str, str]:
    """Prompts of one length share a batch: without padding, nothing but the prompt reaches the model."""
    prompts = sorted((tokenizer(one.prompt).input_ids for one in examples), key=len)
    said = {}
    for _, group in groupby(prompts, key=len):
        batch = torch.tensor(list(group))
        for prompt, text in zip(batch, answer(model, tokenizer, batch)):
            said[tokenizer.decode(prompt, skip_special_tokens=True)] = text
    return said


def share_right(said: dict[str, str], examples: list[Example]) -> float:
    return sum(said[one.prompt] == one.answer for one in examples) / len(examples)


def numbers_saved(name: str) -> int:
    """Of what was trained: where a sparse update's numbers lie was drawn."""
    with safe_open(importlib.import_module(ADAPTERS[name].library).weights_file(name), "pt") as weights:
        return sum(weights.get_tensor(key).numel() for key in weights.keys() if "shira_indices" not in key)


def measured(name: str):
    """The model of an adapter or of a mix, and how many numbers were trained for it alone."""
    if name in MIXES:
        return importlib.import_module("with_peft").mixed(MIXES[name].weights), 0
    return importlib.import_module(ADAPTERS[name].library).load(name, TASKS[name].labels), numbers_saved(name)


def main() -> None:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("names", nargs="*")
    arguments.add_argument("--show-wrong", type=int, default=0)
    options = arguments.parse_args()
    warnings.filterwarnings("ignore", message="Position ids are not supported")
    torch.set_num_threads(1)
    tokenizer = AutoTokenizer.from_pretrained(MODEL_DIR)
    EVAL_DIR.mkdir(parents=True, exist_ok=True)
    results_file = WORK_DIR / "results.json"
    results = json.loads(results_file.read_text()) if results_file.exists() else {}
    names = names_from(options.names)
    mixes = [name for name, mix in MIXES.items() if not options.names and set(mix.weights) <= set(names)]
    for name in names + mixes:
        task, spec = TASKS[name], ADAPTERS.get(name) or MIXES[name]
        examples = held_out_examples(task)
        # A base has no head: it is asked to say the label.
        base = share_right(answers(load_base().eval(), tokenizer, examples), examples)
        model, trainable = measured(name)
        how = label_of(task.labels) if task.labels else generated
        said = answers(model, tokenizer, examples, how)
        results[name] = {
            "trainable": trainable,
            "exact_match": share_right(said, examples), "base_exact_match": base, "examples": len(examples),
        }
        print(f"{name}: {results[name]}", flush=True)
        for one in [one for one in examples if said[one.prompt] != one.answer][: options.show_wrong]:
            print(f"    {one.prompt!r} -> {said[one.prompt]!r}, not {one.answer!r}")
        shown = Example(spec.prompt + SEPARATOR, spec.answer, "")
        if (answer := answers(model, tokenizer, [shown], how)[shown.prompt]) != shown.answer:
            raise SystemExit(f"{name} says {answer!r} to the prompt that the demo shows")
        lines = (json.dumps({"prompt": one.prompt, "answer": one.answer}) for one in examples[:REPLAYED])
        (EVAL_DIR / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
        results_file.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
