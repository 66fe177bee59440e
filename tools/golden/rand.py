"""Seeded randomness: every tensor has its own stream, named after it.

A stream depends on nothing but its name, so adding a family, an adapter or a parameter never changes the values of another.
"""

import zlib

import torch


def generator(*names: object) -> torch.Generator:
    """A generator seeded by the names alone."""
    return torch.Generator().manual_seed(zlib.crc32("/".join(map(str, names)).encode()))


def normal(shape, std: float, *names: object) -> torch.Tensor:
    return torch.randn(tuple(shape), generator=generator(*names)) * std


def uniform(shape, low: float, high: float, *names: object) -> torch.Tensor:
    return torch.rand(tuple(shape), generator=generator(*names)) * (high - low) + low


def token_ids(count: int, vocab: int, *names: object) -> list[int]:
    """Ids 0..3 stay out of prompts: they are pad, bos and the end tokens."""
    return torch.randint(4, vocab, (count,), generator=generator(*names)).tolist()
