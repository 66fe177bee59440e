//! Modules that a file has whole: by what names, beside which methods, and what of them is refused.

use super::toy::{HIDDEN, INNER, KV, Toy, Upload, VOCAB, key, numbers};
use crate::delta::{Bias, DeltaError, DeltaOp, Dense, Gain, LayerSite, Site};
use crate::ops::HostTensor;

const Q: &str = "model.layers.1.self_attn.q_proj";
const DOWN: &str = "model.layers.0.mlp.down_proj";

/// LoRA on q of layer 0, and whole modules: down of layer 0, q of layer 1 with its bias, the last norm and the head.
pub(super) fn upload() -> Upload {
    let lora = Upload::new("LORA").set("r", "2").set("target_modules", r#"["q_proj"]"#);
    let lora = lora.pair("model.layers.0.self_attn.q_proj", 2);
    let saved = format!(r#"["0.mlp.down_proj", {Q:?}, "model.norm", "lm_head"]"#);
    lora.set("modules_to_save", &saved)
        .tensor(&key(DOWN, "weight"), &[HIDDEN, INNER])
        .tensor(&key(Q, "weight"), &[HIDDEN, HIDDEN])
        .tensor(&key(Q, "bias"), &[HIDDEN])
        .tensor(&key("model.norm", "weight"), &[HIDDEN])
        .tensor(&key("lm_head", "weight"), &[VOCAB, HIDDEN])
}

fn whole(module: &str, shape: &[usize]) -> DeltaOp {
    let name = key(module, "weight");
    Dense { d: HostTensor::f32(shape, numbers(&name, shape)), scaling: 1.0, replaces: true }.into()
}

#[test]
fn whole_modules_are_in_place_of_the_bases_beside_the_methods_own() {
    let toy = Toy::new();
    let program = upload().compile(&toy).unwrap();
    let [lora, down, q_bias, q, norm, head] = &program.ops[..] else { panic!("{:?}", program.ops) };
    assert_eq!(lora.0, Site::Layer(0, LayerSite::Q));
    assert_eq!(*down, (Site::Layer(0, LayerSite::Down), whole(DOWN, &[HIDDEN, INNER])));
    assert_eq!(*q, (Site::Layer(1, LayerSite::Q), whole(Q, &[HIDDEN, HIDDEN])));
    let base = toy.weight(&format!("{Q}.bias"));
    let b = numbers(&key(Q, "bias"), &[HIDDEN]).iter().zip(base).map(|(saved, base)| saved - base).collect();
    assert_eq!(*q_bias, (Site::Layer(1, LayerSite::Q), Bias { b }.into()));
    assert_eq!(*norm, (Site::FinalNorm, Gain { g: numbers(&key("model.norm", "weight"), &[HIDDEN]) }.into()));
    assert_eq!(*head, (Site::LmHead, whole("lm_head", &[VOCAB, HIDDEN])));
    // A head of its own leaves the embedding of a tied base as it is.
    assert_eq!(upload().compile(&Toy::tied()).unwrap().ops, program.ops);
}

#[test]
fn a_file_may_have_whole_modules_alone() {
    let alone = |upload: Upload| {
        let upload = upload.set("modules_to_save", r#"["layers.1.mlp"]"#);
        let shapes = [("gate_proj", [INNER, HIDDEN]), ("up_proj", [INNER, HIDDEN]), ("down_proj", [HIDDEN, INNER])];
        shapes.iter().fold(upload, |upload, (part, shape)| {
            upload.tensor(&key(&format!("model.layers.1.mlp.{part}"), "weight"), shape)
        })
    };
    for upload in [
        Upload::new("LORA").set("r", "2").set("target_modules", r#""dummy-target-modules""#),
        Upload::new("IA3").set("target_modules", "[]").set("feedforward_modules", "[]"),
        // What is saved whole is no target.
        Upload::new("LORA").set("r", "2").set("target_modules", r#"["model.layers.1.mlp.up_proj"]"#),
    ] {
        let sites: Vec<Site> = alone(upload).ops().ops.iter().map(|(site, _)| *site).collect();
        assert_eq!(sites, [LayerSite::Gate, LayerSite::Up, LayerSite::Down].map(|part| Site::Layer(1, part)));
    }
}

#[test]
fn what_is_missing_of_a_whole_module_or_too_much_is_named() {
    for tensor in [key(DOWN, "weight"), key(Q, "bias"), key("model.norm", "weight"), key("lm_head", "weight")] {
        let error = upload().without(&tensor).refusal();
        assert!(matches!(error, DeltaError::MissingTensor { .. }), "{tensor}: {error}");
    }
    let wrong = upload().tensor(&key("lm_head", "weight"), &[VOCAB, HIDDEN + 1]).refusal();
    assert!(matches!(wrong, DeltaError::Shape { .. }), "{wrong}");
    let other = upload().tensor(&key("model.layers.1.self_attn.k_proj", "weight"), &[KV, HIDDEN]).refusal();
    assert!(matches!(other, DeltaError::NotTargeted { .. }), "{other}");
    let both = upload().pair(Q, 2).refusal();
    assert!(matches!(both, DeltaError::NotTargeted { .. }), "{both}");
}

#[test]
fn names_that_mean_nothing_are_refused() {
    let named = |names: &str| upload().set("modules_to_save", names);
    for names in [r#"["score"]"#, r#"["lm_head", "score"]"#, r#"["embed"]"#] {
        let error = named(names).refusal();
        assert!(matches!(error, DeltaError::UnsupportedField { .. }), "{names}: {error}");
        let text = error.to_string();
        assert!(text.contains("`modules_to_save`") && text.contains("no module of one of these names"), "{text}");
    }
    // Kept tied it is the embedding's, and there is nothing to be tied to where the two are apart.
    let tied = upload().set("ensure_weight_tying", "true");
    tied.ops();
    let error = tied.compile(&Toy::tied()).unwrap_err();
    assert!(matches!(error, DeltaError::MissingTensor { .. }), "{error}");
    for names in [r#""lm_head""#, r#"["lm_.*"]"#, r#"[""]"#, "3"] {
        let error = named(names).refusal();
        assert!(matches!(&error, DeltaError::BadField { field, .. } if field == "modules_to_save"), "{names}: {error}");
    }
    // PEFT's keys for virtual tokens beside such modules are others.
    let prompt = Upload::prompt().set("modules_to_save", r#"["lm_head"]"#).refusal();
    assert!(matches!(prompt, DeltaError::UnsupportedField { .. }), "{prompt}");
}
