//! Learned embeddings: those of the one task of an adapter, and what says of several that they are not served.

use super::toy::{HIDDEN, Upload, numbers};
use crate::delta::DeltaError;
use crate::delta::class::{DeltaOp, PromptEmbeds};

pub(super) fn multitask() -> Upload {
    Upload::new("MULTITASK_PROMPT_TUNING")
        .set("num_virtual_tokens", "3")
        .set("num_tasks", "1")
        .set("num_ranks", "2")
        .set("prompt_tuning_init", r#""EXACT_SOURCE_TASK""#)
        .set("prompt_tuning_init_task", "4")
        .tensor("prompt_embeddings", &[3, HIDDEN])
        .tensor("prefix_task_cols", &[1, 3, 2])
        .tensor("prefix_task_rows", &[1, 2, HIDDEN])
}

pub(super) fn cpt() -> Upload {
    Upload::new("CPT")
        .set("num_virtual_tokens", "3")
        .set("cpt_token_ids", "[4, 5, 6]")
        .set("cpt_tokens_type_mask", "[1, 2, 3]")
        .set("opt_projection_epsilon", "0.3")
        .tensor("prompt_embeddings", &[3, HIDDEN])
}

fn embeds(upload: &Upload) -> Vec<f32> {
    match upload.ops().ops.pop() {
        Some((_, DeltaOp::PromptEmbeds(PromptEmbeds { embeds }))) => embeds.to_f32(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn embeddings_of_a_task_are_the_shared_ones_times_its_product() {
    let [shared, cols, rows] = [
        numbers("prompt_embeddings", &[3, HIDDEN]),
        numbers("prefix_task_cols", &[1, 3, 2]),
        numbers("prefix_task_rows", &[1, 2, HIDDEN]),
    ];
    let number = |at: usize| {
        let (token, column) = (at / HIDDEN, at % HIDDEN);
        shared[at] * (cols[2 * token] * rows[column] + cols[2 * token + 1] * rows[HIDDEN + column])
    };
    assert_eq!(embeds(&multitask()), (0..3 * HIDDEN).map(number).collect::<Vec<_>>());
    assert_eq!(multitask().ops().kind, "multitask prompt tuning");
    assert_eq!((embeds(&cpt()), cpt().ops().kind.as_str()), (shared, "CPT"));
}

#[test]
fn several_tasks_are_refused_with_the_way_out() {
    let several = multitask().set("num_tasks", "2").refusal();
    assert!(matches!(&several, DeltaError::UnsupportedField { field, .. } if field == "num_tasks"), "{several}");
    assert!(several.to_string().contains("an adapter of its own"), "{several}");
}

#[test]
fn what_does_not_fit_is_named() {
    for tensor in multitask().names() {
        let error = multitask().without(&tensor).refusal();
        assert!(matches!(&error, DeltaError::MissingTensor { missing, .. } if *missing == tensor), "{error}");
    }
    let field = |upload: Upload, field: &str| match upload.refusal() {
        DeltaError::BadField { field: found, .. } => assert_eq!(found, field),
        error => panic!("{error}"),
    };
    field(multitask().set("num_ranks", "0"), "num_ranks");
    field(multitask().set("token_dim", "9"), "token_dim");
    field(cpt().set("cpt_token_ids", "[4, 5]"), "cpt_token_ids");
    assert!(matches!(multitask().set("num_ranks", "3").refusal(), DeltaError::Shape { .. }));
    assert!(matches!(
        cpt().set("num_virtual_tokens", "2").set("cpt_token_ids", "null").refusal(),
        DeltaError::Shape { .. }
    ));
    let stray = cpt().tensor("prefix_task_cols", &[1, 3, 2]).refusal();
    assert!(matches!(stray, DeltaError::UnknownTensor { .. }), "{stray}");
    let huge = multitask().values("prefix_task_cols", &[1, 3, 2], vec![3e38; 6]);
    let huge = huge.values("prefix_task_rows", &[1, 2, HIDDEN], vec![3e38; 2 * HIDDEN]).refusal();
    assert!(matches!(huge, DeltaError::NonFinite { .. }), "{huge}");
}
