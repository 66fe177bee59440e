"""Vocabularies in the form of GGUF, one for each way to split a text and one of sentencepiece's, and the ids that
transformers gives to texts: tests/fixtures/gguf/{NAME.vocabulary.gguf, vocabularies.json}."""

import json
import tempfile
from pathlib import Path

import gguf
import sentencepiece
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import LlamaTokenizer, PreTrainedTokenizerFast
from transformers.tokenization_utils_base import generate_merges

OUT = Path(__file__).resolve().parents[2] / "tests/fixtures/gguf"
CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
TAIL = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
TEKKEN = rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
WORDS = {
    "gpt-2": None,
    "smollm": "digits",
    "llama-bpe": rf"{CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{TAIL}",
    "qwen2": rf"{CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{TAIL}",
    "tekken": TEKKEN,
}
CORPUS = [
    "The quick brown fox doesn't jump over 1234567 lazy dogs; it's 3.14159 o'clock, isn't it?",
    "def main(args):\n    for i in range(1000):\n        print(f\"{i}: {args[i]}\")\n\n\treturn None  # done",
    "HTTPServer and camelCase, SCREAMING_SNAKE and kebab-case: https://example.com/a/b?c=d&e=f",
    "Ünïcödé naïve café, Straße, ЖИВОТ живёт, 日本語のテキスト、漢字かな交じり文。 한국어 문장입니다. مرحبا بالعالم",
    "   leading and   inner    spaces\t\ttabs \r\n windows\r\n\r\n newlines\n\n\n",
    "emoji 🦀🇩🇪👩‍👩‍👧 and combining e\u0301 a\u0308 nͣ; ﬁ ligature ½ ² Ⅷ ١٢٣",
    "I'LL you'Re THEY'VE we'd can't 'tis 's 'T",
]
PROBES = CORPUS + [
    "",
    " ",
    "a",
    "  two",
    "\n",
    "hello<|end|>world <|end|> <|tool|>x",
    "<|begin|>hello",
    "12345678 9 00",
    "K\u212a\u0345",
    "\u0000\u007f\ufffd",
    "日本語 text 混在 123円",
    "x" * 40 + " " * 40 + "y",
]
CONTROL, TOOL = ["<|begin|>", "<|end|>"], "<|tool|>"


def special(token):
    return AddedToken(token, normalized=False, special=True)


def trained(name, regex):
    tokenizer = Tokenizer(models.BPE(ignore_merges=name in ("llama-bpe", "tekken")))
    bytes_of = lambda split: pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=split)
    if regex is None:
        tokenizer.pre_tokenizer = bytes_of(True)
    elif regex == "digits":
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), bytes_of(True)])
    else:
        split = pre_tokenizers.Split(Regex(regex), behavior="isolated")
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, bytes_of(False)])
    if name == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.decoder = decoders.ByteLevel()
    # SmolLM's control tokens come first and are a part of its vocabulary, the others' come behind it.
    first = CONTROL if name == "smollm" else []
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=440, initial_alphabet=alphabet, special_tokens=first, show_progress=False)
    tokenizer.train_from_iterator(CORPUS * 3, trainer)
    tokenizer.add_tokens([special(token) for token in CONTROL])
    tokenizer.add_tokens([AddedToken(TOOL, normalized=False)])
    return tokenizer


def write(name, model, tokens, kinds, extra):
    out = gguf.GGUFWriter(OUT / f"{name}.vocabulary.gguf", "llama")
    out.add_type("model")
    out.add_tokenizer_model(model)
    out.add_token_list(tokens)
    out.add_token_types(kinds)
    extra(out)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()


def of_bytes(name, regex):
    tokenizer = trained(name, regex)
    state = json.loads(tokenizer.to_str())
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    tokens = [token for token, _ in vocabulary]
    assert [at for _, at in vocabulary] == list(range(len(tokens)))
    kinds = [3 if token in CONTROL else 4 if token == TOOL else 1 for token in tokens]
    bos, eos = (tokenizer.token_to_id(token) for token in CONTROL)
    # What fills an embedding up to a round number of rows.
    if name == "qwen2":
        tokens, kinds = tokens + [f"[PAD{at}]" for at in range(3)], kinds + [5] * 3
    adds_bos = name in ("llama-bpe", "tekken")
    if adds_bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{CONTROL[0]} $A", pair=f"{CONTROL[0]} $A {CONTROL[0]} $B", special_tokens=[(CONTROL[0], bos)]
        )

    def extra(out):
        out.add_tokenizer_pre(name)
        out.add_token_merges([" ".join(merge) for merge in state["model"]["merges"]])
        out.add_bos_token_id(bos)
        out.add_eos_token_id(eos)

    write(name, "gpt2", tokens, kinds, extra)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=CONTROL[0], eos_token=CONTROL[1])


def of_pieces(folder):
    (folder / "corpus.txt").write_text("\n".join(text.replace("\n", " ").replace("\r", "") for text in CORPUS * 3))
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "corpus.txt"),
        model_prefix=str(folder / "tokenizer"),
        model_type="bpe",
        vocab_size=600,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        split_digits=True,
        allow_whitespace_only_pieces=True,
        user_defined_symbols=[TOOL],
        control_symbols=["<|end|>"],
        minloglevel=2,
    )
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    ids = range(pieces.get_piece_size())

    def kind(at):
        if pieces.is_unknown(at):
            return 2
        if pieces.is_control(at):
            return 3
        if pieces.is_byte(at):
            return 6
        return 4 if pieces.id_to_piece(at) == TOOL else 1

    def extra(out):
        out.add_tokenizer_pre("default")
        out.add_token_scores([pieces.get_score(at) for at in ids])
        out.add_bos_token_id(1)
        out.add_eos_token_id(2)
        out.add_unk_token_id(0)
        out.add_add_bos_token(True)

    write("pieces", "llama", [pieces.id_to_piece(at) for at in ids], [kind(at) for at in ids], extra)
    # As published tokenizer.json files have them: merges in the order of scores. From a tokenizer.model alone
    # transformers takes the order of ids, which differs from sentencepiece's where runs of spaces come first.
    vocabulary = {pieces.id_to_piece(at): at for at in ids}
    merges = generate_merges(vocabulary, {pieces.id_to_piece(at): pieces.get_score(at) for at in ids})
    tokenizer = LlamaTokenizer(vocab=vocabulary, merges=merges, add_bos_token=True)
    tokenizer.add_tokens([special("<|end|>")], special_tokens=True)
    tokenizer.add_tokens([AddedToken(TOOL, normalized=False)])
    return tokenizer, pieces


def expected(tokenizer, probes):
    plain = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in probes]
    whole = [tokenizer(text)["input_ids"] for text in probes]
    decoded = [tokenizer.decode(ids, clean_up_tokenization_spaces=False) for ids in plain]
    return [list(case) for case in zip(probes, plain, whole, decoded)]


if __name__ == "__main__":
    OUT.mkdir(exist_ok=True)
    cases = {name: expected(of_bytes(name, regex), PROBES) for name, regex in WORDS.items()}
    with tempfile.TemporaryDirectory() as folder:
        tokenizer, pieces = of_pieces(Path(folder))
        cases["pieces"] = expected(tokenizer, PROBES)
        # Where a text begins with a space, the two put another in front in different ways.
        for text, plain, _, _ in cases["pieces"]:
            assert "<|" in text or text.startswith(" ") or pieces.encode(text) == plain, text
    (OUT / "vocabularies.json").write_text(json.dumps(cases, ensure_ascii=False, indent=0) + "\n")
