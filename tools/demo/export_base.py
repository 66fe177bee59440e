"""Rounds the trained base to bf16 and saves it where the adapters are trained on it and the server reads it."""

import torch
from transformers import AutoTokenizer, GenerationConfig, LlamaForCausalLM

from paths import MODEL_DIR, WORK_DIR
from train_base import config


def main() -> None:
    tokenizer = AutoTokenizer.from_pretrained(MODEL_DIR)
    model = LlamaForCausalLM(config(tokenizer))
    saved = torch.load(WORK_DIR / "base.pt")
    model.load_state_dict(saved["model"])
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, do_sample=False,
    )
    model.to(torch.bfloat16).save_pretrained(MODEL_DIR)
    (MODEL_DIR / "model.safetensors").chmod(0o644)


if __name__ == "__main__":
    main()
