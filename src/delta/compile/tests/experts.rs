//! LoRA on routers, experts and parameters: what it compiles to, and every way in which it does not.

use super::toy::{HIDDEN, LIMITS, Toy, Upload, key};
use crate::delta::compile::{Base, compile};
use crate::delta::layout::{LayerSite, Site};
use crate::delta::{DeltaError, DeltaOp, DeltaProgram, ExpertLowRank, LowRank};

const EXPERTS: usize = Toy::EXPERTS;
/// Columns of gate, and of up, of each expert.
const INNER: usize = Toy::INNER_OF_EXPERT;
const STACK: &str = "model.layers.1.mlp.experts";
const ROUTER: &str = "model.layers.1.mlp.gate";
const APART: &str = "model.layers.1.block_sparse_moe";

fn lora(rank: usize) -> Upload {
    Upload::new("LORA").set("r", &rank.to_string()).set("lora_alpha", "4").set("target_modules", "[]")
}

/// Tensors of all experts of both parameters, or of one.
fn stacks(upload: Upload, rank: usize, gate_up: Option<&str>, down: Option<&str>) -> Upload {
    let pair = |upload: Upload, before: &str, input: usize, output: usize| {
        upload
            .tensor(&key(STACK, &format!("{before}lora_A.weight")), &[EXPERTS * rank, input])
            .tensor(&key(STACK, &format!("{before}lora_B.weight")), &[output, EXPERTS * rank])
    };
    let upload = gate_up.into_iter().fold(upload, |upload, before| pair(upload, before, HIDDEN, 2 * INNER));
    down.into_iter().fold(upload, |upload, before| pair(upload, before, INNER, HIDDEN))
}

