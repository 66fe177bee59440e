//! Adapters exported as LoRA and uploaded again: the ids of what they were made of.

use polydelta::delta::{Base, CompileLimits, compile};
use polydelta::grpc::pb;
use polydelta::model::{Checkpoint, base_layout};

use super::files::{AdapterFiles, golden_dir};
use super::generation::unary;
use super::golden::{GoldenServer, case};

const LIMITS: CompileLimits = CompileLimits { max_rank: 256, max_virtual_tokens: 64, allow_unknown_fields: false };

fn exported(name: &str) -> AdapterFiles {
    let checkpoint = Checkpoint::open(&golden_dir().join("base")).unwrap();
    let layout = base_layout(&checkpoint.spec().unwrap());
    let golden = AdapterFiles::golden(name);
    let base = Base { layout: &layout, weights: &checkpoint };
    let program = compile(&golden.config, &golden.weights, base, LIMITS).unwrap();
    let files = program.to_lora(&layout, None).unwrap();
    AdapterFiles { config: files.config, weights: files.weights, ..golden }
}

#[tokio::test]
async fn an_exported_adapter_gives_the_ids_of_the_one_it_was_made_of() {
    let server = GoldenServer::start().await;
    for name in ["loha", "lokr", "hra", "gralora", "vblora", "beft", "lora_bias", "embed_lm_head"] {
        let adapter = server.upload(name, &exported(name)).await;
        assert_eq!(adapter.kind, "LoRA");
        for prompt in ["short", "long"] {
            let case = case(&format!("{name}/{prompt}"));
            let response = unary(&server, case.request()).await;
            assert_eq!(response.choices[0].token_ids, case.ids, "{name} {prompt}");
            assert_eq!(response.mix, Vec::<pb::MixPart>::new());
        }
    }
}
