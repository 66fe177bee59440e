"""Renderings of chat templates by transformers: tests/fixtures/templates/renderings.json."""

import json
from pathlib import Path

from transformers.utils.chat_template_utils import _compile_jinja_template

from idioms import EXPRESSIONS, OPERATORS, REFUSED, WHITE_SPACE

HERE = Path(__file__).parent
OUT = HERE.parents[1] / "tests/fixtures/templates/renderings.json"

CONVERSATIONS = [
    [{"role": "user", "content": "what is 2 < 3?"}],
    [
        {"role": "system", "content": " be brief "},
        {"role": "user", "content": "what is 2 < 3?"},
        {"role": "assistant", "content": "<think>\nhm\n</think>\n\nyes"},
        {"role": "user", "content": "and 3 > 2 \"é\" <b>?\n"},
    ],
    [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": " Hello "},
        {"role": "user", "content": "Bye 🦀\n"},
        {"role": "assistant", "content": "so long"},
    ],
    [{"role": "tool", "content": "4"}, {"role": "user", "content": ""}],
]
TOKENS = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
VARIABLES = [{}, {"enable_thinking": False, "date_string": "1 Jan 2026", "add_generation_prompt": False}]


def expressions():
    """Lines, but for strings that go on in the next."""
    text = ""
    for line in EXPRESSIONS.strip("\n").split("\n"):
        text += line
        if line.endswith("\\"):
            text += "\n"
        else:
            yield text
            text = ""


def precedence():
    """Every pair of operators, plain and with `not` before an operand, as far as the result is no error."""
    right = {"in": "[9, 3, 1, true]", "not in": "[9, 3, 1, true]"}
    for first in OPERATORS:
        tags = []
        for second in OPERATORS:
            b, c = right.get(first, "2"), right.get(second, "3")
            for expression in (f"7 {first} {b} {second} {c}", f"not 7 {first} {b} {second} {c}", f"-7 {first} {b} {second} {c}"):
                tag = f"{{{{ {expression} }}}}"
                if "text" in render(tag, 0, {}):
                    tags.append(tag)
        yield " ".join(tags)


def render(template, conversation, variables):
    messages = CONVERSATIONS[conversation]
    given = {"messages": messages, "m": messages, "tools": None, "documents": None, "add_generation_prompt": True}
    try:
        return {"text": _compile_jinja_template(template).render(**{**given, **TOKENS, **variables})}
    except Exception as error:  # whatever a template can do wrong
        raised = type(error).__name__ == "TemplateError"
        return {"raised": str(error)} if raised else {"failed": type(error).__name__}


def main():
    cases = []
    for template in [*expressions(), *WHITE_SPACE, *REFUSED]:
        for conversation in range(2):
            cases.append({"template": template, "conversation": conversation, "variables": {}})
    for path in sorted((HERE / "templates").glob("*.jinja")):
        template = path.read_bytes().decode()
        for conversation in range(len(CONVERSATIONS)):
            for variables in VARIABLES:
                cases.append({"template": template, "conversation": conversation, "variables": variables})
    for template in precedence():
        cases.append({"template": template, "conversation": 0, "variables": {}})
    for case in cases:
        case.update(render(case["template"], case["conversation"], case["variables"]))
    OUT.parent.mkdir(parents=True, exist_ok=True)
    lines = ",\n".join(json.dumps(case, ensure_ascii=False) for case in cases)
    head = json.dumps({"tokens": TOKENS, "conversations": CONVERSATIONS}, ensure_ascii=False)
    OUT.write_text(f'{head[:-1]}, "cases": [\n{lines}\n]}}\n', encoding="utf-8")


if __name__ == "__main__":
    main()
