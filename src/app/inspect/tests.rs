//! Golden adapters, as a person sees them.

use std::fs;
use std::path::{Path, PathBuf};

use super::*;

struct Golden {
    family: PathBuf,
    name: String,
    checkpoint: Checkpoint,
    spec: DecoderSpec,
}

impl Golden {
    fn open(family: &str) -> Self {
        let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/golden").join(family);
        let checkpoint = Checkpoint::open(&dir.join("base")).unwrap();
        let spec = checkpoint.spec().unwrap();
        Self { family: dir, name: format!("golden/{family}"), checkpoint, spec }
    }

    fn base(&self) -> InspectBase<'_> {
        InspectBase {
            name: &self.name,
            spec: &self.spec,
            checkpoint: &self.checkpoint,
            weights: WeightFormat::Bf16,
            note: None,
        }
    }

    fn adapter(&self, name: &str) -> PathBuf {
        self.family.join("adapters").join(name)
    }

    fn inspect(&self, name: &str) -> Result<Inspection, InspectError> {
        inspect(self.base(), plain(&self.adapter(name)), &limits())
    }

    /// `lora_r4` with a field that nobody serves.
    fn refused(&self) -> Result<Inspection, InspectError> {
        let copy = tempfile::tempdir().unwrap();
        let of = self.adapter("lora_r4");
        fs::copy(of.join("adapter_model.safetensors"), copy.path().join("adapter_model.safetensors")).unwrap();
        let config = fs::read_to_string(of.join("adapter_config.json")).unwrap();
        let changed = config.replace("\"use_qalora\": false", "\"use_qalora\": true");
        assert_ne!(changed, config);
        fs::write(copy.path().join("adapter_config.json"), changed).unwrap();
        inspect(self.base(), plain(copy.path()), &limits())
    }

    fn text(&self, name: &str) -> String {
        self.text_of(&self.inspect(name))
    }

    fn text_of(&self, inspected: &Result<Inspection, InspectError>) -> String {
        let mut out = Vec::new();
        write_text(inspected, self.base(), &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    fn ops(&self, name: &str) -> Vec<String> {
        self.inspect(name).unwrap().sites.iter().map(ToString::to_string).collect()
    }
}

fn plain(dir: &Path) -> AdapterFolder<'_> {
    AdapterFolder { dir, chat_template: None, own_tokens: None }
}

fn limits() -> InspectLimits {
    InspectLimits {
        files: StoreLimits::default(),
        compile: CompileLimits { max_rank: 256, max_virtual_tokens: 64, allow_unknown_fields: false },
    }
}

/// `expected` is indented as the code around it is, and stands on lines of its own.
#[track_caller]
fn assert_reads(text: &str, expected: &str) {
    let expected: Vec<_> = expected.lines().skip(1).map(|line| line.strip_prefix("    ").unwrap_or(line)).collect();
    assert_eq!(text.trim_end(), expected.join("\n").trim_end());
}

#[test]
fn drift_names_what_is_large_and_what_is_nothing() {
    let llama = Golden::open("llama");
    let layout = base_layout(&llama.spec);
    let against = Base { layout: &layout, weights: &llama.checkpoint };
    let mut program = compiled(against, plain(&llama.adapter("all_linear")), &limits()).unwrap().program;
    let drift = |program: &DeltaProgram| Drift::of(program, &layout, &llama.checkpoint).unwrap();
    let plain = drift(&program);
    assert!(plain.out_of_line.is_empty() && plain.without_effect.is_empty(), "{plain:?}");
    assert_eq!(plain.changes.len(), program.ops.len());
    // By the definition: the norm of the whole product, beside that of the weight.
    let (site, crate::delta::DeltaOp::LowRank(op)) = &program.ops[0] else { panic!("{:?}", program.ops[0]) };
    let module = layout.modules().find(|module| module.site == *site).unwrap();
    let weight = crate::delta::BaseWeights::tensor(&llama.checkpoint, &module.weight).unwrap().unwrap();
    let (a, b, weight) = (op.a.matrix(), op.b.matrix(), weight.to_f32());
    let mut product = 0.0;
    for (row, column) in (0..b.rows).flat_map(|row| (0..a.cols).map(move |column| (row, column))) {
        let sum: f64 = (0..a.rows).map(|k| f64::from(b.get(row, k)) * f64::from(a.get(k, column))).sum();
        product += (f64::from(op.scaling) * sum).powi(2);
    }
    let of_weight = product.sqrt() / weight.iter().map(|w| f64::from(*w).powi(2)).sum::<f64>().sqrt();
    assert!((plain.changes[0].of_weight.unwrap() - of_weight).abs() < 1e-5, "{of_weight}");

    for (at, (_, op)) in program.ops.iter_mut().enumerate() {
        let crate::delta::DeltaOp::LowRank(op) = op else { continue };
        op.scaling *= if at == 0 { 0.0 } else { 1.0 };
    }
    let (site, _) = &program.ops[0];
    assert_eq!(drift(&program).without_effect, [format!("LowRank {site}")]);
    let drift = Some(drift(&program));
    let text = llama.text_of(&llama.inspect("all_linear").map(|inspection| Inspection { drift, ..inspection }));
    assert!(text.contains("changes         LowRank down median") && text.contains("LowRank q median"), "{text}");
    assert!(text.contains(&format!("without effect  LowRank {site}\n")), "{text}");
}

