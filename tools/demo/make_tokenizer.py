"""Trains the byte-level BPE tokenizer on the corpus and saves it the way transformers reads it."""

import json
from random import Random

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from corpus import document
from paths import MODEL_DIR
from tasks import TASKS

VOCABULARY = 3072
BOS, EOS = "<s>", "</s>"
# Digits go in pairs and without their space, so a day, a month or half a year is one token wherever it stands.
WORD_PATTERN = r" ?\p{L}+|\p{N}{1,2}| ?[^\s\p{L}\p{N}]+|\s"
SEED, DOCUMENTS, PROMPTS_PER_TASK = 11, 40_000, 1_500


def texts():
    rng = Random(SEED)
    for _ in range(DOCUMENTS):
        yield document(rng)
    for task in TASKS.values():
        for _ in range(PROMPTS_PER_TASK):
            example = task.draw(rng)
            yield example.prompt
            yield " " + example.answer


def main() -> None:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(WORD_PATTERN), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=[BOS, EOS], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False,
    )
    tokenizer.train_from_iterator(texts(), trainer)
    bos_id = tokenizer.token_to_id(BOS)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, bos_id)],
    )
    MODEL_DIR.mkdir(parents=True, exist_ok=True)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=BOS, eos_token=EOS, pad_token=EOS, model_max_length=512,
        clean_up_tokenization_spaces=False,
    ).save_pretrained(MODEL_DIR)
    # The class name that every release of transformers knows, older ones too.
    settings_file = MODEL_DIR / "tokenizer_config.json"
    settings = json.loads(settings_file.read_text()) | {"tokenizer_class": "PreTrainedTokenizerFast"}
    settings.pop("backend", None)
    settings_file.write_text(json.dumps(settings, indent=2) + "\n")
    print(f"{tokenizer.get_vocab_size()} tokens")


if __name__ == "__main__":
    main()
