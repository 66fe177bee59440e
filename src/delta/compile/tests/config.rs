//! Every field of PEFT 0.21's configs: neutral values pass, what changes the maths is implemented or refused by name.

use std::collections::BTreeSet;

use super::toy::{LIMITS, Toy, Upload, key};
use crate::delta::compile::config_refusals;
use crate::delta::{DeltaError, DeltaOp};
use crate::ops::WeightFormat;

/// What becomes of a field that is set.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// It says nothing about inference.
    Ignored,
    /// It is refused by name.
    Refused,
    /// It is implemented: other tests say how.
    Implemented,
}
use Fate::{Ignored, Implemented, Refused};

/// Field, its neutral value, a value that is set.
const LORA_FIELDS: [(&str, &str, &str, Fate); 53] = [
    ("alora_invocation_tokens", "null", "[1, 2]", Implemented),
    ("alpha_pattern", "{}", r#"{"q_proj": 3}"#, Implemented),
    ("arrow_config", "null", r#"{"top_k": 3}"#, Refused),
    ("arrow_config", "null", "{}", Refused),
    ("auto_mapping", "null", r#"{"base_model_class": "X", "parent_library": "os"}"#, Ignored),
    ("base_model_name_or_path", "null", r#""org/name""#, Ignored),
    ("bias", r#""none""#, r#""all""#, Implemented),
    ("corda_config", "null", r#"{"corda_method": "ipm"}"#, Ignored),
    ("enable_lora", "null", "[true, false]", Refused),
    ("ensure_weight_tying", "false", "true", Implemented),
    ("eva_config", "null", r#"{"rho": 2.0}"#, Ignored),
    ("exclude_modules", "null", r#"["v_proj"]"#, Implemented),
    ("fan_in_fan_out", "false", "true", Ignored),
    ("inference_mode", "true", "false", Ignored),
    ("init_lora_weights", "true", r#""pissa""#, Refused),
    ("kasa_config", "null", r#"{"beta": 0.1}"#, Refused),
    ("kasa_config", "null", "{}", Refused),
    ("layer_replication", "null", "[[0, 2]]", Refused),
    ("layers_pattern", "null", r#""layers""#, Implemented),
    ("layers_to_transform", "null", "[0, 1]", Implemented),
    ("loftq_config", "{}", r#"{"loftq_bits": 4}"#, Ignored),
    ("lora_alpha", "4", "5", Implemented),
    ("lora_bias", "false", "true", Implemented),
    ("lora_dropout", "0.0", "0.1", Ignored),
    ("lora_ga_config", "null", r#"{"scale": "stable"}"#, Ignored),
    ("megatron_config", "null", r#"{"hidden_size": 8}"#, Ignored),
    ("megatron_core", r#""megatron.core""#, r#""other""#, Ignored),
    ("merge_weights", "false", "true", Ignored),
    ("modules_to_save", "null", r#"["embed_tokens"]"#, Implemented),
    ("modules_to_save", "[]", r#"["classifier", "score"]"#, Refused),
    ("modules_to_save", "[]", r#"["lm_head"]"#, Implemented),
    ("monteclora_config", "null", r#"{"num_samples": 8}"#, Refused),
    ("monteclora_config", "null", "{}", Refused),
    ("peft_type", r#""LORA""#, r#""POLY""#, Refused),
    ("peft_version", "null", r#""0.21.2""#, Ignored),
    ("qalora_group_size", "16", "32", Ignored),
    ("r", "2", "2", Implemented),
    ("rank_pattern", "{}", r#"{"v_proj": 7}"#, Implemented),
    ("revision", "null", r#""main""#, Ignored),
    ("runtime_config", r#"{"ephemeral_gpu_offload": false}"#, r#"{"ephemeral_gpu_offload": true}"#, Ignored),
    ("target_modules", r#"["q_proj"]"#, r#"".*q_proj""#, Implemented),
    ("target_parameters", "null", r#"["mlp.experts.gate_up_proj"]"#, Implemented),
    ("target_parameters", "[]", r#"["q_proj.weight"]"#, Implemented),
    ("task_type", r#""CAUSAL_LM""#, r#""FEATURE_EXTRACTION""#, Implemented),
    ("trainable_token_indices", "null", "[1, 2]", Implemented),
    ("trainable_token_indices", "[]", r#"{"embed_tokens": [1]}"#, Implemented),
    ("use_bdlora", "null", r#"{"nblocks": 2}"#, Refused),
    ("use_bdlora", "null", "{}", Refused),
    ("use_dora", "false", "true", Implemented),
    ("use_qalora", "false", "true", Refused),
    ("use_rslora", "false", "true", Implemented),
    ("velora_config", "null", r#"{"num_groups": 64}"#, Ignored),
    ("velora_config", "null", "{}", Ignored),
];

/// A config with every field at its neutral value.
fn neutral() -> Upload {
    LORA_FIELDS.iter().fold(Upload::lora(), |upload, (field, value, _, _)| upload.set(field, value))
}

#[test]
fn every_lora_field_is_neutral_ignored_implemented_or_refused_by_name() {
    let plain = Upload::lora().ops();
    assert_eq!(neutral().ops(), plain);
    for (field, _, set, fate) in LORA_FIELDS {
        let compiled = neutral().set(field, set).compile(&Toy::new());
        match fate {
            Ignored => assert_eq!(compiled.unwrap(), plain, "{field} = {set}"),
            Refused => {
                let error = compiled.unwrap_err();
                assert!(matches!(error, DeltaError::UnsupportedField { .. }), "{field} = {set}: {error}");
                assert!(error.to_string().contains(&format!("`{field}`")), "{field} = {set}: {error}");
            }
            Implemented => {}
        }
    }
}

#[test]
fn an_invocation_is_ids_of_the_vocabulary_beside_nothing_that_changes_other_rows() {
    let of = |tokens: &str| neutral().set("alora_invocation_tokens", tokens);
    let program = of("[1, 2]").ops();
    assert_eq!((program.kind.as_str(), &program.invocation_tokens[..]), ("aLoRA", &[1, 2][..]));
    assert_eq!(program.facts(WeightFormat::F32).invocation_tokens, [1, 2]);
    assert_eq!(of("[1, 2]").set("use_rslora", "true").ops().kind, "rsLoRA aLoRA");
    // PEFT looks whether the list is true.
    assert_eq!(of("[]").ops(), neutral().ops());
    let long = format!("[{}]", vec!["1"; 257].join(", "));
    for wrong in ["1", "[10]", "[-1]", "[1.5]", r#"["1"]"#, "{}", r#""1""#, &long] {
        let error = of(wrong).refusal();
        let named = matches!(&error, DeltaError::BadField { field, .. } if field == "alora_invocation_tokens");
        assert!(named, "{wrong}: {error}");
    }
    let beside = [
        ("use_dora", "true"),
        ("velora_config", r#"{"num_groups": 64}"#),
        ("bias", r#""all""#),
        ("modules_to_save", r#"["lm_head"]"#),
        ("trainable_token_indices", "[1]"),
    ];
    for (field, value) in beside {
        let error = of("[1, 2]").set(field, value).refusal().to_string();
        assert!(error.contains(&format!("`{field}`")) && error.contains("alora_invocation_tokens"), "{error}");
    }
    let embedding = of("[1, 2]").set("target_modules", r#"["embed_tokens"]"#).refusal();
    assert!(matches!(embedding, DeltaError::WrongModule { kind: "aLoRA", .. }), "{embedding}");
}

/// Layer 1 is the last one.
#[test]
fn kv_is_the_bases_where_every_op_comes_behind_it() {
    let (last, first) = ("model.layers.1.", "model.layers.0.");
    let of = |module: &str| {
        let name = module.rsplit_once('.').map_or(module, |(_, name)| name);
        let layer = if module.starts_with(first) { "[0]" } else { "[1]" };
        let upload = Upload::new("LORA").set("r", "2").set("target_modules", &format!("[{name:?}]"));
        let upload = if module == "lm_head" { upload } else { upload.set("layers_to_transform", layer) };
        upload.pair(module, 2).ops().facts(WeightFormat::F32).keeps_base_kv
    };
    for part in ["self_attn.q_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"] {
        assert!(of(&format!("{last}{part}")), "{part}");
        assert!(!of(&format!("{first}{part}")), "{part}");
    }
    assert!(of("lm_head"));
    for part in ["self_attn.k_proj", "self_attn.v_proj"] {
        assert!(!of(&format!("{last}{part}")), "{part}");
    }
    let norm = |module: &str| {
        let upload = Upload::new("LN_TUNING").set("target_modules", &format!("{module:?}"));
        upload.tensor(&key(module, "ln_tuning_layers.weight"), &[8]).ops().keeps_base_kv
    };
    assert!(norm("model.norm"));
    assert!(norm("model.layers.1.post_attention_layernorm"));
    assert!(!norm("model.layers.1.input_layernorm"));
    // One op before it is enough.
    assert!(!Upload::lora().ops().keeps_base_kv);
    assert!(!Upload::prompt().ops().keeps_base_kv);
}

#[test]
fn the_table_knows_every_field_that_peft_writes() {
    let saved = include_bytes!("../../../../tests/fixtures/golden/llama/adapters/lora_r4/adapter_config.json");
    let saved: serde_json::Map<String, serde_json::Value> = serde_json::from_slice(saved).unwrap();
    let known: BTreeSet<_> = LORA_FIELDS.iter().map(|(field, ..)| *field).collect();
    let unknown: Vec<_> = saved.keys().filter(|field| !known.contains(field.as_str())).collect();
    assert_eq!(unknown, [""; 0]);
}

#[test]
fn methods_that_are_not_served_are_refused_by_name() {
    let methods = "ADAMSS ADAPTION_PROMPT LILY POLY FROD \
                   PVERA GLORA XLORA UNILORA \
                   WAVEFT OSF CARTRIDGE TINYLORA PSOFT PEANUT SHADOW SUPERTUNING DEFT lora";
    for method in methods.split_whitespace() {
        let error = Upload::lora().set("peft_type", &format!("{method:?}")).refusal();
        assert!(error.to_string().starts_with(&format!("adapter_config.json: `peft_type` = {method:?}")), "{error}");
    }
    assert!(matches!(Upload::lora().set("peft_type", "null").refusal(), DeltaError::BadField { .. }));
    for (field, value, program) in [
        ("fine_tune_type", r#""lora""#, "MLX"),
        ("lora_parameters", r#"{"rank": 8}"#, "MLX"),
        ("config", r#"{"architecture": "lora"}"#, "AdapterHub"),
    ] {
        let error = Upload::lora().set("peft_type", "null").set(field, value).refusal();
        assert!(matches!(error, DeltaError::UnsupportedField { .. }) && error.to_string().contains(program), "{error}");
    }
}

#[test]
fn initialisations_that_change_the_base_are_refused() {
    for harmless in
        ["true", "false", "null", r#""gaussian""#, r#""Gaussian""#, r#""eva""#, r#""orthogonal""#, r#""mica""#]
    {
        assert!(Upload::lora().set("init_lora_weights", harmless).compile(&Toy::new()).is_ok(), "{harmless}");
    }
    for harmful in ["pissa", "pissa_niter_16", "olora", "corda", "loftq", "lora_ga", "of next year"] {
        let error = Upload::lora().set("init_lora_weights", &format!("{harmful:?}")).refusal();
        assert!(error.to_string().contains(&format!("`init_lora_weights` = {harmful:?}")), "{error}");
    }
    assert!(Upload::lora().set("init_lora_weights", "3").compile(&Toy::new()).is_err());
}

#[test]
fn unknown_fields_are_accepted_where_they_switch_nothing_on() {
    let uploads = [Upload::lora(), Upload::ia3(), Upload::ln_tuning(), Upload::prompt(), Upload::prefix()];
    for upload in uploads {
        for off in ["null", "false", r#""""#, "[]", "{}"] {
            assert!(upload.clone().set("use_of_next_year", off).compile(&Toy::new()).is_ok(), "{off}");
        }
        for on in ["true", "0", "1", "0.0", r#""x""#, "[0]", r#"{"a": null}"#] {
            let error = upload.clone().set("use_of_next_year", on).refusal();
            assert!(error.to_string().contains("`use_of_next_year`"), "{on}: {error}");
        }
    }
    // Known to LoRA alone.
    for field in ["layers_to_transform", "rank_pattern", "use_dora"] {
        let value = if field == "use_dora" { "true" } else { r#"{"a": 1}"# };
        assert!(matches!(Upload::ia3().set(field, value).refusal(), DeltaError::UnsupportedField { .. }), "{field}");
    }
}

#[test]
fn what_other_programs_write_is_known_by_name() {
    let harmless = [
        ("unsloth_fixed", "true"),
        ("swift_type", r#""LORA""#),
        ("lora_dtype", r#""AUTO""#),
        ("lorap_lr_ratio", "16.0"),
        ("lorap_emb_lr", "1e-06"),
        ("loraplus_lr_ratio", "16.0"),
        ("loraplus_lr_embedding", "1e-06"),
        ("transformers_version", r#""5.23.0""#),
        ("peft_version", r#""0.21.2""#),
        ("auto_mapping", r#"{"base_model_class": "LlamaForCausalLM", "unsloth_fixed": true}"#),
    ];
    for (field, value) in harmless {
        let program = Upload::lora().set(field, value).ops();
        assert_eq!(program, Upload::lora().ops(), "{field}");
    }
    let harmful = [
        ("use_qa_lora", "true"),
        ("use_merged_linear", "true"),
        ("model_key_mapping", r#"{"a": "b"}"#),
        ("dora_simple", "true"),
        ("use_mora", "true"),
        ("lora_nums", "8"),
    ];
    for (field, value) in harmful {
        for upload in [Upload::lora().set(field, value), Upload::ia3().set(field, value)] {
            let error = upload.compile_allowing_unknown(&Toy::new()).unwrap_err();
            let named = matches!(&error, DeltaError::UnsupportedField { field: named, .. } if named == field);
            assert!(named, "{field}: {error}");
        }
    }
}

#[test]
fn unknown_fields_pass_where_the_operator_says_so_and_are_noted() {
    let upload = Upload::lora().set("use_of_next_year", "true").set("another", "3").set("off", "null");
    let error = upload.refusal();
    assert!(error.to_string().contains("--allow-unknown-adapter-fields"), "{error}");
    let toy = Toy::new();
    let program = upload.compile_allowing_unknown(&toy).unwrap();
    assert_eq!(program.ops, Upload::lora().ops().ops);
    assert_eq!(program.unknown_fields, ["use_of_next_year", "another"]);
    assert_eq!(program.facts(WeightFormat::F32).unknown_fields, program.unknown_fields);
    // What is known and not served stays refused.
    for (field, set) in LORA_FIELDS.iter().filter(|(.., fate)| *fate == Refused).map(|(field, _, set, _)| (field, set))
    {
        let error = upload.clone().set(field, set).compile_allowing_unknown(&toy).unwrap_err();
        assert!(matches!(error, DeltaError::UnsupportedField { .. }), "{field}: {error}");
    }
    let strange = Upload::lora().set("a\u{1b}[31m\n", "1").compile_allowing_unknown(&toy).unwrap();
    assert_eq!(strange.unknown_fields, [r"a\u{1b}[31m\n"], "a name is shown on terminals");
    let many = (0..65).fold(Upload::lora(), |upload, at| upload.set(&format!("field_{at}"), "1"));
    assert!(matches!(many.compile_allowing_unknown(&toy), Err(DeltaError::UnknownField { .. })));
}

#[test]
fn fields_of_the_wrong_type_or_range_are_named() {
    let cases = [
        ("r", r#""8""#),
        ("r", "1.5"),
        ("r", "-1"),
        ("r", "1e30"),
        ("lora_alpha", r#""16""#),
        ("lora_alpha", "1e300"),
        ("use_dora", "1"),
        ("use_rslora", r#""true""#),
        ("bias", r#""some""#),
        ("bias", "true"),
        ("target_modules", "7"),
        ("rank_pattern", "[1]"),
        ("rank_pattern", r#"{"q_proj": 1.5}"#),
        ("alpha_pattern", r#"{"q_proj": null}"#),
        ("peft_type", "3"),
    ];
    for (field, value) in cases {
        let error = Upload::lora().set(field, value).refusal();
        assert!(
            matches!(&error, DeltaError::BadField { field: named, .. } if named == field),
            "{field} {value}: {error}"
        );
    }
    for (field, value) in [("token_dim", "9"), ("num_transformer_submodules", "2"), ("num_virtual_tokens", "null")] {
        let error = Upload::prompt().set(field, value).refusal();
        assert!(matches!(&error, DeltaError::BadField { field: named, .. } if named == field), "{field}: {error}");
    }
    for (field, value) in [("token_dim", "8"), ("num_layers", "3"), ("num_attention_heads", "4")] {
        let error = Upload::prefix().set(field, value).refusal();
        assert!(matches!(&error, DeltaError::BadField { field: named, .. } if named == field), "{field}: {error}");
    }
    for count in ["0", "7"] {
        let error = Upload::prompt().set("num_virtual_tokens", count).refusal();
        assert!(matches!(error, DeltaError::VirtualTokens { max: 6, .. }), "{error}");
    }
}

#[test]
fn what_is_no_object_is_no_config() {
    let toy = Toy::new();
    let refusals = |config: &str| config_refusals(config.as_bytes(), &toy.layout, LIMITS);
    let bad = ["", "[]", "3", "{", "{}{}", r#"{"r": NaN}"#, r#"{"r": 1, "r": 1}"#, r#"{"a": {"b": 1, "b": 2}}"#];
    for config in bad {
        assert!(matches!(refusals(config).as_slice(), [DeltaError::Json { .. }]), "{config}");
    }
    for (config, word) in [
        (r#"{"lora_dropout": NaN}"#, "NaN and Infinity are no JSON"),
        (r#"{"lora_alpha": -Infinity}"#, "NaN and Infinity are no JSON"),
        ("{\n  // rank\n  \"r\": 8\n}", "JSON has no comments"),
        ("{\n  # rank\n  \"r\": 8\n}", "JSON has no comments"),
        ("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "git lfs pull"),
    ] {
        let refused = refusals(config);
        assert!(matches!(refused.as_slice(), [error] if error.to_string().contains(word)), "{refused:?}");
    }
    let url = refusals("{\"base_model_name_or_path\": \"https://x/NaN\" \"r\": 1}");
    assert!(matches!(url.as_slice(), [error] if !error.to_string().contains(" no ")), "{url:?}");
    // Editors put it there; the meaning is the same.
    let marked = [b"\xef\xbb\xbf".as_slice(), &Upload::lora().config_bytes()].concat();
    assert!(config_refusals(&marked, &toy.layout, LIMITS).is_empty());
    let lines = String::from_utf8(Upload::lora().config_bytes()).unwrap().replace(',', ",\r\n");
    assert!(config_refusals(lines.as_bytes(), &toy.layout, LIMITS).is_empty());
    let wide = |values: usize| format!(r#"{{"target_modules": [{}0]}}"#, "0,".repeat(values));
    let refused = refusals(&wide(300_000));
    assert!(matches!(refused.as_slice(), [error] if error.to_string().contains("the limit is")), "{refused:?}");
    assert!(!matches!(refusals(&wide(200_000)).as_slice(), [DeltaError::Json { .. }]), "a list of its own limit");
    let deep = format!("{}{}", r#"{"a":"#.repeat(5000), "}".repeat(5000));
    assert!(matches!(refusals(&deep).as_slice(), [DeltaError::Json { .. }]));
}

#[test]
fn all_refused_fields_can_be_had_at_once() {
    let toy = Toy::new();
    let upload = neutral().set("use_qalora", "true").set("kasa_config", "{}");
    let refusals = config_refusals(&upload.config_bytes(), &toy.layout, LIMITS);
    let mut named: Vec<_> = refusals.iter().map(ToString::to_string).collect();
    named.sort();
    assert_eq!(
        named,
        [
            "adapter_config.json: `kasa_config` = an object of 0 is not supported",
            "adapter_config.json: `use_qalora` = true is not supported",
        ]
    );
    assert!(config_refusals(&neutral().config_bytes(), &toy.layout, LIMITS).is_empty());
}

#[test]
fn the_config_is_refused_before_the_weights_are_looked_at() {
    let toy = Toy::new();
    let config = Upload::lora().set("use_qalora", "true").config_bytes();
    let base = crate::delta::Base { layout: &toy.layout, weights: &toy };
    let error = crate::delta::compile(&config, b"no safetensors", base, LIMITS).unwrap_err();
    assert!(matches!(error, DeltaError::UnsupportedField { .. }), "{error}");
}

#[test]
fn null_targets_are_what_peft_takes_for_the_base() {
    let lora = |targets: &str| {
        let upload = Upload::new("LORA").set("r", "2").set("target_modules", targets);
        ["q_proj", "v_proj"].iter().fold(upload, |upload, name| {
            let module = |layer: usize| format!("model.layers.{layer}.self_attn.{name}");
            upload.pair(&module(0), 2).pair(&module(1), 2)
        })
    };
    assert_eq!(lora("null").ops(), lora(r#"["q_proj", "v_proj"]"#).ops());
    let ia3 = |null: &str| {
        let mut upload = Upload::ia3().set("target_modules", r#"["k_proj", "v_proj", "down_proj"]"#).set(null, "null");
        for layer in 0..2 {
            upload = upload.tensor(&key(&format!("model.layers.{layer}.self_attn.v_proj"), "ia3_l"), &[4, 1]);
        }
        upload.ops()
    };
    assert_eq!(ia3("feedforward_modules"), ia3("unrelated"));
    assert_eq!(ia3("target_modules"), ia3("unrelated"));
    let mut toy = Toy::new();
    toy.layout.model_type = "phi3";
    let error = lora("null").compile(&toy).unwrap_err();
    assert!(matches!(&error, DeltaError::BadField { field, .. } if field == "target_modules"), "{error}");
    let error = Upload::ia3().set("feedforward_modules", "null").compile(&toy).unwrap_err();
    assert!(matches!(&error, DeltaError::BadField { field, .. } if field == "feedforward_modules"), "{error}");
}

#[test]
fn scaling_follows_alpha_rank_and_patterns() {
    let scalings = |upload: &Upload| -> Vec<(usize, f32)> {
        let scaling = |op: &DeltaOp| match op {
            DeltaOp::LowRank(op) => Some((op.a.rows(), op.scaling)),
            _ => None,
        };
        upload.ops().ops.iter().filter_map(|(_, op)| scaling(op)).collect()
    };
    let lora = Upload::lora();
    assert_eq!(scalings(&lora), [(2, 2.0); 2]);
    assert_eq!(scalings(&lora.clone().set("use_rslora", "true")), [(2, 4.0 / 2f32.sqrt()); 2]);
    assert_eq!(scalings(&lora.clone().set("lora_alpha", "-1.5")), [(2, -0.75); 2]);
    let first = r#"{"layers.0.self_attn.q_proj": 6, "q_proj": 10}"#;
    assert_eq!(scalings(&lora.clone().set("alpha_pattern", first)), [(2, 3.0), (2, 5.0)]);
    let second = r#"{"q_proj": 10, "layers.0.self_attn.q_proj": 6}"#;
    assert_eq!(scalings(&lora.clone().set("alpha_pattern", second)), [(2, 5.0); 2]);
    let ranks = lora.clone().pair("model.layers.1.self_attn.q_proj", 4).set("rank_pattern", r#"{".*\\.1\\..*": 4}"#);
    assert_eq!(scalings(&ranks), [(2, 2.0), (4, 1.0)]);
    assert_eq!(scalings(&ranks.set("use_rslora", "true")), [(2, 4.0 / 2f32.sqrt()), (4, 2.0)]);
    // Absent fields are PEFT's defaults: r 8, alpha 8.
    let defaults = Upload::new("LORA").set("target_modules", r#"["lm_head"]"#).pair("lm_head", 8);
    assert_eq!(scalings(&defaults), [(8, 1.0)]);
}

#[test]
fn ranks_outside_the_limit_are_refused() {
    let with_rank = |rank: usize| Upload::lora().set("r", &rank.to_string()).refusal();
    assert!(matches!(with_rank(9), DeltaError::Rank { rank: 9, max: 8, .. }));
    assert!(matches!(with_rank(0), DeltaError::Rank { rank: 0, .. }));
    assert!(matches!(with_rank(usize::MAX >> 12), DeltaError::Rank { .. }));
    let pattern = Upload::lora().set("rank_pattern", r#"{"q_proj": 9}"#).refusal();
    assert!(matches!(&pattern, DeltaError::Rank { module, rank: 9, .. } if module.ends_with("0.self_attn.q_proj")));
}

#[test]
fn low_rank_biases_and_dora_do_not_go_together() {
    let bias = |upload: Upload| {
        (0..2).fold(upload.set("lora_bias", "true"), |upload, layer| {
            upload.tensor(&key(&format!("model.layers.{layer}.self_attn.q_proj"), "lora_B.bias"), &[8])
        })
    };
    assert_eq!(bias(Upload::lora()).ops().ops.len(), 4);
    let error = bias(Upload::lora()).set("use_dora", "true").refusal();
    assert!(error.to_string().contains("`lora_bias`"), "{error}");
}
