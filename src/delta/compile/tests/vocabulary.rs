//! Rows of embedding and head: which tokens, whose, and what is refused.

use super::toy::{HIDDEN, Toy, Upload, VOCAB, key, numbers};
use crate::delta::layout::Site;
use crate::delta::{AddedTokens, DeltaError, DeltaOp, DeltaProgram, EmbeddingRows};
use crate::ops::WeightFormat;
use crate::types::MAX_ADDED_TOKENS;

const EMBED: &str = "model.embed_tokens";
const BESIDE: &str = "token_adapter.trainable_tokens_delta";

/// LoRA on `q_proj` with some tokens' rows for a module.
fn beside(indices: &str, rows: &[(&str, usize)]) -> Upload {
    let upload = Upload::lora().set("trainable_token_indices", indices);
    rows.iter().fold(upload, |upload, (module, count)| upload.tensor(&key(module, BESIDE), &[*count, HIDDEN]))
}

fn alone(indices: &str, rows: &[(&str, usize)]) -> Upload {
    let upload = Upload::new("TRAINABLE_TOKENS").set("token_indices", indices);
    let add = |upload: Upload, (module, count): &(&str, usize)| {
        upload.tensor(&key(module, "trainable_tokens_delta"), &[*count, HIDDEN])
    };
    rows.iter().fold(upload, add)
}

/// Site, ids, numbers and tied of the ops that replace rows.
fn rows(program: &DeltaProgram) -> Vec<(Site, Vec<u32>, Vec<f32>, bool)> {
    let replaced = |(site, op): &(Site, DeltaOp)| match op {
        DeltaOp::EmbeddingRows(EmbeddingRows { ids, rows, tied }) => Some((*site, ids.clone(), rows.to_f32(), *tied)),
        _ => None,
    };
    program.ops.iter().filter_map(replaced).collect()
}

#[test]
fn rows_come_in_the_order_of_their_tokens() {
    let saved = numbers(&key(EMBED, BESIDE), &[3, HIDDEN]);
    let row = |index: usize| saved[index * HIDDEN..][..HIDDEN].to_vec();
    let program = beside("[7, 2, 5]", &[(EMBED, 3)]).ops();
    assert_eq!(rows(&program), [(Site::Embed, vec![2, 5, 7], [row(1), row(2), row(0)].concat(), false)]);
    let ascending = beside("[2, 5, 7]", &[(EMBED, 3)]).ops();
    assert_eq!(rows(&ascending), [(Site::Embed, vec![2, 5, 7], saved.clone(), false)]);
    assert_eq!(rows(&beside("[]", &[]).ops()), []);
    let facts = alone("[7, 2, 5]", &[(EMBED, 3)]).compile(&Toy::tied()).unwrap().facts(WeightFormat::Bf16);
    assert_eq!(
        (facts.kind.as_str(), facts.targets),
        ("trainable tokens", vec!["embed".to_owned(), "lm_head".to_owned()])
    );
    assert_eq!((facts.parameters, facts.device_bytes), (3 * HIDDEN as u64, 2 * 3 * HIDDEN as u64 + 2 * 4 * 3));
}