#[test]
fn text_says_what_a_person_wants_to_know() {
    let llama = Golden::open("llama");
    let mut texts: Vec<_> = ["patterns", "prefix_tuning"].iter().map(|name| llama.text(name)).collect();
    texts.push(llama.text_of(&llama.refused()));
    assert_reads(
        &texts.join("\n"),
        r"
    kind            LoRA
    group           reparameterization
    task            CAUSAL_LM
    version         45f9cdd24b74e665d1ca36ed334e6e39ddd6d74c15d22bd72f915048a9b08a1f
    base            golden/llama (llama, 2 layers, hidden 32, 4 heads of 8, 2 KV, inner 72, vocabulary 100, untied)
    trained on      golden/llama
    max rank        7
    parameters      2144
    on disk         11.6 KiB
    on the device   4.2 KiB in bf16
    ops             LowRank down layer 1 rank 2 scaling 2.5
                    LowRank k layer 0 rank 3 scaling 2.6666667
                    LowRank q layers 0-1 rank 4 scaling 0.75
                    LowRank down layer 0 rank 4 scaling 1.25
                    LowRank k layer 1 rank 4 scaling 2
                    LowRank v layers 0-1 rank 7 scaling 1.1428572

    kind            prefix tuning
    group           addition
    task            CAUSAL_LM
    version         3a0d35b1ac69a40df773692fbc8ee4e1f3c7475565ebcf0b915936226a6a33f7
    base            golden/llama (llama, 2 layers, hidden 32, 4 heads of 8, 2 KV, inner 72, vocabulary 100, untied)
    trained on      golden/llama
    parameters      256
    virtual tokens  4 (K and V from the file)
    on disk         1.6 KiB
    on the device   1.0 KiB in bf16
    ops             Prefix virtual tokens

    base            golden/llama (llama, 2 layers, hidden 32, 4 heads of 8, 2 KV, inner 72, vocabulary 100, untied)
    refused         adapter_config.json: `use_qalora` = true is not supported
    ",
    );
}

