"""Adapters as AdapterHub's `adapters` library makes, saves and loads them. It needs an environment of its own (tools/adapterhub)."""

import json
import shutil

import adapters
from adapters import SeqBnConfig

from base import load_base
from paths import ADAPTERS_DIR
from specs import AdapterSpec

# The name that is in the files.
NAME = "bottleneck"


def initialised(labels: tuple[str, ...]):
    model = load_base(labels)
    adapters.init(model)
    return model


def build(spec: AdapterSpec, labels: tuple[str, ...]):
    model = initialised(labels)
    model.add_adapter(NAME, config=SeqBnConfig(**spec.config))
    model.train_adapter(NAME)
    return model


def save(model, name: str) -> None:
    folder = ADAPTERS_DIR / name
    shutil.rmtree(folder, ignore_errors=True)
    model.save_adapter(str(folder), NAME, with_head=False, use_safetensors=True)
    settings = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n")
    weights_file(name).chmod(0o644)


def load(name: str, labels: tuple[str, ...]):
    model = initialised(labels)
    model.load_adapter(str(ADAPTERS_DIR / name), set_active=True, with_head=False, use_safetensors=True)
    # The layers that the library has written out do not find the cache of this transformers.
    model.generation_config.use_cache = False
    return model.eval()


def weights_file(name: str):
    return ADAPTERS_DIR / name / "adapter.safetensors"
