//! OFT and BOFT: how their blocks are cut, what their fields change, and what is refused by which name.

use super::toy::{HIDDEN, INNER, KV, LIMITS, Toy, Upload, key};
use crate::delta::DeltaError;
use crate::delta::class::{DeltaOp, InputRotate, OutputScale, RotateStage};
use crate::delta::compile::{Base, worked_out_bytes};

const Q: &str = "model.layers.0.self_attn.q_proj";
const DOWN: &str = "model.layers.1.mlp.down_proj";

/// On one module of 8 inputs and one of 12.
fn of(peft_type: &str) -> Upload {
    Upload::new(peft_type).set("target_modules", &format!("[{Q:?}, {DOWN:?}]"))
}

/// With blocks of 4.
fn oft() -> Upload {
    with_oft(of("OFT").set("r", "0").set("oft_block_size", "4"), [2, 6], [3, 6])
}

/// So many blocks of q and of down, with so many numbers each.
fn with_oft(upload: Upload, q: [usize; 2], down: [usize; 2]) -> Upload {
    upload.tensor(&key(Q, "oft_R.weight"), &q).tensor(&key(DOWN, "oft_R.weight"), &down)
}

/// So many factors of so many blocks and inputs of q and of down.
fn with_boft(mut upload: Upload, q: [usize; 3], down: [usize; 3]) -> Upload {
    for (module, [factors, blocks, size]) in [(Q, q), (DOWN, down)] {
        upload = upload.tensor(&key(module, "boft_R"), &[factors, blocks, size, size]);
        upload = upload.tensor(&key(module, "boft_s"), &[HIDDEN, 1]);
    }
    upload
}

fn boft() -> Upload {
    with_boft(of("BOFT").set("boft_block_size", "4"), [1, 2, 4], [1, 3, 4])
}

fn butterfly() -> Upload {
    with_boft(of("BOFT").set("boft_block_size", "2").set("boft_n_butterfly_factor", "2"), [2, 4, 2], [2, 6, 2])
}