#[test]
fn what_activates_an_adapter_and_whose_kv_it_has_is_said_where_it_is_not_as_usual() {
    let llama = Golden::open("llama");
    let said = |name: &str| {
        let text = llama.text(name);
        let lines = text.lines().filter(|line| line.starts_with("activated by") || line.starts_with("KV cache"));
        lines.map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(said("alora"), ["activated by    tokens 17 42 8"]);
    assert_eq!(said("behind_kv"), ["KV cache        the base's, shared whole"]);
    assert_eq!(said("lora_r4"), [""; 0]);
}

#[test]
fn an_adapter_says_its_group_and_what_it_was_trained_for() {
    let llama = Golden::open("llama");
    let said = |name: &str| {
        let text = llama.text(name);
        let value =
            |label: &str| text.lines().find_map(|line| line.strip_prefix(label)).unwrap_or("-").trim().to_owned();
        [value("kind"), value("group"), value("task")]
    };
    assert_eq!(said("seq_cls_lora"), ["LoRA", "reparameterization", "SEQ_CLS, labels: 3"]);
    assert_eq!(said("token_cls_prompt"), ["prompt tuning", "addition", "TOKEN_CLS, labels: 2"]);
    assert_eq!(said("features_lora"), ["LoRA", "reparameterization", "FEATURE_EXTRACTION"]);
    assert_eq!(said("shira"), ["SHiRA", "specification", "CAUSAL_LM"]);
    let json = serde_json::to_value(llama.inspect("seq_cls_lora").unwrap()).unwrap();
    assert_eq!((json["task"].as_str(), json["labels"].as_u64()), (Some("SEQ_CLS"), Some(3)));
}

#[test]
fn a_base_with_experts_says_what_they_are() {
    let line = |family: &str| {
        let text = Golden::open(family).text("lora_experts");
        let base = text.lines().find(|line| line.starts_with("base ")).unwrap_or_default();
        base.split("KV, ").nth(1).unwrap_or_default().to_owned()
    };
    assert_eq!(line("mixtral"), "6 experts of 40 in 2 layers, 2 per token, vocabulary 100, untied)");
    assert_eq!(line("qwen3_moe"), "inner 72, 8 experts of 24 in 2 layers, 3 per token, vocabulary 100, untied)");
    let json = serde_json::to_value(BaseShape::of(Golden::open("mixtral").base())).unwrap();
    assert_eq!(json["experts"]["per_token"], 2);
    assert!(serde_json::to_value(BaseShape::of(Golden::open("llama").base())).unwrap().get("experts").is_none());
}

#[test]
fn alike_ops_are_said_once() {
    let ops = |family: &str, names: &[&str]| {
        let golden = Golden::open(family);
        names.iter().map(|name| format!("{family} {name}\n  {}\n", golden.ops(name).join("\n  "))).collect::<String>()
    };
    let llama = ["lora_all_r8", "dora", "ia3", "embed_lm_head", "layers_to_transform"];
    let all = ops("llama", &llama) + &ops("gemma3", &["ln_tuning_all"]) + &ops("phi3", &["ia3_gate_up"]);
    assert_reads(
        &all,
        r"
    llama lora_all_r8
      LowRank q,k,v,o,gate,up,down layers 0-1 rank 8 scaling 2
    llama dora
      LowRank q,k,v,o,gate,up,down layers 0-1 rank 4 scaling 2
      OutputScale q,k,v,o,gate,up,down layers 0-1 before the bias
    llama ia3
      OutputScale k,v layers 0-1 after the bias
      InputScale down layers 0-1
    llama embed_lm_head
      LowRank lm_head rank 4 scaling 2
      LowRank q layers 0-1 rank 4 scaling 2
      EmbeddingLowRank embed rank 4 scaling 2
    llama layers_to_transform
      LowRank q,v,gate layer 1 rank 4 scaling 2
    gemma3 ln_tuning_all
      Gain final_norm
      Gain attention_norm,q_norm,k_norm,attention_out_norm,mlp_norm,mlp_out_norm layers 0-3
    phi3 ia3_gate_up
      OutputScale o layers 0-1 after the bias
      InputScale gate_up layers 0-1
    ",
    );
}

#[test]
fn groups_account_for_every_op_and_number() {
    for family in ["llama", "gemma3", "phi3", "qwen2"] {
        let golden = Golden::open(family);
        for entry in fs::read_dir(golden.family.join("adapters")).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            let Ok(inspection) = golden.inspect(&name) else { continue };
            let count: u32 = inspection.sites.iter().map(|group| group.count).sum();
            let parameters: u64 = inspection.sites.iter().map(|group| group.parameters).sum();
            assert_eq!(count, inspection.ops.values().sum::<u32>(), "{family} {name}");
            assert_eq!(parameters, inspection.parameters, "{family} {name}");
        }
    }
}

