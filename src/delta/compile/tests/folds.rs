//! Methods that become pairs at load: every form of them is taken whole, and what cannot be one is refused by name.

use safetensors::Dtype;

use super::toy::{HIDDEN, INNER, KV, LIMITS, Toy, Upload, key, numbers};
use crate::delta::DeltaError;
use crate::delta::class::{DeltaOp, Dense, LowRank};
use crate::delta::compile::{Base, CompileLimits, compile, worked_out_bytes};
use crate::delta::safetensors::SafetensorsError;

const Q: &str = "model.layers.0.self_attn.q_proj";
const DOWN: &str = "model.layers.1.mlp.down_proj";

/// Of a method on one square module and one that is not.
fn of(peft_type: &str) -> Upload {
    without_rank(peft_type).set("r", "2")
}

fn without_rank(peft_type: &str) -> Upload {
    Upload::new(peft_type).set("target_modules", &format!("[{Q:?}, {DOWN:?}]"))
}

/// A shape by the input and the output of a module.
type Shape = fn(usize, usize) -> Vec<usize>;

/// The same tensors for both modules.
fn with(mut upload: Upload, parameters: &[(&str, Shape)]) -> Upload {
    for (module, input, output) in [(Q, HIDDEN, HIDDEN), (DOWN, INNER, HIDDEN)] {
        for (parameter, shape) in parameters {
            upload = upload.tensor(&key(module, parameter), &shape(input, output));
        }
    }
    upload
}

fn adalora() -> Upload {
    let upload = of("ADALORA").set("init_r", "2").set("target_r", "1").set("total_step", "10");
    with(upload, &[("lora_A", |i, _| vec![2, i]), ("lora_B", |_, o| vec![o, 2]), ("lora_E", |_, _| vec![2, 1])])
}

fn loha() -> Upload {
    with(
        of("LOHA").set("alpha", "3"),
        &[
            ("hada_w1_a", |_, o| vec![o, 2]),
            ("hada_w1_b", |i, _| vec![2, i]),
            ("hada_w2_a", |_, o| vec![o, 2]),
            ("hada_w2_b", |i, _| vec![2, i]),
        ],
    )
}

/// 8 is cut in 2 × 4 and 12 in 3 × 4, of which rank 1 decomposes the second.
fn lokr() -> Upload {
    with(
        of("LOKR").set("r", "1"),
        &[
            ("lokr_w1", |i, _| vec![2, if i == INNER { 3 } else { 2 }]),
            ("lokr_w2_a", |_, _| vec![4, 1]),
            ("lokr_w2_b", |_, _| vec![1, 4]),
        ],
    )
}

fn vera() -> Upload {
    let upload = with(of("VERA"), &[("vera_lambda_d", |_, _| vec![2]), ("vera_lambda_b", |_, o| vec![o])]);
    upload.tensor("base_model.vera_A", &[2, INNER]).tensor("base_model.vera_B", &[HIDDEN, 2])
}

fn miss() -> Upload {
    with(of("MISS"), &[("miss_block", |_, o| vec![2, o])])
}

fn hra() -> Upload {
    with(of("HRA"), &[("hra_u", |i, _| vec![i, 2])])
}

fn delora() -> Upload {
    with(
        of("DELORA"),
        &[
            ("delora_A", |i, _| vec![2, i]),
            ("delora_B", |_, o| vec![o, 2]),
            ("delora_lambda", |_, _| vec![1]),
            ("delora_w_norm", |i, _| vec![i]),
        ],
    )
}

fn bank(upload: Upload) -> Upload {
    let upload = upload.set("num_vectors", "5").set("vector_length", "4");
    upload.tensor("base_model.vblora_vector_bank", &[5, 4])
}

fn vblora() -> Upload {
    let upload = with(
        of("VBLORA"),
        &[("vblora_logits_A", |i, _| vec![2, i / 4, 5]), ("vblora_logits_B", |_, o| vec![o / 4, 2, 5])],
    );
    bank(upload)
}

/// The form with indices, on q alone.
fn vblora_topk(dtype: Dtype, of_a: [i64; 8]) -> Upload {
    let upload = bank(Upload::new("VBLORA")).set("r", "2").set("topk", "2").set("save_only_topk_weights", "true");
    upload
        .set("target_modules", &format!("[{Q:?}]"))
        .indices(&key(Q, "vblora_logits_A_topk_indices"), dtype, &[2, 2, 2], &of_a)
        .indices(&key(Q, "vblora_logits_B_topk_indices"), dtype, &[2, 2, 2], &[0, 1, 1, 2, 2, 3, 3, 4])
        .tensor(&key(Q, "vblora_logits_A_topk_weights"), &[2, 2, 1])
        .tensor(&key(Q, "vblora_logits_B_topk_weights"), &[2, 2, 1])
}

