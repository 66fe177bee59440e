"""Trains the base model; `torchrun --nproc-per-node 2 train_base.py` runs one single-threaded process a core.

A process a core beats one process with two threads, which lose their time waiting for each other at every small matrix product.
"""

import argparse
import time
from random import Random

import torch
import torch.distributed as dist
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from corpus import EARLY_SHARES, LATE_SHARES, document
from initial import initialise
from muon import Muon
from paths import MODEL_DIR, WORK_DIR

SEED = 2024
LENGTH, ROWS, MICRO_BATCHES = 128, 8, 2
WARMUP, EARLY_STEPS, DECAY_SHARE = 50, 300, 0.4
MATRIX_LR, EMBEDDING_LR = 4e-3, 4e-3


def config(tokenizer) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=192, num_hidden_layers=4, intermediate_size=512, num_attention_heads=6,
        num_key_value_heads=3, head_dim=32, max_position_embeddings=512, tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
    )


def rows(tokenizer, seed: int, count: int, shares: tuple[int, ...]) -> torch.Tensor:
    """Every row begins with a document, as every prompt does; what overhangs at its end is dropped."""
    rng = Random(seed)
    packed = []
    for _ in range(count):
        row: list[int] = []
        while len(row) < LENGTH:
            row += tokenizer(document(rng, shares)).input_ids + [tokenizer.eos_token_id]
        packed.append(row[:LENGTH])
    return torch.tensor(packed)


def learning_rate_share(step: int, steps: int) -> float:
    if step < WARMUP:
        return (step + 1) / WARMUP
    return min(1.0, (steps - step) / (DECAY_SHARE * steps))


def average_gradients(parameters) -> None:
    flat = torch.cat([parameter.grad.flatten() for parameter in parameters])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    for parameter, part in zip(parameters, flat.split([p.numel() for p in parameters])):
        parameter.grad.copy_(part.view_as(parameter))


def main() -> None:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--steps", type=int, default=1400)
    steps = arguments.parse_args().steps
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()

    torch.manual_seed(SEED)
    tokenizer = AutoTokenizer.from_pretrained(MODEL_DIR)
    model = LlamaForCausalLM(config(tokenizer))
    initialise(model)
    parameters = list(model.parameters())
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    others = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
    optimizers = [Muon(matrices, MATRIX_LR), torch.optim.AdamW(others, EMBEDDING_LR, betas=(0.9, 0.95), weight_decay=0.0, fused=True)]
    rates = [MATRIX_LR, EMBEDDING_LR]

    WORK_DIR.mkdir(parents=True, exist_ok=True)
    checkpoint, first = WORK_DIR / "base.pt", 0
    if checkpoint.exists():
        saved = torch.load(checkpoint)
        model.load_state_dict(saved["model"])
        for optimizer, state in zip(optimizers, saved["optimizers"]):
            optimizer.load_state_dict(state)
        first = saved["step"]
    if rank == 0:
        print(f"{sum(p.numel() for p in parameters):,} parameters, from step {first}", flush=True)

    held_out = rows(tokenizer, SEED, 2 * ROWS, LATE_SHARES)
    started, seen, running = time.time(), 0, 0.0
    for step in range(first, steps):
        shares = EARLY_SHARES if step < EARLY_STEPS else LATE_SHARES
        batch = rows(tokenizer, hash((SEED, step, rank)), ROWS * MICRO_BATCHES, shares)
        loss_sum = 0.0
        for part in batch.split(ROWS):
            loss = model(input_ids=part, labels=part, use_cache=False).loss / MICRO_BATCHES
            loss.backward()
            loss_sum += loss.item()
        average_gradients(parameters)
        torch.nn.utils.clip_grad_norm_(others, 1.0)
        for optimizer, rate in zip(optimizers, rates):
            optimizer.param_groups[0]["lr"] = rate * learning_rate_share(step, steps)
            optimizer.step()
            optimizer.zero_grad(set_to_none=False)
        seen += world * batch.numel()
        running = loss_sum if step == first else 0.95 * running + 0.05 * loss_sum
        if rank == 0 and (step + 1) % 20 == 0:
            print(f"step {step + 1} loss {running:.3f} {seen / (time.time() - started):.0f} tokens/s", flush=True)
        if rank == 0 and ((step + 1) % 100 == 0 or step + 1 == steps):
            with torch.no_grad():
                print(f"step {step + 1} held-out loss {model(input_ids=held_out, labels=held_out).loss.item():.4f}", flush=True)
            state = {
                "step": step + 1, "tokens": (step + 1) * world * batch.numel(), "model": model.state_dict(),
                "optimizers": [optimizer.state_dict() for optimizer in optimizers],
            }
            torch.save(state, checkpoint.with_suffix(".new"))
            checkpoint.with_suffix(".new").rename(checkpoint)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
