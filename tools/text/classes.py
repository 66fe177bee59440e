"""Tokenizer classes that keep only the vocabulary of a tokenizer.json, as AutoTokenizer chooses them for a model:
tests/fixtures/tokenizers/*/classes.json."""

import json
import tempfile
from pathlib import Path

import tokens
from tokens import CHAT_FILES, OUT, byte_level, chats, folder, pieces, probes

tokens.PROBES += ["  the two", " in", "the<s> in </s>an", "and\n\nthe  12 345", "<call> the"]
CLASSES = [None, "LlamaTokenizer", "LlamaTokenizerFast", "Qwen2Tokenizer", "GemmaTokenizer", "PreTrainedTokenizerFast"]
FLAGS = {
    "LlamaTokenizer": [
        {"legacy": True},
        {"legacy": None},
        {"add_prefix_space": False},
        {"add_bos_token": False, "legacy": False},
    ],
    "Qwen2Tokenizer": [{"add_prefix_space": True}],
}
MODELS = ["llama", "mistral", "mixtral", "phi3", "qwen2", "qwen3", "qwen3_moe", "gemma2", "gemma3_text"]
NAMED = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "</s>"}
CHAT_CLASS = {
    "bytes": ("qwen2", {"tokenizer_class": "Qwen2Tokenizer", **NAMED}),
    "pieces": ("llama", {"tokenizer_class": "LlamaTokenizer", **NAMED}),
}


def files(model, config):
    return {"config.json": {"model_type": model}, "tokenizer_config.json": config}


def cases(tokenizer):
    # Gemma's class wants a token for what has none.
    gemma = tokenizer.token_to_id("<unk>") is not None
    for model in [model for model in MODELS if gemma or not model.startswith("gemma")]:
        for kind in [kind for kind in CLASSES if gemma or kind != "GemmaTokenizer"]:
            named = {"tokenizer_class": kind} if kind else {}
            yield f"{model} {kind}", files(model, {**named, **NAMED})
            for flags in FLAGS.get(kind, []) if model in ("llama", "mistral", "qwen3") else []:
                yield f"{model} {kind} {flags}", files(model, {**named, **NAMED, **flags})
    unnamed = [("llama", "LlamaTokenizer"), ("qwen2", "Qwen2Tokenizer"), ("gemma2", "GemmaTokenizer")]
    for model, kind in unnamed if gemma else unnamed[:2]:
        yield f"{model} {kind} without names", files(model, {"tokenizer_class": kind})
        yield f"{model} {kind} with null", files(model, {"tokenizer_class": kind, "bos_token": None, "eos_token": None})


def main():
    # What is configured is all there is.
    tokens.CONFIG.clear()
    for name, tokenizer in {"bytes": byte_level(), "pieces": pieces()}.items():
        found = []
        with tempfile.TemporaryDirectory() as root:
            for case, given in cases(tokenizer):
                loaded = folder(tokenizer, given, Path(root) / "case")
                found.append(
                    {"name": case, "files": given, "variables": loaded.special_tokens_map, "probes": list(probes(loaded))}
                )
            model, config = CHAT_CLASS[name]
            chat_files = {**CHAT_FILES, **files(model, config)}
            talks = list(chats(folder(tokenizer, chat_files, Path(root) / "chat")))
        text = json.dumps({"cases": found, "chat_files": chat_files, "chats": talks}, ensure_ascii=False, indent=1)
        (OUT / name / "classes.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
