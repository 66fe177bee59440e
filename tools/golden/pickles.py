"""Files as `torch.save` writes them, small, for the reader of pickles: every type of numbers an adapter may have, views
of one storage in every order, parameters, dictionaries in dictionaries, older protocols, and what is refused.

    python tools/golden/pickles.py tests/fixtures/pickle
"""

import collections
import pathlib
import sys

import safetensors.torch
import torch

ADAPTER = "models/demo/adapters/severity/adapter_model.safetensors"


def numbers(*shape: int) -> torch.Tensor:
    return torch.arange(torch.Size(shape).numel(), dtype=torch.float32).reshape(shape) / 4 - 1


def tensors() -> dict[str, torch.Tensor]:
    whole = numbers(6, 4)
    return {
        "plain": numbers(2, 3),
        "half": numbers(3, 2).half(),
        "bfloat16": numbers(3, 2).bfloat16(),
        "double": numbers(2, 2).double(),
        "vector": numbers(5),
        "transposed": numbers(4, 3).t(),
        "rows": whole[1:3],
        "columns": whole[:, ::2],
        "last": whole[5],
        "parameter": torch.nn.Parameter(numbers(2, 2)),
        "permuted": numbers(2, 3, 4).permute(2, 0, 1),
    }


def main(folder: pathlib.Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    ordered = collections.OrderedDict(tensors())
    ordered._metadata = collections.OrderedDict({"": {"version": 1}})
    files = {
        "plain": tensors(),
        "ordered": ordered,
        "nested": {"epoch": 3, "loss": 0.5, "state_dict": tensors()},
        "integers": {"ids": torch.arange(4)},
        "mixed": {"a": numbers(2), "note": "text"},
        "list": [numbers(2)],
        "empty": {},
        "object": {"a": numbers(2), "b": pathlib.PurePosixPath("x")},
    }
    for name, content in files.items():
        torch.save(content, folder / f"{name}.bin")
    torch.save(safetensors.torch.load_file(ADAPTER), folder / "severity.bin")
    torch.save(tensors(), folder / "protocol4.bin", pickle_protocol=4)
    torch.save(tensors(), folder / "legacy.bin", _use_new_zipfile_serialization=False)


main(pathlib.Path(sys.argv[1]))
