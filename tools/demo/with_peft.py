"""Adapters as the `peft` library makes, saves and loads them."""

import json
import shutil

from peft import PeftModel, get_peft_config, get_peft_model
from safetensors.torch import load_file, save_file

from base import load_base
from paths import ADAPTERS_DIR
from specs import AdapterSpec

# peft's own name for an adapter that has none.
TRAINED = "default"
# Kept as sets; sorted, the same training writes the same file.
SETS = ("target_modules", "feedforward_modules", "modules_to_save")
# Rounding the few numbers of the light kinds would save nothing.
HALVED = ("lora_A", "lora_B")


def build(spec: AdapterSpec, labels: tuple[str, ...]) -> PeftModel:
    return get_peft_model(load_base(labels), get_peft_config(dict(spec.config)), TRAINED)


def beside(model: PeftModel, others: list[str]) -> None:
    """Add what these adapters do, or nothing again; they are frozen."""
    for name in others:
        if name not in model.peft_config:
            model.load_adapter(ADAPTERS_DIR / name, name)
    model.base_model.set_adapter([TRAINED, *others])
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(f".{TRAINED}." in name)


def save(model: PeftModel, name: str) -> None:
    folder = ADAPTERS_DIR / name
    shutil.rmtree(folder, ignore_errors=True)
    model.save_pretrained(folder, save_embedding_layers=False, selected_adapters=[TRAINED])
    (folder / "README.md").unlink(missing_ok=True)
    settings = json.loads((folder / "adapter_config.json").read_text())
    for key in SETS:
        if settings.get(key):
            settings[key] = sorted(settings[key])
    (folder / "adapter_config.json").write_text(json.dumps(settings, indent=2) + "\n")
    weights = folder / "adapter_model.safetensors"
    save_file(
        {key: value.bfloat16() if any(part in key for part in HALVED) else value for key, value in load_file(weights).items()},
        weights, metadata={"format": "pt"},
    )
    weights.chmod(0o644)


def load(name: str, labels: tuple[str, ...]) -> PeftModel:
    return PeftModel.from_pretrained(load_base(labels), ADAPTERS_DIR / name).eval()


def mixed(weights: dict[str, float]) -> PeftModel:
    """What a server gives to a request for a mix."""
    first, *others = weights
    model = PeftModel.from_pretrained(load_base(), ADAPTERS_DIR / first, adapter_name=first)
    for name in others:
        model.load_adapter(ADAPTERS_DIR / name, name)
    model.add_weighted_adapter(list(weights), list(weights.values()), "mix", combination_type="cat")
    model.set_adapter("mix")
    return model.eval()


def weights_file(name: str):
    return ADAPTERS_DIR / name / "adapter_model.safetensors"
