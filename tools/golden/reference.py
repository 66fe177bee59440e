"""Greedy generation by full forwards without a cache: slow, plain, the oracle."""

from dataclasses import dataclass

import torch

NEW_TOKENS = 12
# Two ways to compute the same log-probability are no further apart.
SAME = 5e-5
TOP = 5


@dataclass
class Trace:
    prompt: list[int]
    ids: list[int]
    logprobs: list[float]
    margins: list[float]
    top: list[list[tuple[int, float]]]

    def case(self, name: str, adapter: str | None, extra: dict) -> dict:
        return {
            "name": name,
            "adapter": adapter,
            **extra,
            "prompt": self.prompt,
            "ids": self.ids,
            "logprobs": [round(x, 7) for x in self.logprobs],
            "margins": [round(x, 7) for x in self.margins],
            "top": [[[i, round(x, 7)] for i, x in step] for step in self.top],
        }


def of_task(model) -> dict:
    """What tells an adapter of several tasks which of them is meant: here always the only one."""
    kind = getattr(getattr(model, "active_peft_config", None), "peft_type", None)
    return {"task_ids": torch.tensor([0])} if kind == "MULTITASK_PROMPT_TUNING" else {}


@torch.no_grad()
def last_logits(model, ids: list[int]) -> torch.Tensor:
    """Logits after the last token. The forward of PEFT's model adds virtual tokens itself, before `ids`."""
    return model(input_ids=torch.tensor([ids]), use_cache=False, **of_task(model)).logits[0, -1].double()


def greedy(model, prompt: list[int], steps: int = NEW_TOKENS) -> Trace:
    """End tokens are tokens like any other here."""
    trace = Trace(prompt, [], [], [], [])
    for _ in range(steps):
        logits = last_logits(model, prompt + trace.ids)
        assert torch.isfinite(logits).all()
        logprobs = torch.log_softmax(logits, -1)
        values, order = logprobs.topk(TOP)
        trace.ids.append(order[0].item())
        trace.logprobs.append(values[0].item())
        trace.margins.append((logits[order[0]] - logits[order[1]]).item())
        trace.top.append(list(zip(order.tolist(), values.tolist())))
    return trace


@torch.no_grad()
def forced_logprobs(model, trace: Trace) -> list[torch.Tensor]:
    """Log-probabilities of the whole vocabulary at each step of `trace`, under another model."""
    tokens = trace.prompt + trace.ids
    logits = model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0].double()
    # Counted from the end: virtual tokens may stand at the start.
    return list(torch.log_softmax(logits[-len(trace.ids) - 1 : -1], -1))


def difference_from(base, trace: Trace) -> float:
    """Largest change of a log-probability (the top entries of each step) that the adapter makes."""
    rows = forced_logprobs(base, trace)
    return max(abs(row[i].item() - x) for row, step in zip(rows, trace.top) for i, x in step)


@torch.no_grad()
def check_cached(model, trace: Trace) -> float:
    """The library's own generate(), with its KV cache, must agree. Returns the largest difference of a log-probability."""
    out = model.generate(
        input_ids=torch.tensor([trace.prompt]),
        attention_mask=torch.ones(1, len(trace.prompt), dtype=torch.long),
        max_new_tokens=len(trace.ids),
        do_sample=False,
        use_cache=True,
        return_dict_in_generate=True,
        output_logits=True,
        **of_task(model),
    )
    ids = out.sequences[0, len(trace.prompt) :].tolist()
    if ids != trace.ids:
        raise AssertionError(f"generate() says {ids}, full forwards say {trace.ids}")
    rows = [torch.log_softmax(row[0].double(), -1) for row in out.logits]
    return max(abs(row[i].item() - x) for row, step in zip(rows, trace.top) for i, x in step)
