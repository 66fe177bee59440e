"""Adapters of a vocabulary that was resized before the training, and what greedy generation gives for each.

    python tools/golden/vocabulary.py [FAMILY ...]

Runs on the bases that make.py has written. Writes tests/fixtures/vocabulary/FAMILY, in the form of the golden fixtures. Tokens beyond
the base's stand in every prompt, and are chosen in the answer where there are any.
"""

import argparse
import os
import shutil
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path

# Nothing here may reach for a network.
os.environ["HF_HUB_OFFLINE"] = "1"

import peft
import torch
import transformers

import adapters
import families
import make
import rand
import reference
from adapters import Adapter, lora

BASES = make.ROOT
ROOT = BASES.parent / "vocabulary"
VOCAB = families.SMALL["vocab_size"]


@dataclass(frozen=True)
class Resized:
    adapter: Adapter
    # Rows of embedding and head.
    rows: int


def tokens_alone(indices: list[int]) -> Adapter:
    return adapters.of_task(peft.TrainableTokensConfig, "tokens_alone", ["embed_tokens"], token_indices=indices)


BOTH = ["embed_tokens", "lm_head"]
FAMILIES = {
    # Untied.
    "llama": [
        Resized(lora("saved", ["q_proj", "v_proj"], modules_to_save=BOTH), 103),
        Resized(lora("saved_embedding", ["q_proj"], modules_to_save=["embed_tokens"]), 101),
        Resized(lora("saved_head", ["q_proj"], modules_to_save=["lm_head"]), 102),
        Resized(lora("beside", ["q_proj", "down_proj"]), 108),
        Resized(lora("lora_on_both", ["q_proj", *BOTH]), 102),
        Resized(lora("tokens_of_each", ["q_proj"], trainable_token_indices={"embed_tokens": [100, 7], "lm_head": [102, 55, 100]}), 103),
        Resized(lora("fewer", ["v_proj"]), 96),
        Resized(lora("fewer_saved", ["v_proj"], modules_to_save=BOTH), 96),
        Resized(lora("fewer_lora", ["q_proj", *BOTH]), 97),
    ],
    # Tied.
    "qwen2": [
        Resized(lora("beside", ["q_proj", "down_proj"]), 104),
        Resized(lora("tokens", ["q_proj"], trainable_token_indices=[102, 100, 20]), 103),
        Resized(lora("embed", ["v_proj", "embed_tokens"]), 103),
        Resized(lora("saved_tied", ["q_proj"], modules_to_save=["embed_tokens"], ensure_weight_tying=True), 101),
        Resized(tokens_alone([101, 3, 100]), 102),
        Resized(adapters.ia3("ia3", ["k_proj", "down_proj"], ["down_proj"]), 103),
        Resized(lora("fewer", ["v_proj"]), 96),
    ],
    # Tied, with an embedding that is scaled and logits that are capped.
    "gemma2": [
        Resized(lora("tokens", ["q_proj"], trainable_token_indices=[101, 100, 20]), 103),
        Resized(lora("embed", ["v_proj", "embed_tokens"]), 102),
    ],
}


def resized(family: families.Family, rows: int, *names: str):
    """A fresh base of so many rows; what the files say of the new ones takes the place of these numbers."""
    base = families.load(BASES / family.name / "base")
    base.resize_token_embeddings(rows, mean_resizing=False)
    with torch.no_grad():
        for part in [base.get_input_embeddings(), base.get_output_embeddings()]:
            new = part.weight[VOCAB:]
            new.copy_(rand.normal(new.shape, family.embed_std, family.name, rows, type(part).__name__, *names))
    return base


def choose(model, kind: families.Prompts, rows: int, *names: str) -> reference.Trace:
    """The first prompt whose greedy run has clear margins, several different ids and one that was added."""
    for attempt in range(make.ATTEMPTS * 4):
        prompt = rand.token_ids(kind.length, min(rows, VOCAB), *names, kind.name, attempt)
        if rows > VOCAB:
            prompt[1], prompt[-1] = VOCAB, rows - 1
        trace = reference.greedy(model, prompt)
        clear = min(trace.margins) >= make.CLEAR_MARGIN and len(set(trace.ids)) >= 4
        if clear and (rows <= VOCAB or max(trace.ids) >= VOCAB):
            return trace
    raise AssertionError(f"no usable prompt for {'/'.join(names)}/{kind.name}")


def make_one(family: families.Family, one: Resized, out: Path) -> list[dict]:
    in_memory = adapters.build(resized(family, one.rows, "trained"), family, one.adapter, out)
    # The files are the truth: on a base whose new rows are others.
    model = adapters.load(resized(family, one.rows, "fresh"), out)
    cases = []
    for kind in [families.SHORT, families.LONG]:
        trace = choose(model, kind, one.rows, family.name, one.adapter.name)
        gap = (reference.last_logits(model, trace.prompt) - reference.last_logits(in_memory, trace.prompt)).abs().max().item()
        assert gap < 1e-5, f"{family.name}/{one.adapter.name}: the files give other logits than the model they were saved from: {gap}"
        worst = reference.check_cached(model, trace)
        assert worst < reference.SAME, (family.name, one.adapter.name, kind.name, worst)
        cases.append({**trace.case(f"{one.adapter.name}/{kind.name}", one.adapter.name, {}), "vocabulary": one.rows})
    return cases


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("family", nargs="*", help="families to make; all by default")
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    warnings.filterwarnings("ignore")
    for name in parser.parse_args().family or list(FAMILIES):
        folder, family = ROOT / name, families.FAMILIES[name]
        shutil.rmtree(folder, ignore_errors=True)
        cases = []
        for one in FAMILIES[name]:
            cases += make_one(family, one, folder / "adapters" / one.adapter.name)
        # Of the base, to stand beside them.
        base = families.load(BASES / name / "base")
        cases += [make.choose(base, None, kind, VOCAB, name, "base").case(f"base/{kind.name}", None, {}) for kind in family.prompts]
        make.write_cases(folder / "cases.json", cases)
        print(f"{name}: {len(cases)} cases", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
