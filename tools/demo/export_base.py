"""Rounds the trained base to bf16 and saves it where the adapters are trained on it and the server reads it."""

import json

import torch
from transformers import AutoTokenizer, GenerationConfig, LlamaForCausalLM

from corpus import LATE_SHARES
from paths import MODEL_DIR, WORK_DIR
from train_base import ROWS, SEED, config, rows


def main() -> None:
    tokenizer = AutoTokenizer.from_pretrained(MODEL_DIR)
    model = LlamaForCausalLM(config(tokenizer))
    saved = torch.load(WORK_DIR / "base.pt")
    model.load_state_dict(saved["model"])
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, do_sample=False,
    )
    model.to(torch.bfloat16).save_pretrained(MODEL_DIR)
    held_out = rows(tokenizer, SEED, 8 * ROWS, LATE_SHARES)
    with torch.no_grad():
        loss = model.float()(input_ids=held_out, labels=held_out).loss.item()
    facts = {"step": saved["step"], "tokens": saved["tokens"], "parameters": model.num_parameters(), "held_out_loss": loss}
    (WORK_DIR / "base.json").write_text(json.dumps(facts))
    print(facts)


if __name__ == "__main__":
    main()