#[test]
fn json_is_one_document_either_way() {
    let golden = Golden::open("llama");
    let json = |inspected: Result<Inspection, InspectError>| {
        let mut out = Vec::new();
        write_json(&inspected, golden.base(), &mut out).unwrap();
        serde_json::from_slice::<serde_json::Value>(&out).unwrap()
    };
    let accepted = json(golden.inspect("lora_r4"));
    assert_eq!(accepted["kind"], "LoRA");
    assert_eq!(accepted["base"]["family"], "llama");
    assert_eq!(accepted["sites"][0]["rank"], 4);
    assert_eq!(accepted["version"].as_str().unwrap().len(), 64);
    assert_eq!(accepted["ops"]["LowRank"], accepted["sites"][0]["count"]);
    let refused = json(golden.refused());
    assert_eq!(refused["base"]["layers"], 2);
    assert!(refused["refused"][0].as_str().unwrap().contains("use_qalora"), "{refused}");
}

#[test]
fn every_way_to_fail_has_its_exit_code() {
    let golden = Golden::open("llama");
    let copy = tempfile::tempdir().unwrap();
    for file in ["adapter_config.json", "adapter_model.safetensors"] {
        fs::copy(golden.adapter("lora_r4").join(file), copy.path().join(file)).unwrap();
    }
    let exit = |limits: &InspectLimits| match inspect(golden.base(), plain(copy.path()), limits) {
        Ok(_) => Exit::Ok,
        Err(error) => error.exit(),
    };
    assert_eq!(exit(&limits()), Exit::Ok);
    let with = |change: fn(&mut InspectLimits)| {
        let mut limits = limits();
        change(&mut limits);
        limits
    };
    assert_eq!(exit(&with(|limits| limits.compile.max_rank = 3)), Exit::Rejected);
    assert_eq!(exit(&with(|limits| limits.files.max_config_bytes = 100)), Exit::Rejected);
    assert_eq!(exit(&with(|limits| limits.files.max_adapter_bytes = 2000)), Exit::Rejected);
    assert_eq!(golden.refused().unwrap_err().exit(), Exit::Rejected);
    fs::write(copy.path().join("adapter_model.safetensors"), b"").unwrap();
    assert_eq!(exit(&limits()), Exit::Rejected);
    fs::remove_file(copy.path().join("adapter_model.safetensors")).unwrap();
    assert_eq!(exit(&limits()), Exit::NotFound);
    assert_eq!(golden.inspect("no such folder").unwrap_err().exit(), Exit::NotFound);
}

#[test]
fn the_version_is_the_one_an_upload_gets() {
    let golden = Golden::open("llama");
    let folder = golden.adapter("lora_r4");
    let template = Some(&b"{{ messages }}"[..]);
    let folder = AdapterFolder { dir: &folder, chat_template: template, own_tokens: None };
    let files = folder.scan().unwrap();
    let stored: Vec<_> = files
        .into_iter()
        .map(|file| crate::adapters::StoredFile {
            path: file.path,
            size: file.size,
            sha256: file.sha256.parse().unwrap(),
        })
        .collect();
    let version = |stored: &[_]| crate::adapters::files::version_of(stored).to_string();
    let own = inspect(golden.base(), folder, &limits()).unwrap();
    assert_eq!((own.version, own.has_chat_template), (version(&stored), true));
    let plain = golden.inspect("lora_r4").unwrap();
    assert_eq!((plain.version.as_str(), plain.has_chat_template), (version(&stored[..2]).as_str(), false));
    let bases = StoreLimits { base_chat_templates: vec![stored[2].sha256], ..StoreLimits::default() };
    let same = inspect(golden.base(), folder, &InspectLimits { files: bases, ..limits() }).unwrap();
    assert_eq!((same.version, same.stored_bytes), (plain.version, plain.stored_bytes), "the base's is none of its own");
}

#[test]
fn a_chat_template_that_does_not_compile_is_refused_by_name() {
    let golden = Golden::open("llama");
    let dir = golden.adapter("lora_r4");
    for (template, said) in [(&b"{% for %}"[..], "does not compile"), (b"\xff", "UTF-8")] {
        let refused = inspect(
            golden.base(),
            AdapterFolder { dir: &dir, chat_template: Some(template), own_tokens: None },
            &limits(),
        );
        let refused = refused.unwrap_err();
        assert!(refused.lines()[0].contains("chat template") && refused.lines()[0].contains(said), "{refused}");
        assert_eq!(refused.exit(), Exit::Rejected);
    }
}
