"""What each token of a text is worth to a model: the log-probabilities of a prompt. Writes FAMILY/scores.json.

    python tools/golden/scores.py [FAMILY ...]

Runs on the bases and adapters that make.py has written, and is a part of it. A text is the prompt of a family's `long` case and
what was generated behind it.
"""

import argparse
import json
import warnings
from pathlib import Path

import torch
import transformers

import adapters
import families
import reference

ROOT = Path(__file__).resolve().parents[2] / "tests" / "fixtures" / "golden"
# Together: no adapter, every site, saved K and V, rows before the text, rows from the middle of the text on, logits of rows of its own, another op class; soft caps, q and k norms, windows.
FAMILIES = ("llama", "gemma2", "qwen3", "mistral")
ADAPTERS = (None, "lora_all_r8", "lora_all_r4", "dora", "alora", "lora_tokens", "prefix_tuning", "prompt_tuning")
TOP = 3


@torch.no_grad()
def score(model, tokens: list[int]) -> dict:
    """One forward; the row of a token says what the next one is worth."""
    logits = model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0].double()
    # Counted from the end: virtual tokens may stand at the start. The last row is of a token that is not there.
    rows = torch.log_softmax(logits[-len(tokens) : -1], -1)
    best = [row.topk(TOP) for row in rows]
    return {
        "tokens": tokens,
        "logprobs": [round(row[token].item(), 7) for row, token in zip(rows, tokens[1:])],
        "top": [[[i, round(x, 7)] for i, x in zip(b.indices.tolist(), b.values.tolist())] for b in best],
    }


def write(name: str) -> None:
    """From the files alone, as a server sees them."""
    folder = ROOT / name
    cases = {case["name"]: case for case in json.loads((folder / "cases.json").read_text())["cases"]}
    scored = []
    for adapter in ADAPTERS:
        case = cases.get(f"{adapter or 'base'}/long")
        if case is None:
            continue
        base = families.load(folder / "base")
        model = adapters.load(base, folder / "adapters" / adapter) if adapter else base
        result = score(model, case["prompt"] + case["ids"])
        # The end of the text was scored before, token by token as it was generated.
        ends = zip(result["logprobs"][-len(case["ids"]) :], case["logprobs"])
        worst = max(abs(found - generated) for found, generated in ends)
        assert worst < reference.SAME, (name, adapter, worst)
        scored.append({"adapter": adapter, **result})
    lines = ",\n".join(json.dumps(one, separators=(",", ":")) for one in scored)
    (folder / "scores.json").write_text("[\n" + lines + "\n]\n")
    print(f"{name}: {len(scored)} texts scored", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("family", nargs="*", help="families to score; all that are by default")
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    warnings.filterwarnings("ignore")
    for name in parser.parse_args().family or FAMILIES:
        write(name)


if __name__ == "__main__":
    main()
