"""The frozen base as adapters get it."""

import json

import torch
from transformers import LlamaForCausalLM, LlamaForSequenceClassification

from paths import MODEL_DIR

# Libraries write this name into adapters, and the place where the model lay on the training machine is nobody's business.
NAME = "polydelta-demo"


def load_base(labels: tuple[str, ...] = ()) -> LlamaForCausalLM | LlamaForSequenceClassification:
    """In float32; with labels, under a new head of them."""
    if labels:
        model = LlamaForSequenceClassification.from_pretrained(MODEL_DIR, dtype=torch.float32, num_labels=len(labels))
        # Of a padded text it takes the last token that is not this one.
        model.config.pad_token_id = model.config.eos_token_id
    else:
        model = LlamaForCausalLM.from_pretrained(MODEL_DIR, dtype=torch.float32)
    # transformers 4 has another name for it, and takes its own default if that is not there.
    wanted = json.loads((MODEL_DIR / "config.json").read_text())["rope_parameters"]["rope_theta"]
    theta = getattr(model.config, "rope_theta", wanted)
    if theta != wanted:
        raise SystemExit(f"this transformers reads the base with rope_theta {theta}, not {wanted}")
    model.config._name_or_path = model.name_or_path = NAME
    return model
