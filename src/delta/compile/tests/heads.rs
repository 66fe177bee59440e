//! The head of a classifier: under which names it comes, and what is refused of it.

use super::toy::{HIDDEN, Upload, numbers};
use crate::delta::layout::Site;
use crate::delta::{DeltaError, DeltaOp, Head};
use crate::types::{AdapterTask, MAX_LABELS};

const WEIGHT: &str = "base_model.model.score.weight";
const BIAS: &str = "base_model.model.score.bias";

fn classifier(task: &str, labels: usize) -> Upload {
    Upload::lora().set("task_type", &format!("{task:?}")).tensor(WEIGHT, &[labels, HIDDEN])
}

/// Weight and bias.
fn head(upload: &Upload) -> (Vec<f32>, Option<Vec<f32>>) {
    let program = upload.ops();
    let Some((Site::Labels, DeltaOp::Head(Head { weight, bias }))) = program.ops.last() else { panic!() };
    assert_eq!(weight.shape[1], HIDDEN);
    (weight.to_f32(), bias.clone())
}

#[test]
fn a_head_is_read_under_every_name_that_peft_gives_it() {
    let plain = classifier("SEQ_CLS", 3);
    let numbers = |name: &str| numbers(name, &[3, HIDDEN]);
    assert_eq!(head(&plain), (numbers(WEIGHT), None));
    assert_eq!(plain.ops().task, AdapterTask::SequenceClassification { labels: 3 });
    let saved = plain.clone().set("modules_to_save", r#"["classifier", "score"]"#);
    for name in ["classifier.weight", "score.modules_to_save.default.weight"] {
        let renamed = saved.clone().renamed("score.weight", name);
        let keyed = renamed.names().into_iter().find(|key| key.ends_with(name)).unwrap();
        assert_eq!(head(&renamed), head(&saved), "{keyed}");
    }
    // Virtual tokens wrap no model, so that PEFT writes one level less.
    let prompt = Upload::prompt().set("task_type", r#""SEQ_CLS""#).tensor("base_model.score.weight", &[3, HIDDEN]);
    assert_eq!(head(&prompt).0, numbers("base_model.score.weight"));
    let tokens = classifier("TOKEN_CLS", 2).tensor(BIAS, &[2]);
    assert_eq!(head(&tokens).1.map(|bias| bias.len()), Some(2));
    assert_eq!(tokens.ops().task, AdapterTask::TokenClassification { labels: 2 });
}

#[test]
fn a_task_without_a_head_has_none() {
    for task in ["null", r#""CAUSAL_LM""#, r#""SEQ_2_SEQ_LM""#] {
        assert_eq!(Upload::lora().set("task_type", task).ops().task, AdapterTask::Generation, "{task}");
    }
    assert_eq!(Upload::lora().set("task_type", r#""FEATURE_EXTRACTION""#).ops().task, AdapterTask::Embedding);
    let with_head = classifier("CAUSAL_LM", 3).refusal();
    assert!(matches!(with_head, DeltaError::UnsupportedTensor { .. }), "{with_head}");
}

#[test]
fn a_head_that_is_missing_or_has_other_sizes_is_refused() {
    let missing = Upload::lora().set("task_type", r#""SEQ_CLS""#).refusal();
    assert!(matches!(missing, DeltaError::MissingTensor { missing: WEIGHT, .. }), "{missing}");
    let many = classifier("SEQ_CLS", MAX_LABELS + 1).refusal();
    assert!(matches!(many, DeltaError::Labels { labels, max: MAX_LABELS } if labels == MAX_LABELS + 1), "{many}");
    for shape in [vec![3, HIDDEN + 1], vec![3], vec![3, HIDDEN, 1]] {
        let refused = classifier("SEQ_CLS", 3).tensor(WEIGHT, &shape).refusal();
        assert!(matches!(refused, DeltaError::Shape { .. }), "{refused}");
    }
    let bias = classifier("SEQ_CLS", 3).tensor(BIAS, &[2]).refusal();
    assert!(matches!(bias, DeltaError::Shape { .. }), "{bias}");
    let text = classifier("SEQ_CLS", 3).set("modules_to_save", r#""score""#).refusal();
    assert!(matches!(&text, DeltaError::BadField { field, .. } if field == "modules_to_save"), "{text}");
    let others = classifier("SEQ_CLS", 3).set("modules_to_save", r#"["score", "pooler"]"#).refusal();
    assert!(matches!(&others, DeltaError::UnsupportedField { field, .. } if field == "modules_to_save"), "{others}");
}
