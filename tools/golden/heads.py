"""Texts that are read instead of continued: what transformers' classifiers and base models give with PEFT's adapters on them.

    python tools/golden/heads.py [FAMILY ...]

Runs on the bases that make.py has written, and is a part of it. Writes adapters beside the others and FAMILY/heads.json.
"""

import argparse
import json
import warnings
from pathlib import Path

import peft
import torch
import transformers as tf

import adapters
import families
import rand

ROOT = Path(__file__).resolve().parents[2] / "tests" / "fixtures" / "golden"
FAMILIES = ("llama", "qwen2")
LENGTHS = (1, 7, 23)
CLASSES = {
    "SEQ_CLS": tf.AutoModelForSequenceClassification,
    "TOKEN_CLS": tf.AutoModelForTokenClassification,
    "FEATURE_EXTRACTION": tf.AutoModel,
    "CAUSAL_LM": tf.AutoModelForCausalLM,
}


def prompt_learning(config, tokens: int, **options):
    return lambda task: config(task_type=task, num_virtual_tokens=tokens, **options)


def targeting(config, targets, **options):
    return lambda task: config(task_type=task, target_modules=targets, **options)


# Every task with a method on modules, with rows before the text and with saved K and V; one label, and several.
KINDS = (
    ("seq_cls_lora", "SEQ_CLS", 3, targeting(peft.LoraConfig, adapters.LINEARS, r=4, lora_alpha=8)),
    ("seq_cls_ia3", "SEQ_CLS", 1, targeting(peft.IA3Config, adapters.IA3, feedforward_modules=["down_proj"])),
    ("seq_cls_prompt", "SEQ_CLS", 2, prompt_learning(peft.PromptTuningConfig, 5, prompt_tuning_init="RANDOM")),
    ("seq_cls_prefix", "SEQ_CLS", 4, prompt_learning(peft.PrefixTuningConfig, 4)),
    ("token_cls_lora", "TOKEN_CLS", 5, targeting(peft.LoraConfig, ["q_proj", "v_proj"], r=3, lora_alpha=6)),
    ("token_cls_prompt", "TOKEN_CLS", 2, prompt_learning(peft.PromptTuningConfig, 5, prompt_tuning_init="RANDOM")),
    ("features_lora", "FEATURE_EXTRACTION", 0, targeting(peft.LoraConfig, adapters.LINEARS, r=4, lora_alpha=8)),
    ("features_prompt", "FEATURE_EXTRACTION", 0, prompt_learning(peft.PromptTuningConfig, 5, prompt_tuning_init="RANDOM")),
)


def load_base(folder: Path, task: str, labels: int):
    options = {"num_labels": labels} if labels else {}
    torch.manual_seed(0)
    return CLASSES[task].from_pretrained(folder, dtype=torch.float32, attn_implementation="eager", **options).eval()


@torch.no_grad()
def read(model, task: str, tokens: list[int]) -> list[list[float]]:
    """Rows of the text itself: virtual tokens may stand before them."""
    ids = torch.tensor([tokens])
    out = model(input_ids=ids, attention_mask=torch.ones_like(ids))
    rows = out.last_hidden_state if task == "FEATURE_EXTRACTION" else out.logits
    rows = rows.reshape(-1, rows.shape[-1]).double()[-len(tokens) :]
    assert len(rows) == (1 if task == "SEQ_CLS" else len(tokens)), (task, rows.shape)
    return [[round(number, 6) for number in row] for row in rows.tolist()]


@torch.no_grad()
def hidden(model, tokens: list[int]) -> list[list[float]]:
    """Of a model that generates: what its head reads."""
    rows = model(input_ids=torch.tensor([tokens]), output_hidden_states=True).hidden_states[-1][0][-len(tokens) :].double()
    return [[round(number, 6) for number in row] for row in rows.tolist()]


def write(name: str) -> None:
    family, folder = families.FAMILIES[name], ROOT / name
    cases = []

    def texts(adapter: str | None):
        vocab = tf.AutoConfig.from_pretrained(folder / "base").vocab_size
        return [rand.token_ids(length, vocab, name, "heads", adapter, length) for length in LENGTHS]

    def take(adapter: str | None, task: str, labels: int, rows) -> None:
        for tokens in texts(adapter):
            cases.append({"adapter": adapter, "task": task, "labels": labels, "tokens": tokens, "rows": rows(tokens)})

    base = families.load(folder / "base")
    take(None, "CAUSAL_LM", 0, lambda tokens: hidden(base, tokens))
    generating = adapters.load(families.load(folder / "base"), folder / "adapters" / "dora")
    take("dora", "CAUSAL_LM", 0, lambda tokens: hidden(generating, tokens))
    for kind, task, labels, config in KINDS:
        out = folder / "adapters" / kind
        fresh = lambda: load_base(folder / "base", task, labels)
        adapters.build(fresh(), family, adapters.Adapter(kind, lambda: config(task)), out)
        # The files are the truth: everything below runs on what they give on a fresh base.
        model = adapters.load(fresh(), out)
        take(kind, task, labels, lambda tokens: read(model, task, tokens))
    lines = ",\n".join(json.dumps(case, separators=(",", ":")) for case in cases)
    (folder / "heads.json").write_text("[\n" + lines + "\n]\n")
    print(f"{name}: {len(cases)} texts read", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("family", nargs="*", help="families to read with; all that are by default")
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    tf.logging.set_verbosity_error()
    tf.logging.disable_progress_bar()
    warnings.filterwarnings("ignore")
    for name in parser.parse_args().family or FAMILIES:
        write(name)


if __name__ == "__main__":
    main()
