"""Loads what `polydelta adapter export` writes with PEFT, and compares it with the adapter that it was made of.

    python tools/golden/exports.py target/debug/polydelta

Every golden adapter is exported, or refused: both are printed, with the largest difference of a logit.
"""

import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import torch
import transformers

import adapters
import families
import rand
import reference

ROOT = Path(__file__).resolve().parents[2] / "tests" / "fixtures" / "golden"
FAMILIES = ["llama", "llama_bias", "qwen2", "phi3", "gemma3"]
# Sums of the same products in another order.
SAME = 5e-5


def export(binary: str, adapter: Path, base: Path, out: Path) -> str:
    """What is refused, or nothing."""
    command = [binary, "adapter", "export", adapter, "--model", base, "--to", out]
    done = subprocess.run(command, capture_output=True, text=True)
    return "" if done.returncode == 0 else done.stderr.strip().splitlines()[-1]


def compare(base: Path, adapter: Path, exported: Path, family: str) -> float:
    models = [adapters.load(families.load(base), folder) for folder in (adapter, exported)]
    ids = rand.token_ids(30, models[0].config.vocab_size, family, "export")
    one, other = (reference.last_logits(model, ids) for model in models)
    return (one - other).abs().max().item()


def main() -> int:
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    warnings.filterwarnings("ignore")
    failed = 0
    for family in FAMILIES:
        base = ROOT / family / "base"
        for adapter in sorted((ROOT / family / "adapters").iterdir()):
            with tempfile.TemporaryDirectory() as folder:
                out = Path(folder) / "lora"
                refused = export(sys.argv[1], adapter, base, out)
                if refused:
                    print(f"{family}/{adapter.name}: refused: {refused}")
                    continue
                gap = compare(base, adapter, out, family)
                failed += gap >= SAME
                print(f"{family}/{adapter.name}: {gap:.1e}{'' if gap < SAME else ' DIFFERS'}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
