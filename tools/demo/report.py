"""Writes what a reader meets first: models/demo/demo.json and models/demo/README.md, the figures taken from evaluate.py."""

import json

import torch
from transformers import AutoTokenizer

import evaluate
import make_tokenizer
import train_adapters
import train_base
from base import load_base
from corpus import LATE_SHARES
from paths import MODEL_DIR, WORK_DIR
from specs import ADAPTERS, MIXES, AdapterSpec, MixSpec
from tasks import SEPARATOR, TASKS

FRESH_ROWS = 64
BASE_PROMPT = "Rosa Vega wants lamps.\nPeter Lang wants chairs.\nYes, Rosa Vega"

README = """# The demo model

A base model of {parameters:,} parameters and {count} adapters of it, small enough to ship with the source and real enough to show what
polydelta does: `polydelta demo` serves them from this folder.

The base is a Llama ({layers} layers of width {width}, {heads} query heads on {kv_heads} key-value heads, tied embeddings, its own byte-level BPE
of {vocabulary:,} tokens, bf16), trained from nothing on synthetic text about an invented business world: orders, reviews, log lines, SQL,
headlines, and Velan, an invented language. It knows that world's words and can restate what stands in its context, but it was never
shown a task. Outside that world it knows nothing. Each adapter was trained and saved by the `peft` library, but for `card-index`, which is
of AdapterHub's `adapters`.

A prompt is a line of text followed by a line break and `=>`, and the same text may go to every adapter. All of them write their answers but
`text-kind`: it has a classification head, is asked with `Score`, and its answer is a label. In the order of the head they are
{labels}.

| adapter | task | kind | trainable params | held-out exact match | base exact match |
| --- | --- | --- | ---: | ---: | ---: |
{rows}

And adapters that are added up for one request (`mix`):

| mix | task | weights | held-out exact match | base exact match |
| --- | --- | --- | ---: | ---: |
{mixes}

Two adapters that were trained apart need not do both tasks when they are added: of a first `no-city`, trained by itself, the sum with `redact`
had none of 60 answers right. The one that ships was trained every other step beside `redact`, which was frozen and knows nothing of it, nor of
five of the six patterns of the mix's sentences.

Exact match: greedy decoding of at most {limit} tokens, the whole answer compared after trimming, or the likeliest label, on {examples} held-out
prompts for each adapter and mix, with transformers and peft (or adapters) in float32 on the weights as saved here; a mix is peft's
`add_weighted_adapter` with `combination_type="cat"`. The base has no head and was asked to write the label. Held out means by entity: names,
dates, numbers or sentences that training never showed; the patterns of the sentences around them are those of training. `eval/` has the first
{replayed} of each for the tests.

How it was made: `tools/demo/` at the repository's root, whose README has the commands. Seeds: tokenizer {tokenizer_seed}, base {base_seed}, adapters
{adapter_seed}, evaluation {evaluation_seed}. The loss of the base on {fresh_rows} rows of fresh documents of its corpus is {loss:.3f} nats
a token.
"""


def table_rows(results: dict) -> str:
    return "\n".join(
        f"| `{name}` | {TASKS[name].title} | {spec.kind} | {results[name]['trainable']:,} "
        f"| {results[name]['exact_match']:.1%} | {results[name]['base_exact_match']:.1%} |"
        for name, spec in ADAPTERS.items()
    )


def mix_rows(results: dict) -> str:
    return "\n".join(
        f"| `{name}` | {TASKS[name].title} | {', '.join(f'`{part}` {weight:g}' for part, weight in spec.weights.items())} "
        f"| {results[name]['exact_match']:.1%} | {results[name]['base_exact_match']:.1%} |"
        for name, spec in MIXES.items()
    )


def shown(name: str, spec: AdapterSpec | MixSpec) -> dict:
    """What the `demo` command needs to know of a line."""
    line = {"name": name, "kind": spec.kind, "task": TASKS[name].title, "prompt": spec.prompt + SEPARATOR}
    if TASKS[name].labels:
        line["labels"] = list(TASKS[name].labels)
    if name in MIXES:
        line["mix"] = [{"adapter": part, "weight": weight} for part, weight in spec.weights.items()]
    return line


@torch.no_grad()
def base_loss(model) -> float:
    torch.set_num_threads(1)
    fresh = train_base.rows(AutoTokenizer.from_pretrained(MODEL_DIR), train_base.SEED, FRESH_ROWS, LATE_SHARES)
    return model(input_ids=fresh, labels=fresh).loss.item()


def main() -> None:
    demo = [{"name": "", "kind": "base", "task": "Continue the text", "prompt": BASE_PROMPT}]
    demo += [shown(name, spec) for name, spec in {**ADAPTERS, **MIXES}.items()]
    (MODEL_DIR / "demo.json").write_text(json.dumps(demo, indent=2) + "\n")

    results = json.loads((WORK_DIR / "results.json").read_text())
    base = load_base().eval()
    model = json.loads((MODEL_DIR / "config.json").read_text())
    labels = ", ".join(TASKS["text-kind"].labels)
    (MODEL_DIR / "README.md").write_text(README.format(
        parameters=base.num_parameters(), count=len(ADAPTERS), layers=model["num_hidden_layers"], width=model["hidden_size"],
        heads=model["num_attention_heads"], kv_heads=model["num_key_value_heads"], vocabulary=model["vocab_size"],
        rows=table_rows(results), mixes=mix_rows(results), labels=labels, limit=evaluate.MAX_NEW_TOKENS, examples=evaluate.EXAMPLES,
        replayed=evaluate.REPLAYED,
        tokenizer_seed=make_tokenizer.SEED, base_seed=train_base.SEED, adapter_seed=train_adapters.SEED,
        evaluation_seed=evaluate.SEED, fresh_rows=FRESH_ROWS, loss=base_loss(base),
    ))


if __name__ == "__main__":
    main()
