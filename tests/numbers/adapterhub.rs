//! Bottleneck adapters against AdapterHub's library, which made them on the bases of the other fixtures: alone, in one batch with
//! each other, and in one batch with adapters of PEFT.

use polydelta::delta::DeltaError;
use polydelta::ops::cpu::{CpuBackend, CpuOptions, Isa};
use polydelta::ops::{Backend, Numerics, reference::ReferenceBackend};
use serde_json::{Value, json};

use crate::fixture::{ADAPTERHUB, Case, Family, Runner};
use crate::golden::{adapters, check, check_all};
use crate::invariance::check_invariance_in;

fn cpu(numerics: Numerics, isa: Isa) -> CpuBackend {
    CpuBackend::new(CpuOptions { threads: 2, numerics, isa: Some(isa) }).unwrap()
}

fn paths() -> impl Iterator<Item = Isa> {
    Isa::ALL.into_iter().filter(|isa| isa.is_available())
}

#[test]
fn every_bottleneck_agrees_with_adapterhub_on_the_reference_backend() {
    check_all(&ADAPTERHUB, || ReferenceBackend::new(Numerics::F32));
}

#[test]
fn every_bottleneck_agrees_with_adapterhub_on_the_cpu_backend() {
    for isa in paths() {
        check_all(&ADAPTERHUB, || cpu(Numerics::F32, isa));
    }
}

#[test]
fn a_request_with_a_bottleneck_has_the_same_bits_in_any_batch() {
    // Every kind once; few of them on every path.
    let [all, few @ ..] = ADAPTERHUB;
    check_invariance_in(&[all], 4, || {
        CpuBackend::new(CpuOptions { threads: 2, numerics: Numerics::BF16, isa: None }).unwrap()
    });
    check_invariance_in(&few[..1], 4, || ReferenceBackend::new(Numerics::BF16));
    for isa in paths() {
        for numerics in [Numerics::F32, Numerics::BF16] {
            check_invariance_in(&few, 4, || cpu(numerics, isa));
        }
    }
}

/// Bottlenecks, adapters of PEFT and the base in one batch.
pub(crate) fn check_mixed<B: Backend>(make: impl Fn() -> B) {
    const PEFT: [&str; 6] = ["lora_all_r8", "dora", "ia3", "ln_tuning", "lora_bias", "loha"];
    let [ours, theirs] = [ADAPTERHUB[0], "llama"].map(Family::open);
    let of_peft = |case: &&Case| case.adapter.as_deref().is_none_or(|name| PEFT.contains(&name));
    let cases: Vec<&Case> = ours.cases.iter().chain(theirs.cases.iter().filter(of_peft)).collect();
    let bottlenecks = adapters(&ours.cases.iter().collect::<Vec<_>>());
    let mut runner = Runner::new(make(), &ours, ours.spec.context_length, &bottlenecks);
    for name in PEFT {
        runner.install(name, theirs.compile(name).unwrap());
    }
    for (case, sequence) in cases.iter().zip(runner.generate(&cases, 7)) {
        check(&ours, case, &sequence);
    }
}

#[test]
fn bottlenecks_and_adapters_of_peft_run_in_one_batch() {
    check_mixed(|| ReferenceBackend::new(Numerics::F32));
    check_mixed(|| CpuBackend::new(CpuOptions { threads: 2, numerics: Numerics::F32, isa: None }).unwrap());
}

/// What compiling an adapter with one field changed says of it.
fn refusal(family: &str, adapter: &str, field: &str, value: &Value) -> DeltaError {
    let change = |config: &mut Value| {
        let of = if config["config"].get(field).is_some() { &mut config["config"] } else { config };
        of[field] = value.clone();
    };
    Family::open(family).compile_as(adapter, change).unwrap_err()
}

#[test]
fn what_cannot_be_exact_is_refused_by_its_field_with_a_way_out() {
    let [llama, _, qwen2] = ADAPTERHUB;
    let cases = [
        (llama, "seq_bn", "use_gating", json!(true), "mean over the whole text"),
        (llama, "seq_bn", "inv_adapter", json!("nice"), "seq_bn or double_seq_bn"),
        (llama, "seq_bn", "residual_before_ln", json!("post_add"), "cannot run it"),
        (llama, "seq_bn", "non_linearity", json!("xielu"), "mish"),
        (llama, "compacter", "factorized_phm_W", json!(false), "adapter_down.0.W"),
        (llama, "compacter_shared", "factorized_phm_W", json!(false), "shared_W_phm"),
        (qwen2, "double_seq_bn", "original_ln_before", json!(true), "AdapterModelInterface"),
        (qwen2, "double_seq_bn", "is_parallel", json!(true), "AdapterModelInterface"),
        (qwen2, "double_seq_bn", "original_ln_after", json!(false), "refuses"),
    ];
    for (family, adapter, field, value, hint) in cases {
        let error = refusal(family, adapter, field, &value).to_string();
        assert!(error.contains(hint), "{field}: {error}");
        assert!(error.contains(field) || hint.contains("W"), "{field}: {error}");
    }
    for architecture in ["lora", "prefix_tuning", "union", "reft"] {
        let change = |config: &mut Value| config["config"]["architecture"] = json!(architecture);
        let error = Family::open(llama).compile_as("seq_bn", change).unwrap_err().to_string();
        assert!(error.contains("config.architecture") && error.contains("peft"), "{error}");
    }
}

#[test]
fn what_is_wrong_in_itself_is_refused_by_its_name() {
    let llama = ADAPTERHUB[0];
    let cases = [
        ("seq_bn", "reduction_factor", json!(0), "reduction_factor"),
        ("seq_bn", "reduction_factor", json!({"0": 4}), "layer 1"),
        ("seq_bn", "reduction_factor", json!(8), "has shape [8, 32], expected [4, 32]"),
        ("seq_bn", "scaling", json!("row"), "scaling"),
        ("seq_bn", "scaling", json!("learned"), "no `scaling`"),
        ("seq_bn", "mh_adapter", json!(null), "mh_adapter"),
        ("seq_bn", "mh_adapter", json!(true), "layers.0.attention_adapters"),
        ("seq_bn", "leave_out", json!([1]), "does not target"),
        ("seq_bn", "ln_before", json!(true), "adapter_down.0.weight"),
        ("seq_bn", "model_type", json!("mistral"), "model_type"),
        ("seq_bn", "hidden_size", json!(64), "hidden_size"),
        ("double_seq_bn", "output_adapter", json!(false), "does not target"),
        ("compacter", "phm_dim", json!(3), "phm_dim"),
        ("compacter", "phm_bias", json!(false), "does not target"),
        ("compacter", "shared_phm_rule", json!(false), "adapter_down.0.phm_rule"),
        ("seq_bn", "name", json!("bn"), ""),
    ];
    for (adapter, field, value, hint) in cases {
        if hint.is_empty() {
            let same = |config: &mut Value| config[field] = value.clone();
            assert!(Family::open(llama).compile_as(adapter, same).is_ok());
            continue;
        }
        let error = refusal(llama, adapter, field, &value).to_string();
        assert!(error.contains(hint), "{field} = {value}: {error}");
    }
    let unknown = |config: &mut Value| config["config"]["new_field"] = json!(3);
    let error = Family::open(llama).compile_as("seq_bn", unknown).unwrap_err();
    assert!(matches!(&error, DeltaError::UnknownField { field, .. } if field == "config.new_field"), "{error}");
}
