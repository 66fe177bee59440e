"""Makes tests/fixtures/golden: tiny random bases, PEFT adapters on them, and what greedy generation gives for each.

    python tools/golden/make.py [--new] [FAMILY ...]

Without names it makes every family. Everything is seeded; the same versions give the same files, up to the last digits of
log-probabilities, which depend on the processor. With --new it makes adapters that are not there yet and leaves all else alone.
"""

import argparse
import json
import os
import shutil
import sys
import warnings
from pathlib import Path

# Nothing here may reach for a network.
os.environ["HF_HUB_OFFLINE"] = "1"

import peft
import torch
import transformers

import adapters
import families
import mixes
import heads
import rand
import readme
import reference
import scores
import spelling

ROOT = Path(__file__).resolve().parents[2] / "tests" / "fixtures" / "golden"
# A case is taken when every step's choice is this clear, so that no test depends on rounding.
CLEAR_MARGIN = 5e-3
LEAST_CHANGE = 0.05
CACHE_TOLERANCE = reference.SAME
ATTEMPTS = 200


def as_expected(change: float, must_differ: bool) -> bool:
    return change > LEAST_CHANGE if must_differ else change < CACHE_TOLERANCE


def invocation_of(model) -> list[int]:
    return getattr(getattr(model, "active_peft_config", None), "alora_invocation_tokens", None) or []


def prompt_of(kind: families.Prompts, tokens: list[int], invocation: list[int]) -> list[int]:
    """The tokens with the invocation where the kind wants it."""
    prompt = list(tokens)
    for place in kind.invoked:
        first = place if place >= 0 else len(prompt) + 1 + place - len(invocation)
        prompt[first : first + len(invocation)] = invocation
    return prompt


def occurrences(tokens: list[int], wanted: list[int]) -> int:
    return sum(tokens[at : at + len(wanted)] == wanted for at in range(len(tokens)))


def choose(model, base, kind: families.Prompts, vocab: int, *names: str, must_differ: bool = True) -> reference.Trace:
    """The first prompt whose greedy run has clear margins, several different ids, and (with an adapter) another outcome."""
    invocation = invocation_of(model)
    for attempt in range(ATTEMPTS):
        prompt = prompt_of(kind, rand.token_ids(kind.length, vocab, *names, kind.name, attempt), invocation)
        trace = reference.greedy(model, prompt)
        clear = min(trace.margins) >= CLEAR_MARGIN
        varied = len(set(trace.ids)) >= 4
        # generate() looks for the invocation in the prompt alone, a full forward in all that it is given.
        as_wanted = not invocation or occurrences(trace.prompt + trace.ids, invocation) == len(kind.invoked)
        if clear and varied and as_wanted and (base is None or as_expected(reference.difference_from(base, trace), must_differ)):
            return trace
    raise AssertionError(f"no usable prompt for {'/'.join(names)}/{kind.name}")


def make_base(family: families.Family, folder: Path) -> list[dict]:
    families.build(family, folder)
    base = families.load(folder)
    if family.both_spellings:
        check_v4(family, folder, base)
    # One token is the smallest prefill there is.
    kinds = (families.Prompts("single", 1, family.prompts[0].extra), *family.prompts)
    cases = []
    for kind in kinds:
        trace = choose(base, None, kind, base.config.vocab_size, family.name, "base")
        worst = reference.check_cached(base, trace)
        assert worst < CACHE_TOLERANCE, (family.name, kind.name, worst)
        cases.append(trace.case(f"base/{kind.name}", None, kind.extra))
    return cases


def check_v4(family: families.Family, folder: Path, base) -> None:
    """Writes config.v4.json and proves that the library reads it as the same model."""
    v4 = spelling.to_v4(json.loads((folder / "config.json").read_text()))
    text = json.dumps(v4, indent=2, sort_keys=True) + "\n"
    (folder / "config.v4.json").write_text(text)
    config = type(base.config).from_dict(json.loads(text))
    ids = rand.token_ids(40, base.config.vocab_size, family.name, "v4")
    other = families.load(folder, config)
    assert torch.equal(reference.last_logits(base, ids), reference.last_logits(other, ids)), family.name


