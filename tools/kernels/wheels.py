"""Where pip has put what a wheel holds."""

import importlib.metadata
from pathlib import Path


def file_of(wheel: str, name: str) -> Path:
    for file in importlib.metadata.files(wheel) or []:
        if file.name == name:
            return Path(file.locate())
    raise FileNotFoundError(f"{wheel} has no {name}")
