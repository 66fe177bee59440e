//! Every spelling that means one thing is read as PEFT's own; what means two things, or none, is not.

use proptest::prelude::*;

use super::*;
use crate::delta::layout::{BaseSizes, LayerSite, ModuleKind, Site};

fn layout() -> BaseLayout {
    let module = |path: &str, site, kind| Module {
        path: path.to_owned(),
        site,
        kind,
        input: 4,
        output: 4,
        bias: false,
        weight: format!("{path}.weight"),
    };
    let mut modules = vec![
        module("model.embed_tokens", Site::Embed, ModuleKind::Embedding),
        module("model.norm", Site::FinalNorm, ModuleKind::Norm),
        module("lm_head", Site::LmHead, ModuleKind::Linear),
    ];
    for layer in 0..12 {
        for (name, site) in [("q_proj", LayerSite::Q), ("v_proj", LayerSite::V)] {
            let path = format!("model.layers.{layer}.self_attn.{name}");
            modules.push(module(&path, Site::Layer(layer, site), ModuleKind::Linear));
        }
    }
    let sizes = BaseSizes {
        layers: 12,
        hidden_size: 4,
        q_dim: 4,
        kv_dim: 4,
        kv_heads: 1,
        intermediate_size: 4,
        vocab_size: 4,
        norm_offset: 0.0,
        tied: false,
        model_type: "llama",
    };
    BaseLayout::new(sizes, modules)
}

fn read(names: &[&str]) -> Result<Keys, DeltaError> {
    Keys::read(names.iter().copied(), &layout())
}

const Q: &str = "base_model.model.model.layers.3.self_attn.q_proj";

#[test]
fn one_meaning_has_many_spellings() {
    let spellings = [
        ("base_model.model.model.layers.3.self_attn.q_proj.lora_A.weight", 0),
        ("base_model.model.model.layers.3.self_attn.q_proj.lora_A.default.weight", 0),
        ("base_model.model.model.layers.3.self_attn.q_proj.lora_A.my_adapter-2.weight", 0),
        ("_orig_mod.base_model.model.model.layers.3.self_attn.q_proj.lora_A.weight", 0),
        ("base_model.model._orig_mod.model.layers.3._orig_mod.self_attn.q_proj.lora_A.default.weight", 0),
        ("module.base_model.model.model.layers.3.self_attn.q_proj.lora_A.weight", 0),
        ("module._orig_mod.base_model.model.model.layers.3.self_attn.q_proj.lora_A.weight", 0),
        ("base_model.model.model.layers.3._checkpoint_wrapped_module.self_attn.q_proj.lora_A.weight", 0),
        ("_fsdp_wrapped_module.base_model.model.model.layers.3._fsdp_wrapped_module.self_attn.q_proj.lora_A.weight", 0),
        ("model.layers.3.self_attn.q_proj.lora_A.weight", 0),
        ("base_model.model.base_model.model.model.layers.3.self_attn.q_proj.lora_A.weight", 0),
        ("layers.3.self_attn.q_proj.lora_A.weight", -1),
        ("base_model.model.layers.3.self_attn.q_proj.lora_A.weight", -1),
        ("base_model.model.model.model.layers.3.self_attn.q_proj.lora_A.weight", 1),
    ];
    for (key, level) in spellings {
        let keys = read(&[key]).unwrap();
        assert_eq!(keys.known, BTreeMap::from([(format!("{Q}.lora_A.weight"), key.to_owned())]), "{key}");
        assert_eq!((keys.level, keys.unknown.len()), (Level(level), 0), "{key}");
    }
    for (parameter, canonical) in [
        ("lora_magnitude_vector", "lora_magnitude_vector"),
        ("lora_magnitude_vector.weight", "lora_magnitude_vector"),
        ("lora_magnitude_vector.default", "lora_magnitude_vector"),
        ("lora_magnitude_vector.default.weight", "lora_magnitude_vector"),
        ("lora_embedding_A.default", "lora_embedding_A"),
        ("lora_B.default.bias", "lora_B.bias"),
        ("ia3_l.default", "ia3_l"),
        ("ln_tuning_layers.default.weight", "ln_tuning_layers.weight"),
        ("modules_to_save.default.weight", "weight"),
        ("base_layer.bias", "base_layer.bias"),
        ("bias", "bias"),
    ] {
        let key = format!("{Q}.{parameter}");
        assert_eq!(read(&[&key]).unwrap().known, BTreeMap::from([(format!("{Q}.{canonical}"), key)]));
    }
    assert_eq!(read(&["prompt_embeddings"]).unwrap().known.len(), 1);
    assert_eq!(read(&["module.prompt_embeddings"]).unwrap().known.len(), 1);
}