#[test]
fn the_head_of_a_tied_base_has_the_rows_of_the_embedding_unless_it_has_its_own() {
    let of = |upload: &Upload, toy: &Toy| {
        let found = rows(&upload.compile(toy).unwrap()).into_iter();
        found.map(|(site, ids, _, tied)| (site, ids, tied)).collect::<Vec<_>>()
    };
    let (tied, untied) = (Toy::tied(), Toy::new());
    let embed = beside("[1, 4]", &[(EMBED, 2)]);
    assert_eq!(of(&embed, &tied), [(Site::Embed, vec![1, 4], true)]);
    assert_eq!(of(&embed, &untied), [(Site::Embed, vec![1, 4], false)]);
    let head = beside(r#"{"lm_head": [4, 1]}"#, &[("lm_head", 2)]);
    for toy in [&tied, &untied] {
        assert_eq!(of(&head, toy), [(Site::LmHead, vec![1, 4], false)]);
    }
    let both = r#"{"embed_tokens": [1, 4], "lm_head": [1, 4]}"#;
    assert_eq!(of(&beside(both, &[(EMBED, 2)]), &tied), [(Site::Embed, vec![1, 4], true)]);
    let apart = [(Site::Embed, vec![1, 4], false), (Site::LmHead, vec![1, 4], false)];
    assert_eq!(of(&beside(both, &[(EMBED, 2), ("lm_head", 2)]), &untied), apart);
    let other_order = beside(r#"{"embed_tokens": [1, 4], "lm_head": [4, 1]}"#, &[(EMBED, 2), ("lm_head", 2)]);
    assert_eq!(of(&other_order, &tied), apart);
    // PEFT has no tied list then.
    let refused = other_order.set("ensure_weight_tying", "true").compile(&tied).unwrap_err();
    assert!(matches!(&refused, DeltaError::BadField { field, .. } if field == "trainable_token_indices"), "{refused}");
    // By themselves they are saved for both.
    let name = |module| key(module, "trainable_tokens_delta");
    let values = numbers("of both", &[2, HIDDEN]);
    let twice = alone("[1, 4]", &[(EMBED, 2)]).values(&name(EMBED), &[2, HIDDEN], values.clone());
    let twice = twice.values(&name("lm_head"), &[2, HIDDEN], values.clone());
    assert_eq!(of(&twice, &tied), [(Site::Embed, vec![1, 4], true)]);
    let refused = twice.tensor(&name("lm_head"), &[2, HIDDEN]).compile(&tied).unwrap_err();
    assert!(matches!(refused, DeltaError::Untied { .. }), "{refused}");
    let both = alone("[1, 4]", &[(EMBED, 2), ("lm_head", 2)]).set("target_modules", r#"["embed_tokens", "lm_head"]"#);
    assert_eq!(of(&both, &untied), apart);
    assert!(matches!(both.compile(&tied), Err(DeltaError::WrongModule { .. })));
}

#[test]
fn tokens_that_mean_nothing_are_refused() {
    let bad = |upload: Upload, field: &str| match upload.refusal() {
        DeltaError::BadField { field: found, .. } => assert_eq!(found, field),
        other => panic!("{other}"),
    };
    for list in ["[1, 2, 1]", "[-1]", "[1.5]", r#"["a"]"#, "3", r#"{"embed_tokens": 3}"#, r#"{"lm_head": []}"#] {
        bad(beside(list, &[(EMBED, 1)]), "trainable_token_indices");
    }
    for list in ["[3, 3]", "null", "7", "[]"] {
        bad(alone(list, &[(EMBED, 2)]), "token_indices");
    }
    for name in ["embedding", "embed_tokens.weight", "Lm_head"] {
        bad(beside(&format!("{{{name:?}: [1]}}"), &[(EMBED, 1)]), "trainable_token_indices");
    }
    bad(beside(r#"{"embed_tokens": [1], "model.embed_tokens": [2]}"#, &[(EMBED, 1)]), "trainable_token_indices");
    let linear = beside(r#"{"q_proj": [1]}"#, &[("model.layers.0.self_attn.q_proj", 1)]).refusal();
    assert!(matches!(linear, DeltaError::WrongModule { .. }), "{linear}");
    let norm = alone("[1]", &[(EMBED, 1)]).set("target_modules", r#"["norm"]"#).refusal();
    assert!(matches!(norm, DeltaError::WrongModule { .. }), "{norm}");
    let no_rows = beside("[1]", &[]).refusal();
    assert!(matches!(no_rows, DeltaError::MissingTensor { .. }), "{no_rows}");
    assert!(matches!(beside("[1]", &[(EMBED, 2)]).refusal(), DeltaError::Shape { .. }));
    let unasked = beside("null", &[(EMBED, 2)]).refusal();
    assert!(matches!(unasked, DeltaError::NotTargeted { .. }), "{unasked}");
    assert!(matches!(alone("[1]", &[("lm_head", 1)]).refusal(), DeltaError::MissingTensor { .. }));
}

#[test]
fn a_module_has_lora_or_tokens() {
    let both = |module: &str, indices: &str| {
        let targets = format!("[\"q_proj\", {module:?}]");
        beside(indices, &[(EMBED, 1)]).set("target_modules", &targets).pair("lm_head", 2)
    };
    let refused = both("lm_head", "[1]").compile(&Toy::tied()).unwrap_err();
    assert!(matches!(refused, DeltaError::WrongModule { .. }), "{refused}");
    assert!(both("lm_head", "[1]").compile(&Toy::new()).is_ok());
    let embed = beside("[1]", &[(EMBED, 1)])
        .set("target_modules", r#"["embed_tokens"]"#)
        .without(&key("model.layers.0.self_attn.q_proj", "lora_A.weight"))
        .without(&key("model.layers.0.self_attn.q_proj", "lora_B.weight"))
        .without(&key("model.layers.1.self_attn.q_proj", "lora_A.weight"))
        .without(&key("model.layers.1.self_attn.q_proj", "lora_B.weight"))
        .tensor(&key(EMBED, "lora_embedding_A"), &[2, VOCAB])
        .tensor(&key(EMBED, "lora_embedding_B"), &[HIDDEN, 2]);
    assert!(matches!(embed.refusal(), DeltaError::WrongModule { .. }), "{}", embed.refusal());
}

#[test]
fn a_saved_embedding_replaces_the_rows_that_differ() {
    let (tied, name) = (Toy::tied(), key(EMBED, "weight"));
    let base = tied.weight("model.embed_tokens.weight");
    let mut values = base.clone();
    for row in [3, 8] {
        values[row * HIDDEN + 1] += 0.25;
    }
    let saved = |values: &[f32]| {
        let upload = Upload::lora().set("modules_to_save", r#"["embed_tokens"]"#);
        upload.values(&name, &[VOCAB, HIDDEN], values.to_vec())
    };
    let changed: Vec<f32> = [3, 8].iter().flat_map(|row| values[row * HIDDEN..][..HIDDEN].to_vec()).collect();
    for toy in [&tied, &Toy::new()] {
        let found = rows(&saved(&values).compile(toy).unwrap());
        assert_eq!(found, [(Site::Embed, vec![3, 8], changed.clone(), false)]);
        assert_eq!(rows(&saved(&base).compile(toy).unwrap()), []);
    }
    let all: Vec<f32> = base.iter().map(|number| number + 0.25).collect();
    let ids: Vec<u32> = (0..VOCAB as u32).collect();
    assert_eq!(rows(&saved(&all).compile(&tied).unwrap()), [(Site::Embed, ids, all, false)]);
    // Kept tied, the head is saved beside it, or in its place.
    let head = saved(&values).values(&key("lm_head", "weight"), &[VOCAB, HIDDEN], values.clone());
    for names in [r#"["embed_tokens", "model.embed_tokens"]"#, r#"["lm_head"]"#] {
        let kept = head.clone().set("ensure_weight_tying", "true").set("modules_to_save", names);
        assert_eq!(rows(&kept.compile(&tied).unwrap()), [(Site::Embed, vec![3, 8], changed.clone(), true)]);
    }
    let apart = head.set("ensure_weight_tying", "true").values(&key("lm_head", "weight"), &[VOCAB, HIDDEN], base);
    assert!(matches!(apart.compile(&tied), Err(DeltaError::Untied { .. })));
    // What is saved whole is no target.
    let target = saved(&values).set("target_modules", r#"["q_proj", "embed_tokens"]"#);
    assert_eq!(rows(&target.compile(&tied).unwrap()).len(), 1);
    let tokens = saved(&values).set("trainable_token_indices", "[1]").tensor(&key(EMBED, BESIDE), &[1, HIDDEN]);
    assert!(matches!(tokens.refusal(), DeltaError::WrongModule { .. }), "{}", tokens.refusal());
    let absent = saved(&values).without(&name).refusal();
    assert!(matches!(absent, DeltaError::MissingTensor { .. }), "{absent}");
    let norms = saved(&values).set("modules_to_save", r#"["embed_tokens", "norm"]"#).refusal();
    assert!(matches!(norms, DeltaError::MissingTensor { .. }), "{norms}");
}

#[test]
fn a_resized_vocabulary_of_which_the_file_does_not_say_all_is_refused_with_its_size() {
    let resized = |upload: Upload, of: &str, tokens: usize| match upload.refusal() {
        DeltaError::ResizedVocabulary { of: found, tokens: t, vocab_size: VOCAB, .. } => {
            assert_eq!((found.as_str(), t), (of, tokens))
        }
        other => panic!("{of}: {other}"),
    };
    let (embed, head) = (key(EMBED, "weight"), key("lm_head", "weight"));
    for tokens in [VOCAB - 1, VOCAB + 3] {
        if tokens > VOCAB {
            for name in [&embed, &head, &key(EMBED, "base_layer.weight")] {
                resized(Upload::lora().tensor(name, &[tokens, HIDDEN]), name, tokens);
            }
            let saved = Upload::lora().set("modules_to_save", r#"["embed_tokens"]"#);
            resized(saved.tensor(&embed, &[tokens, HIDDEN]), &embed, tokens);
        }
        let (a, b) = (key(EMBED, "lora_embedding_A"), key(EMBED, "lora_embedding_B"));
        let lora = Upload::new("LORA").set("r", "2").set("target_modules", r#"["embed_tokens"]"#);
        resized(lora.tensor(&a, &[2, tokens]).tensor(&b, &[HIDDEN, 2]), &a, tokens);
        let (a, b) = (key("lm_head", "lora_A.weight"), key("lm_head", "lora_B.weight"));
        let lora = Upload::new("LORA").set("r", "2").set("target_modules", r#"["lm_head"]"#);
        resized(lora.tensor(&a, &[2, HIDDEN]).tensor(&b, &[tokens, 2]), &b, tokens);
    }
    resized(beside(&format!("[{}, 0, {VOCAB}]", VOCAB + 4), &[(EMBED, 3)]), "trainable_token_indices", VOCAB + 5);
    resized(alone(&format!("[{VOCAB}]"), &[(EMBED, 1)]), "token_indices", VOCAB + 1);
    // Of another width it is another model's.
    let other = Upload::lora().set("modules_to_save", r#"["embed_tokens"]"#).tensor(&embed, &[VOCAB + 3, HIDDEN + 1]);
    assert!(matches!(other.refusal(), DeltaError::Shape { .. }));
}

/// LoRA on `q_proj` with embedding and head of `tokens` rows: the base's as far as it has them.
fn resized(toy: &Toy, tokens: usize) -> Upload {
    let rows = |upload: Upload, module: &str, of: &str| {
        let name = key(module, "weight");
        let mut values = toy.weight(of);
        values.truncate(tokens * HIDDEN);
        let added = tokens.saturating_sub(VOCAB);
        values.extend(numbers(&name, &[added, HIDDEN]));
        upload.values(&name, &[tokens, HIDDEN], values)
    };
    let head = if toy.layout.tied { "model.embed_tokens.weight" } else { "lm_head.weight" };
    rows(rows(Upload::lora(), EMBED, "model.embed_tokens.weight"), "lm_head", head)
}

fn added(program: &DeltaProgram) -> Vec<Vec<f32>> {
    let rows = |(site, op): &(Site, DeltaOp)| match op {
        DeltaOp::AddedTokens(AddedTokens { rows }) if *site == Site::LmHead => Some(rows.to_f32()),
        _ => None,
    };
    program.ops.iter().filter_map(rows).collect()
}

#[test]
fn tokens_that_were_added_are_rows_of_embedding_and_head_behind_the_bases() {
    for toy in [Toy::new(), Toy::tied()] {
        let program = resized(&toy, VOCAB + 2).compile(&toy).unwrap();
        let new = |module| numbers(&key(module, "weight"), &[2, HIDDEN]);
        let ids = vec![VOCAB as u32, VOCAB as u32 + 1];
        assert_eq!(rows(&program), [(Site::Embed, ids.clone(), new(EMBED), false)]);
        assert_eq!(added(&program), [new("lm_head")]);
        assert_eq!((program.vocab_size, program.keeps_base_kv), (Some(VOCAB + 2), false));
        assert_eq!(program.facts(WeightFormat::F32).vocab_size, Some(VOCAB as u32 + 2));
        // Trained rows, of the base's tokens and of others; the head of a tied base has them too.
        let tokens = resized(&toy, VOCAB + 2)
            .set("trainable_token_indices", &format!("[{}, 3]", VOCAB + 1))
            .tensor(&key(EMBED, BESIDE), &[2, HIDDEN]);
        let program = tokens.compile(&toy).unwrap();
        let saved = numbers(&key(EMBED, BESIDE), &[2, HIDDEN]);
        let (trained, of_base) = saved.split_at(HIDDEN);
        let embed = [of_base, &new(EMBED)[..HIDDEN], trained].concat();
        let mut expected = vec![(Site::Embed, vec![3, ids[0], ids[1]], embed, false)];
        if toy.layout.tied {
            expected.push((Site::LmHead, vec![3], of_base.to_vec(), false));
        }
        assert_eq!(rows(&program), expected);
        let head = if toy.layout.tied { [&new("lm_head")[..HIDDEN], trained].concat() } else { new("lm_head") };
        assert_eq!(added(&program), [head]);
    }
}

#[test]
fn a_vocabulary_may_lack_the_last_of_the_bases_tokens() {
    let toy = Toy::new();
    let program = resized(&toy, VOCAB - 2).compile(&toy).unwrap();
    assert_eq!((rows(&program), added(&program), program.vocab_size), (vec![], vec![], Some(VOCAB - 2)));
    let beyond = resized(&toy, VOCAB - 2)
        .set("trainable_token_indices", &format!("[{}]", VOCAB - 1))
        .tensor(&key(EMBED, BESIDE), &[1, HIDDEN]);
    assert!(matches!(beyond.refusal(), DeltaError::ResizedVocabulary { tokens: VOCAB, .. }), "{}", beyond.refusal());
}

#[test]
fn what_a_resized_vocabulary_cannot_be_is_refused_with_the_reason() {
    let toy = Toy::new();
    let refused = |upload: Upload, reason: &str| {
        let refusal = upload.refusal();
        assert!(matches!(refusal, DeltaError::ResizedVocabulary { .. }), "{refusal}");
        assert!(refusal.to_string().contains(reason), "{refusal}");
    };
    let head = key("lm_head", "weight");
    refused(resized(&toy, VOCAB + MAX_ADDED_TOKENS + 1), "at most 1024 tokens");
    refused(resized(&toy, VOCAB + 2).tensor(&head, &[VOCAB + 3, HIDDEN]), "of different sizes");
    refused(resized(&toy, VOCAB + 2).without(&head), "both embedding and head");
    refused(resized(&toy, VOCAB + 2).set("alora_invocation_tokens", "[1]"), "tokens of the prompt activate");
    let ia3 = resized(&toy, VOCAB + 2).set("peft_type", r#""IA3""#).set("feedforward_modules", r#"["lm_head"]"#);
    let ia3 = ["r", "lora_alpha"].iter().fold(ia3, |upload, field| upload.set(field, "null"));
    let ia3 = ia3.set("target_modules", r#"["lm_head"]"#).tensor(&key("lm_head", "ia3_l"), &[1, HIDDEN]);
    let without = |upload: Upload, layer: usize, part: &str| {
        upload.without(&key(&format!("model.layers.{layer}.self_attn.q_proj"), part))
    };
    let ia3 =
        (0..2).fold(ia3, |upload, layer| without(without(upload, layer, "lora_A.weight"), layer, "lora_B.weight"));
    refused(ia3, "only LoRA without DoRA");
}
