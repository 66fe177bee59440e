"""Trains the adapters on the frozen base and saves each one the way its library does; name some to train only those."""

import argparse
import importlib
import time
from itertools import islice

import torch
from transformers import AutoTokenizer

from paths import MODEL_DIR
from specs import ADAPTERS, MIXES, AdapterSpec
from tasks import DEVELOPMENT, TASKS, TRAINING, Example, Task, split

SEED, BATCH, WARMUP, DECAY = 5, 32, 30, 100
DEV_SEED, DEV_EXAMPLES, GOOD_ENOUGH = 77, 128, 0.97
IGNORED = -100


def encode(tokenizer, task: Task, examples: list[Example]) -> dict[str, torch.Tensor]:
    """Prompt and answer are tokenised apart, because the server will see the prompt alone. A label is no text."""
    sequences = []
    for one in examples:
        prompt = tokenizer(one.prompt).input_ids
        answer = [] if task.labels else tokenizer(" " + one.answer, add_special_tokens=False).input_ids + [tokenizer.eos_token_id]
        sequences.append((prompt, answer))
    longest = max(len(prompt) + len(answer) for prompt, answer in sequences)
    batch = {"input_ids": [], "attention_mask": [], "labels": []}
    for one, (prompt, answer) in zip(examples, sequences):
        padding = longest - len(prompt) - len(answer)
        batch["input_ids"].append(prompt + answer + [tokenizer.pad_token_id] * padding)
        batch["attention_mask"].append([1] * (longest - padding) + [0] * padding)
        expected = [IGNORED] * len(prompt) + answer + [IGNORED] * padding
        batch["labels"].append(task.labels.index(one.answer) if task.labels else expected)
    return {key: torch.tensor(value) for key, value in batch.items()}


@torch.no_grad()
def share_right(model, batch: dict[str, torch.Tensor]) -> float:
    """Greedy decoding is exact precisely when every answer token is the most likely one after the true ones before it."""
    logits, labels = model(**batch).logits, batch["labels"]
    if labels.dim() == 1:
        return (logits.argmax(-1) == labels).float().mean().item()
    logits, labels = logits[:, -labels.shape[1]:], labels[:, 1:]
    right = (logits[:, :-1].argmax(-1) == labels) | (labels == IGNORED)
    return right.all(-1).float().mean().item()


class Course:
    """One task, and the adapters that stand beside the trained one in it."""

    def __init__(self, name: str, beside: list[str], tokenizer):
        self.task, self.beside, self.tokenizer = TASKS[name], beside, tokenizer
        self.examples = split(self.task, SEED, TRAINING)
        self.dev = self.encoded(split(self.task, DEV_SEED, DEVELOPMENT), DEV_EXAMPLES)

    def encoded(self, examples, count: int) -> dict[str, torch.Tensor]:
        return encode(self.tokenizer, self.task, list(islice(examples, count)))

    def batch(self) -> dict[str, torch.Tensor]:
        return self.encoded(self.examples, BATCH)


def courses_of(name: str, spec: AdapterSpec, tokenizer) -> list[Course]:
    alone = Course(name, [], tokenizer)
    if not spec.mix:
        return [alone]
    return [alone, Course(spec.mix, [other for other in MIXES[spec.mix].weights if other != name], tokenizer)]


def train(name: str, spec: AdapterSpec, tokenizer):
    """Full rate until the development examples are nearly all right, or the steps run out, then a short decay."""
    torch.manual_seed(SEED)
    library, courses = importlib.import_module(spec.library), courses_of(name, spec, tokenizer)
    model = library.build(spec, TASKS[name].labels)
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trainable, spec.learning_rate, betas=(0.9, 0.98), weight_decay=0.0)
    started = time.time()
    print(f"{name}: {spec.kind}, {sum(p.numel() for p in trainable):,} trainable", flush=True)

    def attend(course: Course) -> Course:
        if spec.mix:
            library.beside(model, course.beside)
        return course

    step, last_step = 0, spec.steps
    while step < last_step:
        optimizer.param_groups[0]["lr"] = spec.learning_rate * min((step + 1) / WARMUP, (last_step - step) / DECAY, 1)
        loss = model(**attend(courses[step % len(courses)]).batch()).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trainable, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        step += 1
        if step % 25 == 0 or step == last_step:
            model.eval()
            right = min(share_right(model, attend(course).dev) for course in courses)
            print(f"{name} step {step} loss {loss.item():.4f} right {right:.3f} {time.time() - started:.0f} s", flush=True)
            model.train()
            if right >= GOOD_ENOUGH:
                last_step = min(last_step, step + DECAY)
    attend(courses[0])
    return model.eval()


def names_from(arguments: list[str]) -> list[str]:
    """Those asked for, or all whose library is installed here; no environment has both."""
    if arguments:
        return arguments
    here = {library for library in {spec.library for spec in ADAPTERS.values()} if is_here(library)}
    return [name for name, spec in ADAPTERS.items() if spec.library in here]


def is_here(library: str) -> bool:
    try:
        importlib.import_module(library)
    except ModuleNotFoundError as missing:
        print(f"without {missing.name}: {', '.join(name for name, spec in ADAPTERS.items() if spec.library == library)} left out")
        return False
    return True


def main() -> None:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("names", nargs="*")
    names = names_from(arguments.parse_args().names)
    torch.set_num_threads(1)
    tokenizer = AutoTokenizer.from_pretrained(MODEL_DIR)
    for name in names:
        spec = ADAPTERS[name]
        importlib.import_module(spec.library).save(train(name, spec, tokenizer), name)


if __name__ == "__main__":
    main()