#[test]
fn what_means_nothing_here_is_left() {
    for key in [
        "base_model.model.transformer.h.3.attn.c_attn.lora_A.weight",
        "base_model.model.model.layers.12.self_attn.q_proj.lora_A.weight",
        "base_model.model.model.layers.3.q_proj.lora_A.weight",
        "base_model.model.language_model.layers.3.self_attn.q_proj.lora_A.weight",
        "base_model.prompt_embeddings",
        "prompt_encoder.default.embedding.weight",
        "weight",
        "x",
        "",
        ".",
    ] {
        let keys = read(&[key]).unwrap();
        assert_eq!((keys.known.len(), keys.unknown), (0, vec![key.to_owned()]));
    }
}

#[test]
fn two_keys_of_one_parameter_are_refused() {
    let (plain, named) = (format!("{Q}.lora_A.weight"), format!("{Q}.lora_A.default.weight"));
    let wrapped = format!("_orig_mod.{Q}.lora_A.weight");
    let error = read(&[&wrapped, &plain]).unwrap_err();
    assert!(matches!(&error, DeltaError::SameTensor { first, second } if *first == wrapped && *second == plain));
    let magnitudes = [format!("{Q}.lora_magnitude_vector"), format!("{Q}.lora_magnitude_vector.weight")];
    assert!(matches!(read(&[&magnitudes[0], &magnitudes[1]]), Err(DeltaError::SameTensor { .. })));
    assert!(matches!(read(&[&plain, &named]), Err(DeltaError::MixedKeys { .. })));
}

#[test]
fn a_file_of_two_spellings_or_two_adapters_is_refused() {
    let a = format!("{Q}.lora_A.weight");
    let others = [
        format!("{Q}.lora_B.default.weight"),
        "model.layers.3.self_attn.v_proj.lora_A.weight".to_owned(),
        "base_model.model.layers.3.self_attn.v_proj.lora_A.weight".to_owned(),
    ];
    for other in &others {
        let error = read(&[&a, other]).unwrap_err();
        assert!(matches!(&error, DeltaError::MixedKeys { .. }), "{error}");
        let text = error.to_string();
        assert!(text.contains(&a) && text.contains(other), "{text}");
    }
    let two = [format!("{Q}.lora_A.first.weight"), format!("{Q}.lora_B.second.weight")];
    assert!(matches!(read(&[&two[0], &two[1]]), Err(DeltaError::MixedKeys { .. })));
    // Wrappers are where the wrapping was, and a bias of the base has no adapter's name in it.
    let fine = [
        format!("{Q}.lora_A.default.weight"),
        format!("{Q}.base_layer.bias"),
        "base_model.model._orig_mod.lm_head.lora_A.default.weight".to_owned(),
    ];
    assert_eq!(read(&[&fine[0], &fine[1], &fine[2]]).unwrap().known.len(), 3);
}

#[test]
fn paths_of_the_config_are_those_of_the_trained_model() {
    let layout = layout();
    let path = |level: isize, module: &str| {
        Level(level).path(layout.module(module).unwrap()).map(std::borrow::Cow::into_owned)
    };
    assert_eq!(path(0, "model.norm").as_deref(), Some("model.norm"));
    assert_eq!(path(-1, "model.norm").as_deref(), Some("norm"));
    assert_eq!(path(-1, "lm_head"), None, "trained without its head");
    assert_eq!(path(1, "model.norm").as_deref(), Some("model.model.norm"));
    assert_eq!(path(1, "lm_head").as_deref(), Some("model.lm_head"));
    assert_eq!(path(-2, "model.norm"), None);
}