/// One upload of each form.
pub(super) fn uploads() -> Vec<Upload> {
    let shared = oft().set("block_share", "true").set("coft", "true").set("eps", "0.5");
    vec![
        oft(),
        oft().set("use_cayley_neumann", "false").set("bias", r#""oft_only""#),
        with_oft(shared, [1, 6], [1, 6]),
        boft(),
        butterfly().set("bias", r#""all""#),
    ]
}

/// The rotation of q and of down, and what else there is.
fn rotations(upload: &Upload) -> (Vec<Vec<RotateStage>>, Vec<DeltaOp>) {
    let (mut stages, mut others) = (Vec::new(), Vec::new());
    for (_, op) in upload.ops().ops {
        match op {
            DeltaOp::InputRotate(InputRotate { stages: own }) => stages.push(own),
            other => others.push(other),
        }
    }
    (stages, others)
}

/// Blocks, size and interleaved of each stage.
fn shapes(upload: &Upload) -> Vec<Vec<[usize; 3]>> {
    let shape = |stage: &RotateStage| {
        assert_eq!(stage.numbers.len(), stage.blocks * stage.size * stage.size);
        [stage.blocks, stage.size, stage.interleaved]
    };
    rotations(upload).0.iter().map(|stages| stages.iter().map(shape).collect()).collect()
}

#[test]
fn inputs_are_cut_by_size_or_by_number() {
    assert_eq!(shapes(&oft()), [[[2, 4, 1]], [[3, 4, 1]]]);
    // 5 does not divide 8 and 12: 4 and 4 are nearest; as a number of blocks they are 4 and 4.
    let nearest = oft().set("oft_block_size", "5");
    assert_eq!(shapes(&nearest), [[[2, 4, 1]], [[3, 4, 1]]]);
    let blocks = oft().set("oft_block_size", "0").set("r", "5");
    assert_eq!(shapes(&with_oft(blocks, [4, 1], [4, 3])), [[[4, 2, 1]], [[4, 3, 1]]]);
    assert_eq!(shapes(&with_oft(oft().set("oft_block_size", "99"), [1, 28], [1, 66])), [[[1, 8, 1]], [[1, 12, 1]]]);
    let single = with_oft(oft().set("oft_block_size", "1"), [8, 0], [12, 0]);
    assert_eq!(shapes(&single), [[[8, 1, 1]], [[12, 1, 1]]]);
    assert_eq!(rotations(&single).0[0][0].numbers, [1.0; 8]);
    assert_eq!(shapes(&uploads()[2]), [[[1, 4, 1]], [[1, 4, 1]]]);
    assert_eq!(shapes(&boft()), [[[2, 4, 1]], [[3, 4, 1]]]);
    let blocks = of("BOFT").set("boft_block_size", "0").set("boft_block_num", "4");
    assert_eq!(shapes(&with_boft(blocks, [1, 4, 2], [1, 4, 3])), [[[4, 2, 1]], [[4, 3, 1]]]);
    assert_eq!(shapes(&butterfly()), [[[4, 2, 2], [4, 2, 1]], [[6, 2, 2], [6, 2, 1]]]);
}

#[test]
fn a_small_constraint_keeps_the_direction_and_a_large_one_changes_nothing() {
    let of_q = |upload: &Upload| rotations(upload).0[0][0].numbers.clone();
    let exact = oft().set("use_cayley_neumann", "false");
    let plain = of_q(&exact);
    assert_eq!(of_q(&exact.clone().set("coft", "true").set("eps", "99")), plain);
    assert_eq!(of_q(&exact.clone().set("eps", "0.001")), plain, "without coft eps says nothing");
    let small = of_q(&exact.set("coft", "true").set("eps", "0.001"));
    // R is nearly I - 2Q, whose part off the diagonal has twice the norm of Q; there are two blocks.
    for block in small.chunks_exact(16) {
        let off: f32 = (0..16).filter(|at| at / 4 != at % 4).map(|at| block[at] * block[at]).sum();
        assert!((off.sqrt() - 2.0 * 0.001 / 2_f32.sqrt()).abs() < 1e-5, "{}", off.sqrt());
    }
    assert_eq!(of_q(&oft().set("coft", "true").set("eps", "0.0")), of_q(&oft().set("num_cayley_neumann_terms", "1")));
    assert_ne!(of_q(&oft().set("num_cayley_neumann_terms", "4")), of_q(&oft()));
    assert_eq!(of_q(&oft().set("num_cayley_neumann_terms", "4")), of_q(&oft().set("num_cayley_neumann_terms", "3")));
}

#[test]
fn boft_scales_before_the_bias_and_biases_are_the_methods_own() {
    let others = rotations(&boft()).1;
    assert!(others.iter().all(|op| matches!(op, DeltaOp::OutputScale(OutputScale { after_bias: false, .. }))));
    assert_eq!(others.len(), 2);
    let bias = |upload: Upload, only: &str| {
        let upload = upload.set("bias", &format!("{only:?}")).tensor(&key(Q, "base_layer.bias"), &[HIDDEN]);
        rotations(&upload).1.iter().filter(|op| matches!(op, DeltaOp::Bias(_))).count()
    };
    assert_eq!((bias(oft(), "oft_only"), bias(boft(), "boft_only")), (1, 1));
    assert!(matches!(oft().set("bias", r#""boft_only""#).refusal(), DeltaError::BadField { .. }));
}

#[test]
fn one_factor_is_what_peft_saves_without_its_extension_whatever_the_config_says() {
    let one = boft();
    assert_eq!(one.clone().set("boft_n_butterfly_factor", "2").ops().ops, one.ops().ops);
    let more = boft().set("boft_n_butterfly_factor", "3").tensor(&key(Q, "boft_R"), &[2, 2, 4, 4]);
    assert!(matches!(more.refusal(), DeltaError::WrongModule { .. } | DeltaError::Shape { .. }));
}

#[test]
fn what_is_missing_or_left_over_is_named() {
    for upload in uploads() {
        for tensor in upload.names() {
            let error = upload.clone().without(&tensor).refusal().to_string();
            assert!(error.contains(tensor.rsplit("_proj.").next().unwrap()), "without {tensor}: {error}");
        }
        let other = key("model.layers.0.self_attn.k_proj", "oft_R.weight");
        let error = upload.tensor(&other, &[2, KV]).refusal();
        assert!(matches!(error, DeltaError::NotTargeted { .. } | DeltaError::UnknownTensor { .. }), "{error}");
    }
}

#[test]
fn fields_that_cannot_be_meant_are_refused_by_name() {
    let bad = |upload: Upload, field: &str| match upload.refusal() {
        DeltaError::BadField { field: found, .. } => assert_eq!(found, field),
        error => panic!("{field}: {error}"),
    };
    // Before PEFT 0.14 the method of this name was another one.
    bad(with_oft(of("OFT").set("r", "4"), [2, 6], [3, 6]), "oft_block_size");
    bad(oft().set("r", "2"), "r");
    bad(oft().set("oft_block_size", "0"), "r");
    bad(oft().set("num_cayley_neumann_terms", "257"), "num_cayley_neumann_terms");
    bad(oft().set("eps", "-0.1"), "eps");
    bad(boft().set("boft_block_num", "2"), "boft_block_num");
    bad(boft().set("boft_block_size", "0"), "boft_block_num");
    bad(boft().set("boft_n_butterfly_factor", "0"), "boft_n_butterfly_factor");
    bad(boft().set("boft_n_butterfly_factor", "33"), "boft_n_butterfly_factor");
    let wrong = |upload: Upload| matches!(upload.refusal(), DeltaError::WrongModule { .. });
    let eight = boft().set("boft_block_size", "8").tensor(&key(Q, "boft_R"), &[1, 1, 8, 8]);
    assert!(wrong(eight), "12 is no multiple of 8");
    assert!(wrong(butterfly().set("boft_n_butterfly_factor", "3").tensor(&key(Q, "boft_R"), &[3, 4, 2, 2])));
    let embedding = Upload::new("OFT").set("oft_block_size", "4").set("target_modules", r#"["embed_tokens"]"#);
    assert!(wrong(embedding.tensor(&key("model.embed_tokens", "oft_embedding_R.weight"), &[2, 6])));
}

#[test]
fn a_series_that_overflows_is_refused_and_an_exact_form_never_does() {
    let huge = oft().values(&key(Q, "oft_R.weight"), &[2, 6], vec![1e30; 12]);
    let refused = huge.refusal();
    assert!(matches!(refused, DeltaError::NonFinite { .. }), "{refused}");
    assert!(refused.to_string().contains("InputRotate of layer 0 q"), "{refused}");
    let (stages, _) = rotations(&huge.set("use_cayley_neumann", "false"));
    assert!(stages[0][0].numbers.iter().all(|number| number.abs() < 1.001));
}

#[test]
fn rotations_are_known_by_their_size_before_they_are_worked_out() {
    let toy = Toy::new();
    let base = Base { layout: &toy.layout, weights: &toy };
    for upload in uploads() {
        let numbers: usize = rotations(&upload).0.iter().flatten().map(|stage| stage.numbers.len()).sum();
        let bytes = worked_out_bytes(&upload.config_bytes(), &upload.weight_bytes(), base, LIMITS).unwrap();
        assert_eq!(bytes, 4 * numbers as u64);
    }
    let (two, three) = (HIDDEN / 4, INNER / 4);
    assert_eq!(shapes(&oft()), [[[two, 4, 1]], [[three, 4, 1]]]);
}