fn both(rank: usize) -> Upload {
    let upload = lora(rank).set("target_parameters", r#"["mlp.experts.gate_up_proj", "experts.down_proj"]"#);
    stacks(upload, rank, Some("base_layer."), Some(""))
}

fn pair(upload: Upload, module: &str, rank: usize, input: usize, output: usize) -> Upload {
    upload.tensor(&key(module, "lora_A.weight"), &[rank, input]).tensor(&key(module, "lora_B.weight"), &[output, rank])
}

fn matrix(upload: Upload, expert: usize, name: &str, rank: usize) -> Upload {
    let (input, output) = if name == "w2" { (INNER, HIDDEN) } else { (HIDDEN, INNER) };
    pair(upload, &format!("{APART}.experts.{expert}.{name}"), rank, input, output)
}

/// A pair for every matrix of every expert.
pub(super) fn apart(rank: usize) -> Upload {
    let all = (0..EXPERTS).flat_map(|expert| ["w1", "w2", "w3"].map(|name| (expert, name)));
    all.fold(lora(rank).set("target_modules", r#"["w1", "w2", "w3"]"#), |upload, (expert, name)| {
        matrix(upload, expert, name, rank)
    })
}

/// One of every form.
pub(super) fn uploads() -> Vec<Upload> {
    let router = pair(lora(2).set("target_parameters", r#"["gate.weight"]"#), ROUTER, 2, HIDDEN, EXPERTS);
    vec![both(2), apart(2), router]
}

fn ops(upload: &Upload) -> DeltaProgram {
    upload.compile(&Toy::sparse()).unwrap()
}

fn refusal(upload: &Upload) -> DeltaError {
    upload.compile(&Toy::sparse()).unwrap_err()
}

fn of_experts(op: &DeltaOp) -> &ExpertLowRank {
    match op {
        DeltaOp::ExpertLowRank(op) => op,
        other => panic!("{other:?}"),
    }
}

fn site(part: LayerSite) -> Site {
    Site::Layer(1, part)
}

#[test]
fn both_parameters_are_taken_apart_by_expert() {
    let upload = both(2);
    let program = ops(&upload);
    let sites: Vec<Site> = program.ops.iter().map(|(site, _)| *site).collect();
    assert_eq!(sites, [site(LayerSite::ExpertsGateUp), site(LayerSite::ExpertsDown)]);
    assert_eq!((program.kind.as_str(), program.facts(crate::ops::WeightFormat::F32).max_rank), ("LoRA", 2));
    let parts = [("base_layer.", HIDDEN, 2 * INNER), ("", INNER, HIDDEN)];
    for ((_, op), (before, input, output)) in program.ops.iter().zip(parts) {
        let op = of_experts(op);
        let stored = |pair: &str| upload.stored(&key(STACK, &format!("{before}{pair}.weight")));
        let (a, b) = (stored("lora_A"), stored("lora_B"));
        assert_eq!((&op.experts, &op.scalings), (&vec![0, 1, 2], &vec![2.0; 3]));
        for expert in 0..EXPERTS {
            assert_eq!((&op.a[expert].shape, &op.b[expert].shape), (&vec![2, input], &vec![output, 2]));
            assert_eq!(op.a[expert].to_f32(), a[expert * 2 * input..][..2 * input]);
            let of_expert: Vec<f32> = (0..output * 2).map(|at| b[at * EXPERTS + expert]).collect();
            assert_eq!(op.b[expert].to_f32(), of_expert, "the experts of one rank lie side by side");
        }
    }
}

#[test]
fn one_parameter_alone_is_not_nested() {
    let gate_up = lora(1).set("target_parameters", r#"["gate_up_proj"]"#);
    let down = lora(1).set("target_parameters", r#"["model.layers.1.mlp.experts.down_proj"]"#);
    let of = |upload: Upload, gate_up, down| stacks(upload, 1, gate_up, down);
    assert_eq!(ops(&of(gate_up.clone(), Some(""), None)).ops[0].0, site(LayerSite::ExpertsGateUp));
    assert_eq!(ops(&of(down.clone(), None, Some(""))).ops[0].0, site(LayerSite::ExpertsDown));
    for wrong in [of(gate_up, Some("base_layer."), None), of(down, None, Some("base_layer."))] {
        let error = refusal(&wrong);
        assert!(matches!(&error, DeltaError::MissingTensor { module, .. } if module == STACK), "{error}");
    }
    let swapped = stacks(both(1), 1, Some(""), Some("base_layer."));
    assert!(matches!(refusal(&swapped), DeltaError::Shape { .. }));
}

#[test]
fn another_number_of_experts_and_other_shapes_are_refused_with_both() {
    let inner = |pair: &str| key(STACK, &format!("base_layer.{pair}.weight"));
    let outer = |pair: &str| key(STACK, &format!("{pair}.weight"));
    for (tensor, shape, expected) in [
        (inner("lora_A"), [8, HIDDEN], [6, HIDDEN]),
        (inner("lora_A"), [3, HIDDEN], [6, HIDDEN]),
        (inner("lora_A"), [6, HIDDEN + 1], [6, HIDDEN]),
        (inner("lora_B"), [2 * INNER, 4], [2 * INNER, 6]),
        (inner("lora_B"), [INNER, 6], [2 * INNER, 6]),
        (outer("lora_A"), [6, HIDDEN], [6, INNER]),
        (outer("lora_B"), [6, HIDDEN], [HIDDEN, 6]),
    ] {
        let error = refusal(&both(2).tensor(&tensor, &shape));
        let named = matches!(&error, DeltaError::Shape { tensor: of, found, expected: wanted }
            if *of == tensor && *found == shape && *wanted == expected);
        assert!(named, "{tensor} {shape:?}: {error}");
    }
    for tensor in [inner("lora_A"), inner("lora_B"), outer("lora_A"), outer("lora_B")] {
        let error = refusal(&both(2).without(&tensor));
        assert!(matches!(&error, DeltaError::MissingTensor { module, .. } if module == STACK), "{tensor}: {error}");
    }
}

#[test]
fn ranks_are_bounded_by_expert_and_patterns_name_parameters() {
    let max = LIMITS.max_rank;
    assert_eq!(of_experts(&ops(&both(max)).ops[0].1).a[2].rows(), max);
    let error = refusal(&both(max + 1));
    let named = matches!(&error, DeltaError::Rank { module, rank, max: of }
        if module.ends_with("experts.gate_up_proj") && *rank == max + 1 && *of == max);
    assert!(named, "{error}");
    let patterns = lora(2)
        .set("target_parameters", r#"["gate_up_proj", "down_proj"]"#)
        .set("rank_pattern", r#"{"experts.down_proj": 3}"#)
        .set("alpha_pattern", r#"{".*gate_up_proj": 5}"#);
    let program = ops(&stacks(stacks(patterns, 2, Some("base_layer."), None), 3, None, Some("")));
    let found: Vec<_> = program.ops.iter().map(|(_, op)| (op.as_op().rank(), op.as_op().scaling())).collect();
    assert_eq!(found, [(Some(2), Some(2.5)), (Some(3), Some(4.0 / 3.0))]);
}

#[test]
fn matrices_one_by_one_are_the_same_op() {
    let upload = apart(2).set("alpha_pattern", r#"{"experts.1.w1": 6}"#);
    let program = ops(&upload);
    let parts = [(LayerSite::ExpertsGate, "w1"), (LayerSite::ExpertsUp, "w3"), (LayerSite::ExpertsDown, "w2")];
    assert_eq!(program.ops.len(), parts.len());
    for ((of, op), (part, name)) in program.ops.iter().zip(parts) {
        assert_eq!(*of, site(part));
        let op = of_experts(op);
        assert_eq!(op.experts, [0, 1, 2]);
        assert_eq!(op.scalings, if name == "w1" { [2.0, 3.0, 2.0] } else { [2.0; 3] });
        for expert in 0..EXPERTS {
            let stored = |pair: &str| upload.stored(&key(&format!("{APART}.experts.{expert}.{name}"), pair));
            assert_eq!(op.a[expert].to_f32(), stored("lora_A.weight"));
            assert_eq!(op.b[expert].to_f32(), stored("lora_B.weight"));
        }
    }
    // Some experts, some matrices.
    let some = matrix(lora(1).set("target_modules", r#"["experts.2.w1", "experts.0.w1"]"#), 0, "w1", 1);
    let program = ops(&matrix(some, 2, "w1", 1));
    assert_eq!((program.ops.len(), &of_experts(&program.ops[0].1).experts), (1, &vec![0, 2]));
    // Another level of paths, and the name of the adapter.
    let decorated =
        apart(2).renamed("base_model.model.model.", "base_model.model.").renamed("lora_A.", "lora_A.default.");
    assert!(matches!(refusal(&decorated), DeltaError::MixedKeys { .. }), "B goes without the name");
    let decorated = decorated.renamed("lora_B.", "lora_B.default.");
    assert_eq!(ops(&decorated).ops, ops(&apart(2)).ops);
    let decorated = both(2).renamed("lora_A.", "lora_A.default.").renamed("lora_B.", "lora_B.default.");
    assert_eq!(ops(&decorated).ops, ops(&both(2)).ops);
}

#[test]
fn an_expert_that_is_missing_or_does_not_exist_is_refused_by_number() {
    for (expert, name) in [(0, "w1"), (1, "w2"), (2, "w3")] {
        for parameter in ["lora_A.weight", "lora_B.weight"] {
            let module = format!("{APART}.experts.{expert}.{name}");
            let error = refusal(&apart(2).without(&key(&module, parameter)));
            let named = matches!(&error, DeltaError::MissingTensor { module: of, missing, .. }
                if *of == module && *missing == parameter);
            assert!(named, "{error}");
        }
    }
    for number in [EXPERTS as u64, 99, u64::from(u32::MAX) + 1] {
        let tensor = key(&format!("{APART}.experts.{number}.w1"), "lora_A.weight");
        let error = refusal(&apart(2).tensor(&tensor, &[2, HIDDEN]));
        let named = matches!(&error, DeltaError::NoSuchExpert { tensor: of, expert, experts: EXPERTS }
            if *of == tensor && *expert == number);
        assert!(named, "{error}");
    }
    for wrong in
        ["experts.01.w1", "experts.+1.w1", "experts.-1.w1", "experts.1.w4", "experts.1", "experts.1.w1.x", "gate.x"]
    {
        let tensor = key(&format!("{APART}.{wrong}"), "lora_A.weight");
        let error = refusal(&apart(2).tensor(&tensor, &[2, HIDDEN]));
        assert!(matches!(&error, DeltaError::UnsupportedTensor { tensor: of, .. } if *of == tensor), "{error}");
    }
    // Experts of the other spelling, of a layer that has none, of a layer that is not there.
    for path in ["model.layers.1.mlp.experts.0.w1", "model.layers.1.mlp.experts.0.gate_proj"] {
        let tensor = key(path, "lora_A.weight");
        let error = refusal(&apart(2).tensor(&tensor, &[2, HIDDEN]));
        assert!(matches!(&error, DeltaError::UnsupportedTensor { tensor: of, .. } if *of == tensor), "{error}");
    }
    for layer in [0, 2] {
        let tensor = key(&format!("model.layers.{layer}.block_sparse_moe.experts.0.w1"), "lora_A.weight");
        let error = refusal(&apart(2).tensor(&tensor, &[2, HIDDEN]));
        assert!(matches!(&error, DeltaError::UnknownTensor { tensor: of, .. } if *of == tensor), "{error}");
    }
    let wide = apart(2).tensor(&key(&format!("{APART}.experts.1.w2"), "lora_A.weight"), &[2, HIDDEN]);
    assert!(matches!(refusal(&wide), DeltaError::Shape { ref expected, .. } if *expected == [2, INNER]));
}

#[test]
fn what_the_config_does_not_target_is_refused() {
    let untargeted = |upload: Upload, tensor: &str| {
        let error = refusal(&upload);
        assert!(matches!(&error, DeltaError::NotTargeted { tensor: of } if of.contains(tensor)), "{error}");
    };
    untargeted(apart(2).set("target_modules", r#"["w1", "w2"]"#), ".w3.");
    untargeted(apart(2).set("exclude_modules", r#"["experts.1.w2"]"#), "experts.1.w2.");
    untargeted(
        apart(2)
            .set("target_modules", r#"["q_proj"]"#)
            .pair("model.layers.0.self_attn.q_proj", 2)
            .pair("model.layers.1.self_attn.q_proj", 2),
        "experts.",
    );
    untargeted(
        both(2)
            .set("target_parameters", r#"["gate_up_proj"]"#)
            .without(&key(STACK, "lora_A.weight"))
            .without(&key(STACK, "lora_B.weight"))
            .tensor(&key(STACK, "lora_A.weight"), &[6, HIDDEN])
            .tensor(&key(STACK, "lora_B.weight"), &[2 * INNER, 6]),
        "base_layer.",
    );
    untargeted(pair(both(2), ROUTER, 2, HIDDEN, EXPERTS), "gate.");
    // A parameter of the config has the word.
    let beside = both(2).set("target_modules", r#"["w1"]"#);
    untargeted(matrix(beside, 0, "w1", 2), "experts.0.w1.");
}

#[test]
fn routers_are_targeted_as_parameters_or_as_modules() {
    let by = |field: &str, names: &str, path: &str| {
        pair(lora(2).set("target_modules", "[]").set(field, names), path, 2, HIDDEN, EXPERTS)
    };
    let old = format!("{APART}.gate");
    let program = ops(&by("target_parameters", r#"["mlp.gate.weight"]"#, ROUTER));
    assert_eq!(program.ops[0].0, site(LayerSite::Router));
    assert!(matches!(&program.ops[0].1, DeltaOp::LowRank(LowRank { scaling: 2.0, .. })));
    let as_module = ops(&by("target_modules", r#"["gate"]"#, &old));
    assert_eq!(as_module.ops[0].0, site(LayerSite::Router));
    for path in [ROUTER, &old] {
        let error = refusal(&by("target_modules", r#"["gate"]"#, path).tensor(&key(path, "lora_A.weight"), &[2, 3]));
        assert!(matches!(error, DeltaError::Shape { ref expected, .. } if *expected == [2, HIDDEN]), "{error}");
    }
    let twice = pair(by("target_modules", r#"["gate"]"#, &old), ROUTER, 2, HIDDEN, EXPERTS);
    assert!(matches!(refusal(&twice), DeltaError::SameTensor { .. }));
    let missing = by("target_parameters", r#"["gate.weight"]"#, ROUTER).without(&key(ROUTER, "lora_B.weight"));
    assert!(matches!(refusal(&missing), DeltaError::MissingTensor { ref module, .. } if module == ROUTER));
}

#[test]
fn options_that_mean_nothing_within_an_expert_are_refused_by_name() {
    for (field, value, kind) in [
        ("use_dora", "true", "DoRA"),
        ("lora_bias", "true", "LoRA with lora_bias"),
        ("alora_invocation_tokens", "[1]", "aLoRA"),
    ] {
        let error = refusal(&apart(2).set(field, value));
        assert!(matches!(&error, DeltaError::WrongModule { kind: of, .. } if *of == kind), "{field}: {error}");
        let error = refusal(&both(2).set(field, value));
        assert!(matches!(&error, DeltaError::UnsupportedField { field: of, .. } if of == field), "{field}: {error}");
    }
    let error = refusal(&both(2).set("target_parameters", r#""gate_up_proj""#));
    assert!(matches!(&error, DeltaError::BadField { field, .. } if field == "target_parameters"), "{error}");
    let ia3 = Upload::ia3().tensor(&key(&format!("{APART}.experts.0.w2"), "ia3_l"), &[1, INNER]);
    let ia3 = ia3.without(&key("model.layers.1.mlp.down_proj", "ia3_l"));
    assert!(
        matches!(refusal(&ia3), DeltaError::UnsupportedTensor { ref tensor, .. } if tensor.contains("experts.0.w2"))
    );
}

#[test]
fn the_weight_of_a_linear_module_as_a_parameter_is_the_module() {
    let (module, embedding) = ("model.layers.0.self_attn.q_proj", "embed_tokens.weight");
    let of = |names: &str| lora(2).set("target_parameters", names).pair(module, 2);
    let by_module = lora(2).set("target_modules", r#"["layers.0.self_attn.q_proj"]"#).pair(module, 2);
    let by_weight = of(r#"["layers.0.self_attn.q_proj.weight"]"#);
    assert_eq!(by_weight.ops().ops, by_module.ops().ops);
    let rank = by_weight.clone().set("rank_pattern", r#"{"q_proj.weight": 3}"#);
    assert!(matches!(rank.refusal(), DeltaError::Shape { ref expected, .. } if *expected == [3, HIDDEN]));
    let module_rank = by_weight.set("rank_pattern", r#"{"q_proj": 3}"#);
    assert_eq!(module_rank.ops().ops, by_module.ops().ops, "patterns are held against the parameter");
    for other in ["norm.weight", embedding] {
        let error = of(&format!(r#"["layers.0.self_attn.q_proj.weight", "{other}"]"#)).refusal();
        assert!(matches!(error, DeltaError::WrongModule { .. }), "{other}: {error}");
    }
    let twice = of(r#"["layers.0.self_attn.q_proj.weight"]"#).set("target_modules", r#"["layers.0.self_attn.q_proj"]"#);
    assert!(matches!(twice.refusal(), DeltaError::WrongModule { .. }));
}

#[test]
fn expressions_of_files_with_many_matrices_are_bounded() {
    let mut toy = Toy::sparse();
    let mut block = toy.layout.sparse_block(1).unwrap().clone();
    block.experts = 4096;
    toy.layout = toy.layout.with_sparse_blocks(vec![block]);
    let patterns: Vec<String> = (0..12).map(|at| format!(r#""(w|x){at}": 2"#)).collect();
    let upload = apart(2).set("rank_pattern", &format!("{{{}}}", patterns.join(", ")));
    let base = Base { layout: &toy.layout, weights: &toy };
    let error = compile(&upload.config_bytes(), &upload.weight_bytes(), base, LIMITS).unwrap_err();
    assert!(matches!(&error, DeltaError::Regex { reason, .. } if reason.contains("12288")), "{error}");
}
