//! Every tensor of the file is consumed, has the shape the base asks for, and holds finite numbers.

use safetensors::Dtype;

use super::toy::{HIDDEN, INNER, KV, Toy, Upload, VOCAB, key, numbers};
use crate::delta::layout::{LayerSite, Site};
use crate::delta::{Bias, DeltaError, DeltaOp, Prefix};

const Q0: &str = "model.layers.0.self_attn.q_proj";
const Q1: &str = "model.layers.1.self_attn.q_proj";

fn shape_refused(upload: &Upload, tensor: &str, found: &[usize], expected: &[usize]) {
    match upload.refusal() {
        DeltaError::Shape { tensor: t, found: f, expected: e } => {
            assert_eq!((t.as_str(), f.as_slice(), e.as_slice()), (tensor, found, expected));
        }
        other => panic!("{tensor} {found:?}: {other}"),
    }
}

#[test]
fn half_a_pair_is_refused() {
    for (parameter, module) in [("lora_A.weight", Q0), ("lora_B.weight", Q1)] {
        let error = Upload::lora().without(&key(module, parameter)).refusal();
        match error {
            DeltaError::MissingTensor { module: m, missing, .. } => {
                assert_eq!((m.as_str(), missing), (module, parameter))
            }
            other => panic!("{other}"),
        }
    }
    let no_layer_1 = Upload::lora().without(&key(Q1, "lora_A.weight")).without(&key(Q1, "lora_B.weight"));
    assert!(matches!(no_layer_1.refusal(), DeltaError::MissingTensor { .. }));
    let dora = Upload::lora().set("use_dora", "true").refusal();
    assert!(matches!(dora, DeltaError::MissingTensor { missing: "lora_magnitude_vector", .. }), "{dora}");
    let bias = Upload::lora().set("lora_bias", "true").refusal();
    assert!(matches!(bias, DeltaError::MissingTensor { missing: "lora_B.bias", .. }), "{bias}");
}

#[test]
fn shapes_are_the_bases_and_the_configs() {
    let (a, b) = (key(Q0, "lora_A.weight"), key(Q0, "lora_B.weight"));
    let with = |name: &str, shape: &[usize]| Upload::lora().tensor(name, shape);
    shape_refused(&with(&a, &[3, HIDDEN]), &a, &[3, HIDDEN], &[2, HIDDEN]);
    shape_refused(&with(&a, &[2, HIDDEN + 1]), &a, &[2, HIDDEN + 1], &[2, HIDDEN]);
    shape_refused(&with(&a, &[HIDDEN, 2]), &a, &[HIDDEN, 2], &[2, HIDDEN]);
    shape_refused(&with(&a, &[2 * HIDDEN]), &a, &[2 * HIDDEN], &[2, HIDDEN]);
    shape_refused(&with(&b, &[HIDDEN - 1, 2]), &b, &[HIDDEN - 1, 2], &[HIDDEN, 2]);
    shape_refused(&with(&b, &[2, HIDDEN]), &b, &[2, HIDDEN], &[HIDDEN, 2]);
    let l = key("model.layers.0.mlp.down_proj", "ia3_l");
    shape_refused(&Upload::ia3().tensor(&l, &[INNER, 1]), &l, &[INNER, 1], &[1, INNER]);
    shape_refused(&Upload::ia3().tensor(&l, &[1, HIDDEN]), &l, &[1, HIDDEN], &[1, INNER]);
    let l = key("model.layers.1.self_attn.k_proj", "ia3_l");
    shape_refused(&Upload::ia3().tensor(&l, &[1, KV]), &l, &[1, KV], &[KV, 1]);
    let norm = key("model.norm", "ln_tuning_layers.weight");
    shape_refused(&Upload::ln_tuning().tensor(&norm, &[HIDDEN, 1]), &norm, &[HIDDEN, 1], &[HIDDEN]);
    let prompt = |shape: &[usize]| Upload::prompt().tensor("prompt_embeddings", shape);
    shape_refused(&prompt(&[2, HIDDEN]), "prompt_embeddings", &[2, HIDDEN], &[3, HIDDEN]);
    shape_refused(&prompt(&[3, 2 * HIDDEN]), "prompt_embeddings", &[3, 2 * HIDDEN], &[3, HIDDEN]);
    let prefix = Upload::prefix().tensor("prompt_embeddings", &[3, 2 * KV]);
    shape_refused(&prefix, "prompt_embeddings", &[3, 2 * KV], &[3, 4 * KV]);
}

