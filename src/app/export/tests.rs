//! Golden adapters, written as LoRA.

use std::path::PathBuf;

use super::*;
use crate::adapters::StoreLimits;
use crate::delta::{CompileLimits, ExportError};
use crate::model::Checkpoint;
use crate::ops::WeightFormat;

const LIMITS: CompileLimits = CompileLimits { max_rank: 256, max_virtual_tokens: 64, allow_unknown_fields: false };

/// Adapters of a family, exported.
struct Golden {
    dir: PathBuf,
    checkpoint: Checkpoint,
}

impl Golden {
    fn open(family: &str) -> Self {
        let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/golden").join(family);
        Self { checkpoint: Checkpoint::open(&dir.join("base")).unwrap(), dir }
    }

    fn export(&self, adapter: &str) -> Result<LoraFiles, AppError> {
        let spec = self.checkpoint.spec().unwrap();
        let (checkpoint, weights) = (&self.checkpoint, WeightFormat::F32);
        let base = InspectBase { name: "golden", spec: &spec, checkpoint, weights, note: None };
        let dir = self.dir.join("adapters").join(adapter);
        let limits = InspectLimits { files: StoreLimits::default(), compile: LIMITS };
        as_lora(base, AdapterFolder { dir: &dir, chat_template: None, own_tokens: None }, &limits)
    }

    fn config(&self, adapter: &str) -> serde_json::Value {
        serde_json::from_slice(&self.export(adapter).unwrap().config).unwrap()
    }
}

#[test]
fn every_product_of_two_matrices_is_a_lora_that_gives_it_back() {
    let of = |family: &str, adapters: &[&str]| {
        let golden = Golden::open(family);
        for adapter in adapters {
            golden.export(adapter).unwrap_or_else(|error| panic!("{family} {adapter}: {error}"));
        }
    };
    let llama = ["adalora", "adalora_pruned", "loha", "lokr", "lokr_both", "lokr_whole", "vera", "miss", "miss_mini"];
    of("llama", &llama);
    of("llama", &["hra", "hra_orthonormal", "delora", "vblora", "vblora_topk", "vblora_top1", "gralora", "beft"]);
    of("llama", &["lora_r4", "lora_bf16", "lora_bias", "rslora", "patterns", "embed", "embed_lm_head", "all_linear"]);
    of("qwen2", &["embed_tied", "hra_biases", "miss_biases", "bias_all", "bias_lora_only"]);
    of("llama_bias", &["bias_all", "lora_bias"]);
    of("phi3", &["lora_all_r4"]);
}

#[test]
fn what_a_lora_does_not_have_is_refused_by_class_and_site() {
    let golden = Golden::open("llama");
    for (adapter, op) in [
        ("dora", "OutputScale of layer 0 q"),
        ("ia3_up_input", "InputScale of layer 0 up"),
        ("ln_tuning", "Gain of"),
        ("prefix_tuning", "Prefix of"),
        ("prompt_tuning", "PromptEmbeds of"),
    ] {
        let error = golden.export(adapter).unwrap_err();
        assert_eq!(error.exit(), crate::config::Exit::Rejected);
        assert!(matches!(error, AppError::Export(ExportError::Op { .. })), "{adapter}: {error}");
        assert!(error.to_string().starts_with(op), "{adapter}: {error}");
    }
}

#[test]
fn the_config_says_what_most_modules_have_and_names_the_others() {
    let golden = Golden::open("llama");
    let config = golden.config("patterns");
    let base = serde_json::json!("golden/llama");
    assert_eq!((&config["peft_type"], &config["base_model_name_or_path"]), (&"LORA".into(), &base));
    let q = "model.layers.0.self_attn.q_proj";
    assert!(config["target_modules"].as_array().unwrap().contains(&q.into()));
    let of = |module: &str, pattern: &str, common: &str| config[pattern].get(module).unwrap_or(&config[common]).clone();
    for (module, rank, alpha) in [("q_proj", 4, 3), ("k_proj", 3, 8), ("v_proj", 7, 8)] {
        let module = format!("model.layers.0.self_attn.{module}");
        assert_eq!(of(&module, "rank_pattern", "r"), rank, "{config:#}");
        assert_eq!(of(&module, "alpha_pattern", "lora_alpha"), alpha, "{config:#}");
    }
    assert_eq!(config["rank_pattern"].get("model.layers.1.self_attn.k_proj"), Some(&4.into()), "{config:#}");
    let rslora = golden.config("rslora");
    assert_eq!(
        (&rslora["use_rslora"], &rslora["r"], &rslora["rank_pattern"]),
        (&false.into(), &6.into(), &serde_json::json!({}))
    );
    let alpha = rslora["lora_alpha"].as_f64().unwrap();
    assert_eq!((alpha / 6.0) as f32, (6.0 / 6.0_f64.sqrt()) as f32);
    assert_eq!(
        (&golden.config("lora_bias")["lora_bias"], &golden.config("beft")["lora_bias"]),
        (&true.into(), &true.into())
    );
}

#[test]
fn files_are_written_into_a_folder_of_their_own() {
    let golden = Golden::open("llama");
    let files = golden.export("loha").unwrap();
    let root = tempfile::tempdir().unwrap();
    let to = root.path().join("a/b");
    let plain = AdapterFolder { dir: root.path(), chat_template: None, own_tokens: None };
    let from = AdapterFolder { chat_template: Some(b"{{ messages }}"), own_tokens: Some(b"{}"), ..plain };
    write(&files, from, &to).unwrap();
    assert_eq!(fs::read(to.join(CONFIG_FILE)).unwrap(), files.config);
    assert_eq!(fs::read(to.join(WEIGHTS_FILE)).unwrap(), files.weights);
    assert_eq!(fs::read(to.join(CHAT_TEMPLATE_FILE)).unwrap(), b"{{ messages }}");
    assert_eq!(fs::read(to.join(TOKENIZER_FILE)).unwrap(), b"{}");
    let again = write(&files, plain, &to).unwrap_err().to_string();
    assert!(again.contains("is not empty"), "{again}");
}
