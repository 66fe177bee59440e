"""Special and added tokens as transformers reads them: tests/fixtures/tokenizers/."""

import json
import shutil
import tempfile
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import AutoTokenizer

OUT = Path(__file__).parents[2] / "tests/fixtures/tokenizers"
CONFIG = {"tokenizer_class": "TokenizersBackend", "bos_token": "<s>", "eos_token": "</s>"}
WORDS = ["th", "the", "in", "on", "user", "an", "and", "er", "re", "ing", "ti", "tion"]


def merges_of(words, vocab, pieces):
    merges = []
    for word in words:
        parts = list(word)
        while len(parts) > 1:
            pair = (parts[0], parts[1])
            joined = "".join(pair)
            if joined not in vocab:
                vocab[joined] = len(vocab)
                merges.append(pair)
            parts[:2] = [joined]
    return merges


def byte_level():
    """GPT-2's alphabet and a few words."""
    vocab = {letter: index for index, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    merges = merges_of(WORDS + ["Ġthe", "Ġan"], vocab, None)
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<s>", "</s>"])
    tokenizer.add_tokens([AddedToken("<call>", normalized=False)])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
    )
    return tokenizer


def pieces():
    """As Llama 2's: byte fallback, and the meta space in the normalizer."""
    letters = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *"abcdefghijklmnopqrstuvwxyz<>|_/:.,"]
    vocab = {letter: index for index, letter in enumerate(letters)}
    merges = merges_of(WORDS + ["▁the", "▁an"], vocab, None)
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 1)]
    )
    return tokenizer


def described(text, **flags):
    return {"content": text, "lstrip": False, "rstrip": False, "single_word": False, "normalized": False, **flags}


FILES = {
    "nothing": {},
    "map": {"special_tokens_map.json": {"pad_token": "<pad>", "unk_token": described("<u>"), "eos_token": "<end>"}},
    "map_extra": {"special_tokens_map.json": {"additional_special_tokens": ["<x>", "<y>"], "image_token": "<image>"}},
    "added": {"added_tokens.json": {"<x>": 500, "<y>": 400}, "special_tokens_map.json": {"pad_token": "<x>"}},
    "decoder": {
        "tokenizer_config.json": {
            "pad_token": "<pad>",
            "added_tokens_decoder": {
                "900": described("<x>", lstrip=True, special=True),
                "901": described("<y>", rstrip=True, special=False),
                "902": described("word", single_word=True, special=False),
                "903": described("Big", normalized=True, special=False),
                "904": described("<pad>", special=True),
            },
        },
        "special_tokens_map.json": {"unk_token": "<ignored>"},
        "added_tokens.json": {"<also ignored>": 905},
    },
    "both_sides": {
        "tokenizer_config.json": {"added_tokens_decoder": {"3": described("<x>", lstrip=True, rstrip=True, special=True)}}
    },
    "own_names": {"tokenizer_config.json": {"image_token": "<image>", "additional_special_tokens": ["<x>"]}},
    "extra_list": {"tokenizer_config.json": {"extra_special_tokens": ["<x>", "<y>"]}},
    "extra_dict": {"tokenizer_config.json": {"extra_special_tokens": {"image_token": "<image>"}}},
    "typed": {"tokenizer_config.json": {"pad_token": {"__type": "AddedToken", **described("<pad>", rstrip=True, special=True)}}},
    "split": {"tokenizer_config.json": {"split_special_tokens": True}},
    "add_bos": {"tokenizer_config.json": {"add_bos_token": True, "add_eos_token": True}},
    "ordinary_is_special": {"tokenizer_config.json": {"pad_token": "<call>"}},
}

PROBES = [
    "the <x> end", "the  <x>  and<y> the", "a word in words", "Big big", "<pad><u><end><image>", "<s>the</s>", "<call>in</call>",
    "<ignored> <also ignored>", "",
]

TEMPLATES = {
    "plain": "{{ bos_token }}{% for m in messages %}<turn>{{ m.role }}\n{{ m.content }}<over>\n{% endfor %}<turn>",
    "trimmed": "{% for m in messages %}{{ '[' ~ m.role ~ ']' }}{{ m.content | trim }}{{ eos_token }}{% endfor %}",
    "changed": "{% for m in messages %}{{ m.content.replace('and', '<over>') | upper }}{{ m.content | tojson }}{% endfor %}",
    "apart": "{% for m in messages %}{{ m.content.split('<')[-1] }}{{ m.content[:2] }}|{{ m.content[2:] }}{% endfor %}",
    "joined": "{% for m in messages %}{{ '<' ~ m.role ~ '>' }}{{ m.content }}{% endfor %}{{ word }}",
}
CHAT_FILES = {
    "tokenizer_config.json": {"pad_token": "<pad>"},
    "added_tokens.json": {"<turn>": 900, "<over>": 901, "<plain>": 902, "\n": 903},
}
CHATS = [
    [["user", "the end"]],
    [["user", "the <over> and</s>in"], ["assistant", " <s>the<turn>"]],
    [["<turn>", "<plain> <call> <over>"], ["turn", "<over><over>\n<turn"]],
    [["user", "\U000f0000</s>\U000f0001 <\U000f0000/s>"]],
    [["user", "🦀<over>é</s>\n\n<over> the"]],
]


def folder(tokenizer, files, root):
    if root.exists():
        shutil.rmtree(root)
    root.mkdir(parents=True)
    tokenizer.save(str(root / "tokenizer.json"))
    config = {**CONFIG, **files.get("tokenizer_config.json", {})}
    for name, content in {**files, "tokenizer_config.json": config}.items():
        (root / name).write_text(json.dumps(content), encoding="utf-8")
    return AutoTokenizer.from_pretrained(str(root))


def probes(tokenizer):
    for text in PROBES:
        ids = tokenizer.encode(text)
        yield {
            "text": text,
            "ids": ids,
            "decoded": tokenizer.decode(ids),
            "skipped": tokenizer.decode(ids, skip_special_tokens=True),
        }


def chats(tokenizer):
    for name, template in TEMPLATES.items():
        for chat in CHATS:
            messages = [{"role": role, "content": content} for role, content in chat]
            for allow in (False, True):
                given = dict(chat_template=template, word="</s><over>", return_dict=False)
                try:
                    ids = tokenizer.apply_chat_template(messages, sanitize_control_tokens=not allow, **given)
                except ValueError as error:
                    ids = None
                    assert "sanitize" in str(error), error
                yield {"template": template, "messages": chat, "allow": allow, "ids": ids}


def main():
    for name, tokenizer in {"bytes": byte_level(), "pieces": pieces()}.items():
        cases, talks = [], []
        with tempfile.TemporaryDirectory() as root:
            for case, files in FILES.items():
                loaded = folder(tokenizer, files, Path(root) / case)
                config = {**CONFIG, **files.get("tokenizer_config.json", {})}
                cases.append(
                    {
                        "name": case,
                        "files": {**files, "tokenizer_config.json": config},
                        "variables": loaded.special_tokens_map,
                        "probes": list(probes(loaded)),
                    }
                )
            talks = list(chats(folder(tokenizer, CHAT_FILES, Path(root) / "chat")))
        out = OUT / name
        out.mkdir(parents=True, exist_ok=True)
        tokenizer.save(str(out / "tokenizer.json"), pretty=False)
        files = {**CHAT_FILES, "tokenizer_config.json": {**CONFIG, **CHAT_FILES["tokenizer_config.json"]}}
        text = json.dumps({"cases": cases, "chat_files": files, "chats": talks}, ensure_ascii=False, indent=1)
        (out / "expected.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