#[test]
fn the_nearest_module_is_named() {
    let nearest = |key: &str| nearest(key, &layout());
    let ends = |key: &str, module: &str| {
        let text = nearest(key);
        assert!(text.ends_with(&format!("nearest is `{module}`")), "{key}: {text}");
    };
    ends("base_model.model.model.layers.19.self_attn.q_proj.lora_A.weight", "model.layers.1.self_attn.q_proj");
    ends("base_model.model.transformer.h.3.self_attn.v_proj.lora_A.weight", "model.layers.3.self_attn.v_proj");
    ends(
        "base_model.model.model.language_model.layers.4.self_attn.q_proj.lora_A.weight",
        "model.layers.4.self_attn.q_proj",
    );
    ends("base_model.model.head.lora_A.weight", "lm_head");
    let other = nearest(&format!("{Q}.lora_C.weight"));
    assert!(other.contains("model.layers.3.self_attn.q_proj") && other.contains("no `lora_C.weight`"), "{other}");
}

#[test]
fn distances_are_levenshteins() {
    let cases = [("", "", 0), ("a", "", 1), ("kitten", "sitting", 3), ("abc", "abc", 0), ("ab", "ba", 2)];
    for (a, b, expected) in cases {
        assert_eq!((distance(a, b), distance(b, a)), (expected, expected));
    }
}

fn spelling() -> impl Strategy<Value = String> {
    let segment = prop::sample::select(vec![
        "base_model",
        "model",
        "_orig_mod",
        "module",
        "layers",
        "0",
        "3",
        "12",
        "self_attn",
        "q_proj",
        "lm_head",
        "lora_A",
        "lora_B",
        "lora_magnitude_vector",
        "ia3_l",
        "default",
        "weight",
        "bias",
        "base_layer",
        "modules_to_save",
        "",
        "_fsdp_wrapped_module",
        "prompt_embeddings",
        "norm",
        "x",
    ]);
    prop::collection::vec(segment, 0..10).prop_map(|segments| segments.join("."))
}

proptest! {
    /// Whatever the keys are: each is known once or unknown, and nothing is lost.
    #[test]
    fn every_key_is_known_unknown_or_a_reason_to_refuse(names in prop::collection::btree_set(spelling(), 0..6)) {
        if let Ok(keys) = Keys::read(names.iter().map(String::as_str), &layout()) {
            let mut found: Vec<_> = keys.known.values().chain(&keys.unknown).cloned().collect();
            found.sort();
            prop_assert_eq!(found, names.into_iter().collect::<Vec<_>>());
            for unknown in &keys.unknown {
                prop_assert!(!nearest(unknown, &layout()).is_empty());
            }
        }
    }

    /// A key PEFT would have written is read as itself, and reading a meaning again changes nothing.
    #[test]
    fn reading_is_idempotent(name in spelling()) {
        if let Ok(keys) = read(&[&name]) {
            for canonical in keys.known.keys() {
                let again = read(&[canonical]).unwrap();
                prop_assert_eq!(again.known.keys().collect::<Vec<_>>(), vec![canonical]);
                prop_assert_eq!(again.level, Level(0));
            }
        }
    }

    /// Wrappers anywhere, the adapter's name and another prefix never change what a key means.
    #[test]
    fn decorations_say_nothing(
        layer in 0usize..12, lead in 0usize..3, wrappers in prop::collection::vec((0usize..8, 0usize..4), 0..4), named: bool,
    ) {
        let canonical = format!("base_model.model.model.layers.{layer}.self_attn.q_proj.lora_B.weight");
        let mut segments: Vec<&str> = canonical.split('.').collect();
        if named {
            segments.insert(8, "default");
        }
        for (at, wrapper) in wrappers {
            segments.insert(at.min(segments.len()), WRAPPERS[wrapper]);
        }
        let decorated = [[].as_slice(), &["base_model", "model"], &["module"]][lead].iter().copied().chain(segments);
        let decorated = decorated.collect::<Vec<_>>().join(".");
        prop_assert_eq!(read(&[&decorated]).unwrap().known, BTreeMap::from([(canonical, decorated)]));
    }
}