#[test]
fn a_tensor_nobody_takes_is_refused() {
    let unknown = |name: &str| match Upload::lora().tensor(name, &[4]).refusal() {
        DeltaError::UnknownTensor { tensor, kind: "LoRA", .. } => assert_eq!(tensor, name),
        other => panic!("{name}: {other}"),
    };
    unknown(&key(Q0, "lora_C.weight"));
    unknown(&key(Q0, "lora_magnitude_vector"));
    unknown(&key(Q0, "lora_B.bias"));
    unknown(&key(Q0, "lora_diag"));
    unknown(&key(Q0, "base_layer.bias"));
    unknown(&key("model.layers.9.self_attn.q_proj", "lora_A.weight"));
    unknown("prompt_embeddings");
    unknown("x");
    let feature = |name: &str, expected: &str| match Upload::lora().tensor(name, &[4]).refusal() {
        DeltaError::UnsupportedTensor { tensor, feature } => assert_eq!((tensor.as_str(), feature), (name, expected)),
        other => panic!("{name}: {other}"),
    };
    let saved = "modules_to_save or a resized vocabulary";
    feature(&key("score", "weight"), saved);
    feature(&key("lm_head", "weight"), saved);
}

#[test]
fn a_tensor_of_a_module_that_is_no_target_is_refused() {
    let error = Upload::lora().pair("model.layers.0.self_attn.v_proj", 2).refusal();
    let DeltaError::NotTargeted { tensor } = error else { panic!("{error}") };
    assert_eq!(tensor, key("model.layers.0.self_attn.v_proj", "lora_A.weight"));
    for (module, shape) in [("model.norm", vec![HIDDEN]), ("model.layers.0.mlp.up_proj", vec![INNER, HIDDEN])] {
        let error = Upload::lora().tensor(&key(module, "weight"), &shape).refusal();
        assert!(matches!(error, DeltaError::NotTargeted { .. }), "{error}");
    }
    let excluded = Upload::lora().set("exclude_modules", r#"".*\\.1\\..*""#).refusal();
    assert!(matches!(excluded, DeltaError::NotTargeted { .. }), "{excluded}");
    for upload in
        [Upload::ia3().set("target_modules", r#"["k_proj"]"#), Upload::ln_tuning().set("target_modules", "[]")]
    {
        let error = upload.refusal();
        assert!(matches!(error, DeltaError::NotTargeted { .. }), "{error}");
    }
    let others = Upload::lora().set("layers_to_transform", "0").refusal();
    assert!(matches!(others, DeltaError::NotTargeted { .. }), "{others}");
}

#[test]
fn an_adapter_that_matches_nothing_is_refused() {
    let nothing = [
        Upload::lora().set("target_modules", r#"["c_attn"]"#),
        Upload::lora().set("target_modules", "[]"),
        Upload::lora().set("target_modules", r#""q_proj""#),
        Upload::lora().set("layers_to_transform", "[5]"),
    ];
    for upload in nothing {
        let error = upload.refusal();
        assert!(matches!(error, DeltaError::NotTargeted { .. } | DeltaError::NothingMatched { .. }), "{error}");
    }
    // With no tensor of this base either.
    let foreign = Upload::lora().renamed("model.layers", "transformer.h").set("target_modules", r#"["c_attn"]"#);
    let error = foreign.refusal();
    assert!(matches!(&error, DeltaError::NothingMatched { shown } if shown.contains("`model.layers.0.")), "{error}");
    assert!(Upload::ia3().set("target_modules", r#"["c_attn"]"#).compile(&Toy::new()).is_err());
}

#[test]
fn a_method_goes_only_where_it_can() {
    let wrong = |upload: Upload| assert!(matches!(upload.refusal(), DeltaError::WrongModule { .. }));
    wrong(Upload::lora().set("target_modules", r#"["q_proj", "norm"]"#));
    wrong(Upload::ia3().set("target_modules", r#"["embed_tokens"]"#));
    wrong(Upload::ia3().set("target_modules", r#"["input_layernorm"]"#));
    wrong(Upload::ln_tuning().set("target_modules", r#"["q_proj"]"#));
}

#[test]
fn keys_may_be_spelled_in_every_way_that_means_the_same() {
    let plain = Upload::lora().ops();
    let variants = [
        ("base_model.model.", ""),
        ("base_model.model.", "module."),
        ("base_model.model.", "base_model.model._orig_mod."),
        ("base_model.model.", "_orig_mod.base_model.model."),
        ("base_model.model.model.", "base_model.model."),
        ("base_model.model.model.", ""),
        ("base_model.model.", "base_model.model.model."),
        (".weight", ".default.weight"),
        ("self_attn.q_proj", "self_attn._checkpoint_wrapped_module.q_proj"),
    ];
    for (from, to) in variants {
        assert_eq!(Upload::lora().renamed(from, to).ops(), plain, "{from} as {to}");
    }
    // The config's paths are those of the model that was trained.
    let headless = |targets: &str| Upload::lora().renamed("model.layers", "layers").set("target_modules", targets);
    assert_eq!(headless(r#""layers\\.\\d+\\.self_attn\\.q_proj""#).ops(), plain);
    assert_eq!(headless(r#"["layers.0.self_attn.q_proj", "layers.1.self_attn.q_proj"]"#).ops(), plain);
    let error = headless(r#""model\\.layers\\..*q_proj""#).refusal();
    assert!(
        matches!(&error, DeltaError::NotTargeted { tensor } if tensor.starts_with("base_model.model.layers")),
        "{error}"
    );
    for (from, to) in [("self_attn.q_proj", "self_attn.q_proj.base_layer"), ("model.layers", "model.decoder.layers")] {
        let error = Upload::lora().renamed(from, to).refusal();
        assert!(matches!(error, DeltaError::UnknownTensor { .. } | DeltaError::MissingTensor { .. }), "{to}: {error}");
    }
}

#[test]
fn a_refusal_shows_the_files_own_keys_and_what_the_base_has() {
    let shown = |upload: Upload, words: &[&str]| {
        let text = upload.refusal().to_string();
        assert!(words.iter().all(|word| text.contains(word)), "{text}");
    };
    let own = "_orig_mod.base_model.model.model.layers.0.self_attn.q_proj";
    let wrapped = || Upload::lora().renamed("base_model.model.", "_orig_mod.base_model.model.");
    let one = |upload: Upload, parameter: &str| upload.without(&format!("{own}.{parameter}"));
    shown(one(wrapped(), "lora_A.weight"), &[Q0, "no `lora_A.weight`", &format!("`{own}.lora_B.weight`")]);
    shown(
        Upload::lora().renamed("model.layers", "transformer.layers"),
        &[
            "base_model.model.transformer.layers.0.self_attn.q_proj.lora_A.weight",
            "nearest is `model.layers.0.self_attn.q_proj`",
        ],
    );
    shown(wrapped().tensor(&format!("{own}.lora_A.weight"), &[2, 3]), &[&format!("`{own}.lora_A.weight`"), "[2, 3]"]);
    shown(wrapped().tensor(&key(Q0, "lora_A.weight"), &[2, HIDDEN]), &["one and the same parameter", own]);
    shown(
        Upload::lora()
            .renamed("layers.1.self_attn.q_proj.lora_A.weight", "layers.1.self_attn.q_proj.lora_A.default.weight"),
        &["lora_A.default.weight", "spelled in two ways"],
    );
}

#[test]
fn a_whole_model_is_no_adapter() {
    let weights = |prefix: &str| {
        let module = |layer: usize| format!("{prefix}model.layers.{layer}.self_attn.q_proj.weight");
        let bare = Upload::new("LORA").set("r", "2").set("target_modules", r#"["q_proj"]"#);
        bare.tensor(&module(0), &[HIDDEN, HIDDEN]).tensor(&module(1), &[HIDDEN, HIDDEN])
    };
    for upload in [weights(""), weights("base_model.model."), weights("other.")] {
        let error = upload.refusal();
        assert!(matches!(error, DeltaError::WholeModel { kind: "LoRA", .. }), "{error}");
        assert!(error.to_string().contains("--model"), "{error}");
    }
    let mixed = weights("base_model.model.").pair("model.layers.0.self_attn.q_proj", 2).refusal();
    assert!(matches!(mixed, DeltaError::MissingTensor { .. }), "{mixed}");
}

#[test]
fn a_vector_may_come_flat() {
    let l = |layer: usize, module: &str| key(&format!("model.layers.{layer}.{module}"), "ia3_l");
    let flat = (0..2).fold(Upload::ia3(), |upload, layer| {
        let (k, down) = (l(layer, "self_attn.k_proj"), l(layer, "mlp.down_proj"));
        let (of_k, of_down) = (numbers(&k, &[KV, 1]), numbers(&down, &[1, INNER]));
        upload.values(&k, &[KV], of_k).values(&down, &[INNER], of_down)
    });
    assert_eq!(flat.ops(), Upload::ia3().ops());
    let short = Upload::ia3().tensor(&l(0, "self_attn.k_proj"), &[KV - 1]).refusal();
    assert!(matches!(short, DeltaError::Shape { .. }), "{short}");
}

#[test]
fn what_velora_trains_with_is_taken_and_dropped() {
    let velora =
        [Q0, Q1].iter().fold(Upload::lora(), |upload, module| upload.tensor(&key(module, "lora_velora_embed"), &[4]));
    assert!(matches!(velora.refusal(), DeltaError::UnknownTensor { .. }));
    assert_eq!(velora.set("velora_config", r#"{"num_groups": 2}"#).ops(), Upload::lora().ops());
}

#[test]
fn files_of_16_bits_hold_the_same_numbers() {
    let (f32_file, f16_file) = (Upload::lora(), Upload::lora().in_dtype(Dtype::F16));
    assert_eq!(f32_file.ops(), f16_file.ops());
    let bf16_file = Upload::lora().in_dtype(Dtype::BF16).ops();
    for ((_, wide), (_, narrow)) in f32_file.ops().ops.iter().zip(&bf16_file.ops) {
        let (DeltaOp::LowRank(wide), DeltaOp::LowRank(narrow)) = (wide, narrow) else { panic!() };
        assert_eq!((wide.a.to_f32(), wide.b.to_f32()), (narrow.a.to_f32(), narrow.b.to_f32()));
    }
    assert_eq!(Upload::lora().in_dtype(Dtype::F64).ops(), f32_file.ops());
    let error = Upload::lora().in_dtype(Dtype::I32).refusal();
    assert!(error.to_string().contains("I32"), "{error}");
}

#[test]
fn numbers_that_are_not_finite_are_refused_in_every_dtype() {
    for dtype in [Dtype::F32, Dtype::F16, Dtype::BF16, Dtype::F64] {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let name = key(Q1, "lora_B.weight");
            let mut values = numbers(&name, &[HIDDEN, 2]);
            values[5] = bad;
            let error = Upload::lora().values(&name, &[HIDDEN, 2], values).in_dtype(dtype).refusal();
            let text = error.to_string();
            assert!(
                matches!(error, DeltaError::Safetensors(_)) && text.contains(&name) && text.contains("5"),
                "{text}"
            );
        }
    }
    let name = key(Q1, "lora_A.weight");
    let huge = Upload::lora().values(&name, &[2, HIDDEN], vec![3.4e38; 2 * HIDDEN]).refusal();
    assert!(matches!(huge, DeltaError::Safetensors(_)), "infinite as bf16: {huge}");
}

#[test]
fn a_vector_computed_from_finite_numbers_must_be_finite() {
    let toy = Toy::new();
    let dora = |zero: bool| {
        let mut upload = Upload::lora().set("use_dora", "true").set("lora_alpha", "2");
        for module in [Q0, Q1] {
            upload = upload.tensor(&key(module, "lora_magnitude_vector"), &[HIDDEN]);
            if zero && module == Q1 {
                // W + BA with B = [-W's column, …] cannot be cancelled in general; a B and A that cancel row 0 can.
                let weight = toy.weight(&format!("{module}.weight"));
                let mut a = vec![0.0; 2 * HIDDEN];
                a[..HIDDEN].copy_from_slice(&weight[..HIDDEN]);
                let mut b = vec![0.0; HIDDEN * 2];
                b[0] = -1.0;
                upload = upload.values(&key(module, "lora_A.weight"), &[2, HIDDEN], a).values(
                    &key(module, "lora_B.weight"),
                    &[HIDDEN, 2],
                    b,
                );
            }
        }
        upload.compile(&toy)
    };
    let program = dora(false).unwrap();
    assert_eq!(program.kind, "DoRA");
    assert_eq!(program.ops.len(), 4);
    assert!(matches!(dora(true).unwrap_err(), DeltaError::NonFinite { index: 0, .. }));
}

#[test]
fn a_magnitude_is_read_with_and_without_weight_in_its_name() {
    let dora = |name: &str| {
        [Q0, Q1].iter().fold(Upload::lora().set("use_dora", "true"), |upload, module| {
            let values = numbers("m", &[HIDDEN]);
            upload.values(&key(module, name), &[HIDDEN], values)
        })
    };
    assert_eq!(dora("lora_magnitude_vector").ops(), dora("lora_magnitude_vector.weight").ops());
}

#[test]
fn copies_of_the_base_are_dropped_and_others_refused() {
    let embedding = |copy: Option<Vec<f32>>, parameter: &str| {
        let upload = Upload::lora()
            .set("target_modules", r#"["q_proj", "embed_tokens"]"#)
            .tensor(&key("model.embed_tokens", "lora_embedding_A"), &[2, VOCAB])
            .tensor(&key("model.embed_tokens", "lora_embedding_B"), &[HIDDEN, 2]);
        match copy {
            Some(values) => upload.values(&key("model.embed_tokens", parameter), &[VOCAB, HIDDEN], values),
            None => upload,
        }
    };
    let ours = Toy::new().weight("model.embed_tokens.weight");
    let mut theirs = ours.clone();
    theirs[3] += 0.5;
    let plain = embedding(None, "").ops();
    assert_eq!(embedding(Some(ours.clone()), "base_layer.weight").ops(), plain);
    let error = embedding(Some(theirs.clone()), "base_layer.weight").refusal();
    assert!(matches!(error, DeltaError::BaseMismatch { .. }), "{error}");
    let head = Toy::new().weight("lm_head.weight");
    let ia3 =
        || Upload::new("IA3").set("target_modules", r#"["lm_head"]"#).tensor(&key("lm_head", "ia3_l"), &[VOCAB, 1]);
    let with_copy = ia3().values(&key("lm_head", "base_layer.weight"), &[VOCAB, HIDDEN], head);
    assert_eq!(with_copy.ops(), ia3().ops());
    // A base of fewer bits while training.
    assert!(with_copy.in_dtype(Dtype::BF16).compile(&Toy::new()).is_ok());
    // As `save_embedding_layers` writes them for modules that are no targets.
    let saved =
        |name: &str, values: &[f32]| Upload::lora().values(&key(name, "weight"), &[VOCAB, HIDDEN], values.to_vec());
    assert_eq!(saved("model.embed_tokens", &ours).ops(), Upload::lora().ops());
    assert!(matches!(saved("model.embed_tokens", &theirs).refusal(), DeltaError::UnsupportedTensor { .. }));
    assert!(matches!(saved("lm_head", &ours).refusal(), DeltaError::UnsupportedTensor { .. }));
    assert!(saved("lm_head", &Toy::tied().weight("model.embed_tokens.weight")).compile(&Toy::tied()).is_ok());
    let resized = Upload::lora().tensor(&key("model.embed_tokens", "weight"), &[VOCAB + 1, HIDDEN]).refusal();
    assert!(resized.to_string().contains(&format!("a vocabulary of {} tokens", VOCAB + 1)), "{resized}");
}

#[test]
fn weight_tying_targets_both_ends_of_a_tied_base() {
    let upload = Upload::new("LORA")
        .set("r", "2")
        .set("target_modules", r#"["embed_tokens"]"#)
        .tensor(&key("model.embed_tokens", "lora_embedding_A"), &[2, VOCAB])
        .tensor(&key("model.embed_tokens", "lora_embedding_B"), &[HIDDEN, 2]);
    let both = upload.clone().pair("lm_head", 2).set("ensure_weight_tying", "true");
    let sites: Vec<_> = both.compile(&Toy::tied()).unwrap().ops.into_iter().map(|(site, _)| site).collect();
    assert_eq!(sites, [Site::Embed, Site::LmHead]);
    assert!(matches!(both.compile(&Toy::new()), Err(DeltaError::NotTargeted { .. })), "an untied base has no twin");
    assert!(matches!(
        both.set("ensure_weight_tying", "false").compile(&Toy::tied()),
        Err(DeltaError::NotTargeted { .. })
    ));
    assert!(upload.compile(&Toy::tied()).is_ok());
}

#[test]
fn saved_biases_replace_the_bases() {
    let toy = Toy::new();
    let base = toy.weight(&format!("{Q0}.bias"));
    let saved = numbers("saved", &[HIDDEN]);
    let biased =
        |bias: &str| Upload::lora().set("bias", bias).values(&key(Q0, "base_layer.bias"), &[HIDDEN], saved.clone());
    let expected: Vec<f32> = saved.iter().zip(&base).map(|(saved, base)| saved - base).collect();
    for bias in [r#""all""#, r#""lora_only""#] {
        let program = biased(bias).ops();
        let found = program.ops.iter().find(|(_, op)| matches!(op, DeltaOp::Bias(_))).unwrap();
        assert_eq!(found, &(Site::Layer(0, LayerSite::Q), Bias { b: expected.clone() }.into()));
    }
    assert!(matches!(biased(r#""none""#).refusal(), DeltaError::UnknownTensor { .. }));
    // A module without LoRA: its bias counts with "all" alone.
    let v_only = |bias: &str| {
        Upload::new("LORA")
            .set("r", "2")
            .set("bias", bias)
            .set("target_modules", r#"["lm_head"]"#)
            .pair("lm_head", 2)
            .values(&key(Q0, "bias"), &[HIDDEN], saved.clone())
    };
    assert_eq!(v_only(r#""all""#).ops().ops.len(), 2);
    assert!(matches!(v_only(r#""lora_only""#).refusal(), DeltaError::UnknownTensor { .. }));
    // The base has no bias there.
    let k = key("model.layers.0.self_attn.k_proj", "bias");
    assert!(matches!(
        Upload::lora().set("bias", r#""all""#).tensor(&k, &[KV]).refusal(),
        DeltaError::UnknownTensor { .. }
    ));
}

#[test]
fn virtual_tokens_are_one_tensor_and_nothing_else() {
    let missing = Upload::prompt().renamed("prompt_embeddings", "prompt_encoder.default.embedding.weight").refusal();
    assert!(matches!(missing, DeltaError::UnknownTensor { kind: "prompt tuning", .. }), "{missing}");
    let more = Upload::prefix().tensor("transform.0.weight", &[4, 4]).refusal();
    assert!(matches!(more, DeltaError::UnknownTensor { kind: "prefix tuning", .. }), "{more}");
    let program = Upload::prefix().ops();
    let [(Site::VirtualTokens, DeltaOp::Prefix(Prefix { count: 3, layers }))] = program.ops.as_slice() else {
        panic!()
    };
    let numbers = numbers("prompt_embeddings", &[3, 4 * KV]);
    let row = |token: usize, part: usize| &numbers[token * 4 * KV + part * KV..][..KV];
    assert_eq!(layers[1].k, [row(0, 2), row(1, 2), row(2, 2)].concat());
    assert_eq!(layers[0].v, [row(0, 1), row(1, 1), row(2, 1)].concat());
}
