//! Text at the gate: tokenizer, incremental detokenizer, stop strings, chat template.
