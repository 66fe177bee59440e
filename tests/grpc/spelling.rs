//! Golden adapters with their keys spelled in every way that means the same: they compile to the same numbers.

use std::fs;
use std::path::Path;

use polydelta::delta::{Base, CompileLimits, compile};
use polydelta::model::{Checkpoint, base_layout, read_spec};
use polydelta::ops::WeightFormat;

const LIMITS: CompileLimits = CompileLimits { max_rank: 256, max_virtual_tokens: 64, allow_unknown_fields: false };

/// A file with its keys spelled otherwise, its numbers untouched.
fn respelled(weights: &[u8], spell: impl Fn(&str) -> String) -> Vec<u8> {
    let file = safetensors::SafeTensors::deserialize(weights).unwrap();
    let tensors: Vec<_> = file.iter().map(|(name, view)| (spell(name), view)).collect();
    safetensors::serialize(tensors, None).unwrap()
}

/// The name of the adapter where a plain `state_dict()` has it.
fn with_adapter_name(key: &str) -> String {
    let within = ["lora_A", "lora_B", "ln_tuning_layers"];
    let at_end = ["lora_embedding_A", "lora_embedding_B", "lora_magnitude_vector", "ia3_l", "trainable_tokens_delta"];
    match key.rsplit('.').collect::<Vec<_>>()[..] {
        [last, ..] if at_end.contains(&last) => format!("{key}.default"),
        [leaf, module, ..] if within.contains(&module) => {
            let front = key.strip_suffix(&format!("{module}.{leaf}")).unwrap();
            format!("{front}{module}.default.{leaf}")
        }
        _ => key.to_owned(),
    }
}

#[test]
fn golden_adapters_mean_the_same_in_every_spelling() {
    type Spell = fn(&str) -> String;
    let spellings: [(&str, Spell); 6] = [
        ("the adapter's name", with_adapter_name),
        ("torch.compile", |key| format!("_orig_mod.{key}")),
        ("DDP", |key| format!("module.{key}")),
        ("FSDP", |key| key.replace(".self_attn.", "._fsdp_wrapped_module.self_attn.")),
        ("no prefix", |key| key.strip_prefix("base_model.model.").unwrap_or(key).to_owned()),
        ("wrapped twice", |key| key.replace("base_model.model.", "base_model.model.base_model.model.")),
    ];
    let mut compared = 0;
    for family in ["llama", "llama_bias", "phi3", "gemma3", "qwen3"] {
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/golden").join(family);
        let checkpoint = Checkpoint::open(&golden.join("base")).unwrap();
        let layout = base_layout(&read_spec(checkpoint.config()).unwrap());
        let base = Base { layout: &layout, weights: &checkpoint };
        for entry in fs::read_dir(golden.join("adapters")).unwrap() {
            let folder = entry.unwrap().path();
            let read = |file: &str| fs::read(folder.join(file)).unwrap();
            let (config, weights) = (read("adapter_config.json"), read("adapter_model.safetensors"));
            let Ok(program) = compile(&config, &weights, base, LIMITS) else { continue };
            for (name, spell) in spellings {
                let virtual_tokens = program.facts(WeightFormat::F32).virtual_tokens.is_some();
                if virtual_tokens && !["torch.compile", "DDP"].contains(&name) {
                    continue;
                }
                let other = compile(&config, &respelled(&weights, spell), base, LIMITS);
                assert_eq!(other.unwrap(), program, "{}: {name}", folder.display());
                compared += 1;
            }
        }
    }
    assert!(compared > 100, "{compared}");
}
