"""Tokens that adapters have added to the tokenizer of their base, as transformers reads texts with them:
tests/fixtures/tokenizers/*/own.json.

What is expected is what the tokenizer does that the adapter was trained with, which is what its tokenizer.json says. Read from
there again it does the same, but for two things: classes that rebuild a tokenizer (Llama's, Qwen's, Gemma's) take special tokens
from the names in tokenizer_config.json then, and forget that they stripped what is beside them or were single words; and
Llama's does not save that it is a legacy one.
"""

import json
import random
import tempfile
from pathlib import Path

from tokenizers import AddedToken
from transformers import AutoTokenizer

import tokens
from tokens import OUT, byte_level, folder, pieces

NAMED = {"bos_token": "<s>", "eos_token": "</s>"}
UNKNOWN = {**NAMED, "unk_token": "<unk>", "pad_token": "</s>"}
BASES = {
    "bytes": {
        "as written": ("mistral", {"tokenizer_class": "TokenizersBackend", **NAMED}),
        "qwen2": ("qwen2", {"tokenizer_class": "Qwen2Tokenizer", **NAMED}),
        "split": ("mistral", {"tokenizer_class": "TokenizersBackend", **NAMED, "split_special_tokens": True}),
    },
    "pieces": {
        "as written": ("mistral", {"tokenizer_class": "TokenizersBackend", **UNKNOWN}),
        "llama": ("llama", {"tokenizer_class": "LlamaTokenizer", **UNKNOWN}),
        "llama, legacy": ("llama", {"tokenizer_class": "LlamaTokenizer", "legacy": True, **UNKNOWN}),
        "gemma": ("gemma2", {"tokenizer_class": "GemmaTokenizer", **UNKNOWN}),
    },
}


def plain(text, **flags):
    return AddedToken(text, **{"normalized": False, **flags})


def special(text, **flags):
    return plain(text, special=True, **flags)


# By what a trainer may do: tokens, then which of them ends an answer.
ADDED = {
    "as text": (["<tool>", "zürich", "日本", "in the"], None),
    "special": ([special("<a>"), special("<b>"), plain("<c>")], None),
    "strips": ([special("<l>", lstrip=True), plain("<r>", rstrip=True), special("<lr>", lstrip=True, rstrip=True)], None),
    "words": ([plain("word", single_word=True), plain("on", single_word=True), special("<w>", single_word=True)], None),
    "normalized": ([plain("Big one", normalized=True), plain("e\u0301", normalized=True), plain(" the", normalized=True)], None),
    "longer and shorter": ([plain("<t"), plain("<t>"), plain("<t>>"), plain("<s><s>"), plain("</s> the"), plain("</")], None),
    "a word of the model": ([plain("tion"), special("the"), plain("<new>")], None),
    "an end": ([special("<turn>"), special("<end>")], "<end>"),
    "bytes": ([plain("Ġ"), plain("▁x"), plain("<0x41>x"), plain("\n\n"), plain("\u00a0")], None),
}
COMMON = ["the", " the", "in", " on", " ", "  ", "\n", "word", "words", "a", "<s>", "</s>", "<call>", "🦀", "e\u0301", "é", "日", "x", "12"]
TEMPLATE = "{{ bos_token }}{% for m in messages %}<turn>{{ m.role }}\n{{ m.content }}{{ eos_token }}\n{% endfor %}<turn>"


def content(token):
    return token if isinstance(token, str) else token.content


def texts(added, random):
    parts = COMMON + 3 * [content(token) for token in added]
    yield from ["", *(content(token) for token in added)]
    for count in (2, 2, 3, 3, 4, 6) * 5:
        yield "".join(random.choice(parts) for _ in range(count))


def probes(tokenizer, added):
    draw = random.Random(0)
    for text in texts(added, draw):
        ids = tokenizer.encode(text)
        yield {
            "text": text,
            "ids": ids,
            "bare": tokenizer.encode(text, add_special_tokens=False),
            "decoded": tokenizer.decode(ids),
            "skipped": tokenizer.decode(ids, skip_special_tokens=True),
        }


def decoded(tokenizer, added):
    draw, own = random.Random(1), tokenizer.convert_tokens_to_ids([content(token) for token in added])
    for _ in range(10):
        ids = [draw.choice(own) if draw.random() < 0.4 else draw.randrange(len(tokenizer)) for _ in range(8)]
        yield {"ids": ids, "decoded": tokenizer.decode(ids), "skipped": tokenizer.decode(ids, skip_special_tokens=True)}


def chats(tokenizer, added):
    for text in ["the", *(f"the {content(token)}the" for token in added), "</s><turn>"]:
        for allow in (False, True):
            messages = [{"role": "user", "content": text}]
            given = dict(chat_template=TEMPLATE, return_dict=False, sanitize_control_tokens=not allow)
            try:
                ids = tokenizer.apply_chat_template(messages, **given)
            except ValueError as error:
                ids = None
                assert "sanitize" in str(error), error
            yield {"content": text, "allow": allow, "ids": ids}


def case(name, base_files, root, added, eos):
    """A tokenizer of the base with tokens added, saved by transformers."""
    own = AutoTokenizer.from_pretrained(str(root / "base"))
    own.add_tokens([token for token in added if isinstance(token, str) or not token.special])
    specials = [token for token in added if not isinstance(token, str) and token.special]
    if specials:
        own.add_special_tokens({"additional_special_tokens": specials})
    if eos:
        own.eos_token = eos
    saved = root / "adapter"
    own.save_pretrained(str(saved))
    (saved / "config.json").write_text((root / "base/config.json").read_text())
    again = AutoTokenizer.from_pretrained(str(saved))
    rebuilt = base_files["config.json"]["model_type"] != "mistral"
    flagged = any(token.lstrip or token.rstrip or token.single_word for token in specials)
    forgotten = "legacy" in base_files["tokenizer_config.json"] or (rebuilt and flagged)
    assert forgotten or list(probes(again, added)) == list(probes(own, added)), (base_files, name)
    found = {
        "name": name,
        # All else in it is the base's.
        "added_tokens": json.loads((saved / "tokenizer.json").read_text(encoding="utf-8"))["added_tokens"],
        "tokenizer_config": json.loads((saved / "tokenizer_config.json").read_text(encoding="utf-8")),
        "eos": own.eos_token_id,
        "probes": list(probes(own, added)),
        "decoded": list(decoded(own, added)),
        "chats": list(chats(own, added)),
    }
    for file in saved.iterdir():
        file.unlink()
    return found


def main():
    tokens.CONFIG.clear()
    for kind, tokenizer in {"bytes": byte_level(), "pieces": pieces()}.items():
        bases = []
        for name, (model, config) in BASES[kind].items():
            files = {"config.json": {"model_type": model}, "tokenizer_config.json": config}
            with tempfile.TemporaryDirectory() as root:
                root = Path(root)
                (root / "adapter").mkdir()
                folder(tokenizer, files, root / "base")
                cases = [case(of, files, root, added, eos) for of, (added, eos) in ADDED.items()]
            bases.append({"name": name, "files": files, "cases": cases})
        text = json.dumps({"template": TEMPLATE, "bases": bases}, ensure_ascii=False)
        (OUT / kind / "own.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