def make_adapter(family: families.Family, adapter: adapters.Adapter, base_folder: Path, out: Path) -> list[dict]:
    in_memory = adapters.build(families.load(base_folder), family, adapter, out)
    # The files are the truth: everything below runs on what they give on a fresh base.
    model = adapters.load(families.load(base_folder), out)
    base = families.load(base_folder)
    vocab = base.config.vocab_size
    cases = []
    invoked = bool(invocation_of(model))
    for kind in families.INVOKED if invoked else family.prompts:
        # Virtual tokens before a prompt longer than all windows together are forgotten. Without its invocation an aLoRA is
        # the base.
        must_differ = bool(kind.invoked) if invoked else kind.reaches_start or not model.active_peft_config.is_prompt_learning
        trace = choose(model, base, kind, vocab, family.name, adapter.name, must_differ=must_differ)
        saved = reference.last_logits(model, trace.prompt)
        gap = (saved - reference.last_logits(in_memory, trace.prompt)).abs().max().item()
        assert gap < 1e-5, f"{family.name}/{adapter.name}: the files give other logits than the model they were saved from: {gap}"
        worst = reference.check_cached(model, trace)
        assert worst < CACHE_TOLERANCE, (family.name, adapter.name, kind.name, worst)
        cases.append(trace.case(f"{adapter.name}/{kind.name}", adapter.name, kind.extra))
    return cases


def make_mix(family: families.Family, mix: mixes.Mix, base_folder: Path, folder: Path) -> list[dict]:
    model, base = mixes.load(base_folder, folder, mix), families.load(base_folder)
    cases = []
    for kind in family.prompts:
        trace = choose(model, base, kind, base.config.vocab_size, family.name, mix.name)
        worst = reference.check_cached(model, trace)
        assert worst < CACHE_TOLERANCE, (family.name, mix.name, kind.name, worst)
        cases.append(trace.case(f"{mix.name}/{kind.name}", mix.name, {**kind.extra, "mix": mix.parts}))
    return cases


def line_of(case: dict) -> str:
    return json.dumps(case, separators=(",", ":"))


def write_cases(path: Path, cases: list[dict]) -> None:
    """One case per line: small, and a changed case is a changed line."""
    head = {"transformers": transformers.__version__, "peft": peft.__version__, "torch": torch.__version__.split("+")[0]}
    lines = ",\n".join(map(line_of, cases))
    path.write_text(json.dumps(head)[:-1] + ', "cases": [\n' + lines + "\n]}\n")


def make_adapters(family: families.Family, folder: Path, wanted: list[adapters.Adapter]) -> tuple[list[dict], list[str]]:
    """Their cases, and what went wrong."""
    cases, failures = [], []
    for adapter in wanted:
        out = folder / "adapters" / adapter.name
        try:
            cases += make_adapter(family, adapter, folder / "base", out)
        except Exception as error:  # noqa: BLE001
            shutil.rmtree(out, ignore_errors=True)
            failures.append(f"{family.name}/{adapter.name}: {type(error).__name__}: {error}")
    return cases, failures


def add(family: families.Family) -> list[str]:
    """Builds what a family lacks, behind what is there."""
    folder = ROOT / family.name
    lacking = [adapter for adapter in adapters.of(family) if not (folder / "adapters" / adapter.name).is_dir()]
    more, failures = make_adapters(family, folder, lacking)
    head, *lines, end = (folder / "cases.json").read_text().splitlines()
    lines = [line.removesuffix(",") for line in lines] + [line_of(case) for case in more]
    (folder / "cases.json").write_text("\n".join([head, ",\n".join(lines), end]) + "\n")
    print(f"{family.name}: {len(more)} cases more, {readme.kib(folder)} KiB", flush=True)
    return failures


def make(family: families.Family) -> list[str]:
    """Builds one family; returns what went wrong, so that one refusal does not hide the others."""
    folder = ROOT / family.name
    shutil.rmtree(folder, ignore_errors=True)
    cases = make_base(family, folder / "base")
    more, failures = make_adapters(family, folder, adapters.of(family))
    cases += more
    for mix in mixes.of(family):
        cases += make_mix(family, mix, folder / "base", folder / "adapters")
    write_cases(folder / "cases.json", cases)
    if family.name in scores.FAMILIES:
        scores.write(family.name)
    if family.name in heads.FAMILIES:
        heads.write(family.name)
    print(f"{family.name}: {len(cases)} cases, {readme.kib(folder)} KiB", flush=True)
    return failures


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("family", nargs="*", help="families to make; all by default")
    parser.add_argument("--new", action="store_true", help="only adapters that are not there yet; all else stays as it is")
    args = parser.parse_args()
    names = args.family or list(families.FAMILIES)
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    warnings.filterwarnings("ignore")
    failures = [f for name in names for f in (add if args.new else make)(families.FAMILIES[name])]
    readme.write(ROOT)
    for failure in failures:
        print(f"FAILED {failure}", file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