fn gralora() -> Upload {
    with(
        of("GRALORA").set("hybrid_r", "1").set("gralora_k", "2"),
        &[
            ("gralora_A", |i, _| vec![2, i / 2, 2]),
            ("gralora_B", |_, o| vec![2, 2, o / 2]),
            ("gralora_A_general.weight", |i, _| vec![1, i]),
            ("gralora_B_general.weight", |_, o| vec![o, 1]),
        ],
    )
}

fn fourierft() -> Upload {
    with(without_rank("FOURIERFT").set("n_frequency", "5"), &[("fourierft_spectrum", |_, _| vec![5])])
}

fn c3a() -> Upload {
    with(without_rank("C3A").set("block_size", "4"), &[("c3a_kernel", |i, o| vec![o / 4, i / 4, 4])])
}

fn randlora() -> Upload {
    let upload =
        with(of("RANDLORA"), &[("randlora_lambda", |_, _| vec![2, 4]), ("randlora_gamma", |_, _| vec![4, HIDDEN])]);
    upload.tensor("base_model.randlora_A", &[2, 1, HIDDEN]).tensor("base_model.randlora_B", &[INNER, 4, 2])
}

fn miss_bat() -> Upload {
    with(of("MISS").set("init_weights", r#""bat""#), &[("miss_block", |_, o| vec![o / 2, 2, 2])])
}

fn hira() -> Upload {
    with(of("HIRA"), &[("hira_A", |i, _| vec![2, i]), ("hira_B", |_, o| vec![o, 2])])
}

/// One upload of each method that becomes full matrices.
pub(super) fn full() -> Vec<Upload> {
    vec![fourierft(), c3a(), randlora(), miss_bat(), hira()]
}

/// One upload of each of these methods.
pub(super) fn uploads() -> Vec<Upload> {
    vec![
        adalora(),
        loha(),
        lokr(),
        vera(),
        miss(),
        hra(),
        delora(),
        vblora(),
        vblora_topk(Dtype::I16, [4, 0, 1, 2, 3, 4, 0, 1]),
        gralora(),
    ]
}

/// Ranks of the pairs, in the order of their sites.
fn ranks(upload: &Upload) -> Vec<usize> {
    let pair = |op: &DeltaOp| match op {
        DeltaOp::LowRank(LowRank { a, b, .. }) => {
            assert_eq!((a.cols() * b.rows(), a.rows()), (a.cols() * HIDDEN, b.cols()));
            a.rows()
        }
        other => panic!("{other:?}"),
    };
    upload.ops().ops.iter().map(|(_, op)| pair(op)).collect()
}

#[test]
fn every_module_gets_one_pair_of_the_rank_that_its_form_has() {
    let expected =
        [vec![2, 2], vec![4, 4], vec![2, 2], vec![2, 2], vec![2, 2], vec![2, 2], vec![2, 2], vec![2, 2], vec![2]];
    for (upload, expected) in uploads().iter().zip(expected.into_iter().chain([vec![5, 5]])) {
        assert_eq!(ranks(upload), expected, "{}", String::from_utf8_lossy(&upload.config_bytes()));
    }
    let kinds: Vec<String> = uploads().iter().map(|upload| upload.ops().kind).collect();
    let expected = "AdaLoRA LoHa LoKr VeRA MiSS HRA DeLoRA VB-LoRA VB-LoRA GraLoRA";
    assert_eq!(kinds.join(" "), expected);
}

#[test]
fn every_module_gets_one_full_matrix_where_its_change_is_no_small_product() {
    for upload in full() {
        let program = upload.ops();
        let shapes: Vec<&[usize]> = program
            .ops
            .iter()
            .map(|(_, op)| match op {
                DeltaOp::Dense(Dense { d, replaces: false, .. }) => d.shape.as_slice(),
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(shapes, [[HIDDEN, HIDDEN], [HIDDEN, INNER]], "{}", program.kind);
    }
    let kinds: Vec<String> = full().iter().map(|upload| upload.ops().kind).collect();
    assert_eq!(kinds.join(" "), "FourierFT C3A RandLoRA MiSS HiRA");
}

/// The matrix of q.
fn of_q(upload: &Upload) -> (Vec<f32>, f32) {
    match &upload.ops().ops[0].1 {
        DeltaOp::Dense(Dense { d, scaling, .. }) => (d.to_f32(), *scaling),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_block_is_a_kernel_turned_on_by_one_place_a_row() {
    let kernels = numbers(&key(Q, "c3a_kernel"), &[2, 2, 4]);
    let (d, scaling) = of_q(&c3a());
    assert_eq!(scaling, 1.0 / HIDDEN as f32);
    // Block (1, 0): row 1 begins with the last number of its kernel.
    let kernel = &kernels[2 * 4..][..4];
    assert_eq!(d[5 * HIDDEN..][..4], [kernel[3], kernel[0], kernel[1], kernel[2]]);
}

#[test]
fn frequencies_are_counted_by_the_tail_behind_a_dot_and_by_whole_paths_last() {
    let counts = |pattern: &str, q: usize, down: usize| {
        let upload = fourierft().set("n_frequency_pattern", pattern);
        let upload = upload.tensor(&key(Q, "fourierft_spectrum"), &[q]);
        upload.tensor(&key(DOWN, "fourierft_spectrum"), &[down]).ops();
    };
    counts(r#"{"q_proj": 3, "down_proj": 64}"#, 3, 64);
    counts(&format!(r#"{{"{Q}": 7, "self_attn.q_proj": 3}}"#), 3, 5);
    counts(&format!(r#"{{"{Q}": 7}}"#), 7, 5);
    counts(r#"{"layers\\.\\d+\\.mlp\\.down_proj": 9, "_proj": 2}"#, 5, 9);
    for (field, value) in [("n_frequency", "0"), ("n_frequency", "65"), ("n_frequency_pattern", r#"{"q_proj": 0.5}"#)] {
        let error = fourierft().set(field, value).refusal();
        assert!(matches!(&error, DeltaError::BadField { field: named, .. } if named == field), "{value}: {error}");
    }
}

#[test]
fn projections_are_the_shared_ones_whatever_copies_a_file_has() {
    let of_a = numbers("base_model.randlora_A", &[2, 1, HIDDEN]);
    let copy = randlora().values(&key(Q, "randlora_A"), &[2, 1, HIDDEN], of_a.clone());
    assert_eq!(copy.ops().ops, randlora().ops().ops);
    let mut other = of_a;
    other[3] += 0.5;
    let error = randlora().values(&key(Q, "randlora_A"), &[2, 1, HIDDEN], other).refusal();
    assert!(matches!(error, DeltaError::UnsupportedTensor { .. }), "{error}");
    let narrow = randlora().tensor("base_model.randlora_B", &[HIDDEN, 4, 2]).refusal();
    assert!(matches!(narrow, DeltaError::WrongModule { .. }), "{narrow}");
}

#[test]
fn the_rank_of_a_module_is_the_files_where_peft_may_have_left_its_own_table_out() {
    let pattern = hira().set("rank_pattern", r#"{"q_proj": 1}"#);
    let by_pattern = pattern.clone().tensor(&key(Q, "hira_A"), &[1, HIDDEN]).tensor(&key(Q, "hira_B"), &[HIDDEN, 1]);
    for upload in [&pattern, &by_pattern] {
        assert_eq!(upload.ops().ops.len(), 2);
    }
    let other = pattern.tensor(&key(Q, "hira_A"), &[3, HIDDEN]).refusal();
    assert!(matches!(other, DeltaError::Shape { .. }), "{other}");
}

#[test]
fn what_is_missing_or_left_over_is_named() {
    for upload in uploads().into_iter().chain(full()) {
        for tensor in upload.names() {
            let error = upload.clone().without(&tensor).refusal().to_string();
            let parameter = tensor.rsplit("_proj.").next().unwrap();
            assert!(error.contains(parameter.trim_start_matches("base_model.")), "without {tensor}: {error}");
        }
        let error = upload.clone().tensor(&key(Q, "lora_C"), &[2, 2]).refusal();
        assert!(matches!(error, DeltaError::UnknownTensor { .. }), "{error}");
        let other = key("model.layers.0.self_attn.k_proj", "miss_block");
        let error = upload.tensor(&other, &[2, KV]).refusal();
        assert!(matches!(error, DeltaError::NotTargeted { .. } | DeltaError::UnknownTensor { .. }), "{error}");
    }
}

#[test]
fn the_limit_is_on_the_rank_that_is_computed() {
    let refused = |upload: Upload, rank: usize| match upload.refusal() {
        DeltaError::Rank { rank: found, max: 8, .. } => assert_eq!(found, rank),
        error => panic!("{error}"),
    };
    refused(loha().set("r", "3"), 9);
    refused(gralora().set("r", "4"), 9);
    refused(lokr().set("r", "9"), 9);
    refused(miss().set("r", "9"), 9);
    refused(hra().set("r", "0"), 0);
}

#[test]
fn adalora_leaves_modules_without_rows_alone() {
    let pruned = |rows: &str| {
        let pattern = format!(r#"{{"{Q}.lora_E": {rows}, "{DOWN}.lora_E.default": [true, true]}}"#);
        adalora().set("rank_pattern", &pattern)
    };
    let none = [("lora_A", [0, HIDDEN]), ("lora_B", [HIDDEN, 0]), ("lora_E", [0, 1])];
    let upload =
        none.iter().fold(pruned("[false, false]"), |upload, (name, shape)| upload.tensor(&key(Q, name), shape));
    assert_eq!(ranks(&upload), [2]);
    assert!(matches!(pruned("[false, true]").refusal(), DeltaError::Shape { .. }));
    assert!(matches!(pruned("[1, 0]").refusal(), DeltaError::BadField { .. }));
    assert!(matches!(adalora().set("rank_pattern", "3").refusal(), DeltaError::BadField { .. }));
}

#[test]
fn indices_are_integers_and_point_into_the_bank() {
    for dtype in [Dtype::U8, Dtype::I16, Dtype::I32, Dtype::I64] {
        assert_eq!(ranks(&vblora_topk(dtype, [4, 0, 1, 2, 3, 4, 0, 1])), [2]);
        match vblora_topk(dtype, [4, 0, 1, 2, 5, 4, 0, 1]).refusal() {
            DeltaError::Index { at: 4, index: 5, bound: 5, .. } => {}
            error => panic!("{error}"),
        }
    }
    let negative = vblora_topk(Dtype::I16, [4, 0, 1, -2, 3, 4, 0, 1]).refusal();
    assert!(matches!(negative, DeltaError::Index { at: 3, index: -2, .. }), "{negative}");
    let is_dtype =
        |error: &DeltaError| matches!(error, DeltaError::Safetensors(SafetensorsError::UnsupportedDtype { .. }));
    let floats = vblora_topk(Dtype::F32, [4, 0, 1, 2, 3, 4, 0, 1]).refusal();
    assert!(is_dtype(&floats), "{floats}");
    let weights = Upload::lora().in_dtype(Dtype::I32).refusal();
    assert!(is_dtype(&weights), "{weights}");
}

#[test]
fn forms_that_need_more_than_the_file_are_refused_by_name() {
    let named = |upload: Upload, field: &str| match upload.refusal() {
        DeltaError::UnsupportedField { field: found, .. } => assert_eq!(found, field),
        error => panic!("{error}"),
    };
    named(vera().set("save_projection", "false"), "save_projection");
    named(randlora().set("save_projection", "false"), "save_projection");
    named(miss().set("init_weights", r#""cat""#), "init_weights");
    named(loha().set("modules_to_save", r#"["score"]"#), "modules_to_save");
    for (upload, field) in [(gralora().set("gralora_k", "3"), "gralora_k"), (vblora().set("topk", "6"), "topk")] {
        assert!(matches!(upload.refusal(), DeltaError::BadField { field: found, .. } if found == field));
    }
    // Widths that the method cannot cut.
    for upload in [c3a().set("block_size", "3"), miss_bat().set("r", "3"), c3a().set("block_size", "0")] {
        assert!(matches!(upload.refusal(), DeltaError::WrongModule { .. } | DeltaError::Rank { .. }));
    }
    let error = vblora().set("vector_length", "5").tensor("base_model.vblora_vector_bank", &[5, 5]).refusal();
    assert!(matches!(error, DeltaError::WrongModule { .. }), "{error}");
}

#[test]
fn numbers_that_overflow_on_the_way_are_refused() {
    let zero = hra().values(&key(Q, "hra_u"), &[HIDDEN, 2], vec![0.0; HIDDEN * 2]).refusal();
    assert!(matches!(zero, DeltaError::NonFinite { .. }), "{zero}");
    let huge = vec![3e38; HIDDEN * 2];
    let product = loha().values(&key(Q, "hada_w1_b"), &[2, HIDDEN], huge.clone());
    let product = product.values(&key(Q, "hada_w2_b"), &[2, HIDDEN], huge).refusal();
    assert!(matches!(product, DeltaError::NonFinite { .. }), "{product}");
}

#[test]
fn what_is_worked_out_is_known_before_it_is() {
    let toy = Toy::new();
    let base = Base { layout: &toy.layout, weights: &toy };
    let bytes = |upload: &Upload, limits: CompileLimits| {
        worked_out_bytes(&upload.config_bytes(), &upload.weight_bytes(), base, limits).unwrap()
    };
    for upload in uploads() {
        let program = compile(&upload.config_bytes(), &upload.weight_bytes(), base, LIMITS).unwrap();
        let numbers: usize = program.ops.iter().map(|(_, op)| op.as_op().parameters()).sum();
        assert_eq!(bytes(&upload, LIMITS), 4 * numbers as u64);
    }
    // Beside all of them the largest three times over: W, and the factors on the way.
    for upload in full() {
        assert_eq!(bytes(&upload, LIMITS), 4 * (HIDDEN * HIDDEN + 4 * HIDDEN * INNER) as u64);
    }
    // A rank of 8 on two modules out of a file a third as large.
    assert_eq!(bytes(&Upload::lora(), LIMITS), 0, "as it stands in the file");
}
