"""Chats of adapters that were saved with their tokenizer, as transformers renders them from there:
tests/fixtures/tokenizers/bytes/adapters.json."""

import json
import shutil
import tempfile
from pathlib import Path

from transformers import AutoTokenizer

from tokens import CHAT_FILES, CHATS, CONFIG, OUT, byte_level, folder

CHATML = (
    "{% for m in messages %}{{ '<turn>' + m['role'] + '\n' + m['content'] + '<over>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<turn>assistant\n' }}{% endif %}"
)
PLAIN = "{{ bos_token }}{% for m in messages %}{{ m.role }}: {{ m.content | trim }}{{ eos_token }}\n{% endfor %}"
OTHER = "{% for m in messages %}[{{ m.content }}]{% endfor %}"
BASE = "{{ bos_token }}{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"


def saved(tokenizer, root, template):
    """As transformers saves it today."""
    tokenizer.chat_template = template
    tokenizer.save_pretrained(str(root))
    return {path.name: path.read_text(encoding="utf-8") for path in root.iterdir() if path.name != "tokenizer.json"}


def in_config(template):
    """As transformers before 4.51 saved it."""
    return {"tokenizer_config.json": json.dumps({**CONFIG, "pad_token": "<pad>", "chat_template": template})}


def main():
    with tempfile.TemporaryDirectory() as root:
        root = Path(root)
        base = folder(byte_level(), CHAT_FILES, root / "base")
        own = AutoTokenizer.from_pretrained(str(root / "base"))
        cases = {
            "saved": saved(own, root / "saved", CHATML),
            "saved with the base's": saved(own, root / "same", BASE),
            "in the config": in_config(PLAIN),
            "named": in_config([{"name": "tool_use", "template": OTHER}, {"name": "default", "template": CHATML}]),
            "one that is named": in_config([{"name": "own", "template": OTHER}]),
            "both": {**in_config(OTHER), "chat_template.jinja": PLAIN},
            "none": in_config(None),
        }
        base.chat_template = BASE
        found = []
        for name, files in cases.items():
            # One that is not called default is the only one all the same: transformers wants it by name.
            by_name = {"chat_template": "own"} if name == "one that is named" else {}
            adapter = root / "adapter"
            shutil.rmtree(adapter, ignore_errors=True)
            shutil.copytree(root / "base", adapter)
            for file, text in files.items():
                (adapter / file).write_text(text, encoding="utf-8")
            loaded = AutoTokenizer.from_pretrained(str(adapter))
            if loaded.chat_template is None:
                loaded = base
            chats = []
            for chat in CHATS:
                messages = [{"role": role, "content": content} for role, content in chat]
                given = dict(add_generation_prompt=True, **by_name)
                ids = loaded.apply_chat_template(messages, sanitize_control_tokens=True, return_dict=False, **given)
                text = loaded.apply_chat_template(messages, tokenize=False, **given)
                # transformers sanitizes only what it tokenizes: its marks are none of a client's.
                text = text.replace("\U000f0000", "").replace("\U000f0001", "")
                chats.append(
                    {
                        "messages": chat,
                        "text": text,
                        "ids": ids,
                    }
                )
            own = {"saved with the base's": False, "none": False}.get(name, True)
            found.append({"name": name, "files": files, "own": own, "chats": chats})
    files = {**CHAT_FILES, "tokenizer_config.json": {**CONFIG, **CHAT_FILES["tokenizer_config.json"]}}
    text = json.dumps({"base": {"files": files, "chat_template": BASE}, "adapters": found}, ensure_ascii=False, indent=1)
    (OUT / "bytes/adapters.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
