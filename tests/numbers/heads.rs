//! Texts that are read: the logits of classifiers, and hidden states, are those of transformers + peft, and have the same bits
//! however a text is cut, beside whatever else, preempted and cached.

use std::fs;
use std::sync::Arc;

use polydelta::delta::DeltaError;
use polydelta::engine::EventReceiver;
use polydelta::ops::cpu::{CpuBackend, CpuOptions};
use polydelta::ops::{Backend, Numerics, WeightFormat, reference::ReferenceBackend};
use polydelta::scheduler::SchedulerConfig;
use polydelta::types::{
    AdapterTask, FinishReason, OpClass, PoolRows, PoolSpec, PooledVector, SamplingParams, SequenceEvent,
};
use serde::Deserialize;

use crate::engine::{Hall, config, hall_of};
use crate::fixture::{Case, Family};

pub(crate) const READ: [&str; 2] = ["llama", "qwen2"];

/// A text that transformers + peft have read.
#[derive(Deserialize)]
pub(crate) struct Text {
    pub(crate) adapter: Option<String>,
    task: String,
    labels: u32,
    tokens: Vec<u32>,
    /// Of the last token with a head for sequences, else of each.
    rows: Vec<Vec<f32>>,
}

impl Text {
    fn labels(&self) -> Option<u32> {
        (self.labels > 0).then_some(self.labels)
    }

    /// All that may be asked of it, and what is expected.
    pub(crate) fn questions(&self) -> Vec<(PoolSpec, Vec<Vec<f32>>)> {
        let spec = |rows| PoolSpec { rows, labels: self.labels() };
        let last = self.rows.last().unwrap().clone();
        let mut questions = vec![(spec(PoolRows::Last), vec![last])];
        if self.task != "SEQ_CLS" {
            questions.push((spec(PoolRows::Each), self.rows.clone()));
            questions.push((spec(PoolRows::First), vec![self.rows[0].clone()]));
        }
        if self.labels == 0 {
            let column = |column: usize| self.rows.iter().map(|row| row[column]).sum();
            questions.push((spec(PoolRows::Sum), vec![(0..self.rows[0].len()).map(column).collect()]));
        }
        questions
    }
}

pub(crate) fn texts(family: &Family) -> Vec<Text> {
    serde_json::from_slice(&fs::read(family.dir.join("heads.json")).unwrap()).unwrap()
}

fn adapters(texts: &[Text]) -> Vec<String> {
    let mut names: Vec<String> = texts.iter().filter_map(|text| text.adapter.clone()).collect();
    names.dedup();
    names
}

pub(crate) fn read(mut events: EventReceiver) -> Vec<PooledVector> {
    let (mut vectors, mut ended) = (Vec::new(), false);
    while let Some(event) = events.blocking_recv() {
        match event {
            SequenceEvent::Pooled(more) => vectors.extend(more),
            SequenceEvent::Token { token: None, finish: Some((FinishReason::Length, None)), .. } => ended = true,
            SequenceEvent::Started { .. } => {}
            other => panic!("{other:?}"),
        }
    }
    assert!(ended);
    vectors
}

pub(crate) fn submit(hall: &mut Hall, text: &Text, spec: PoolSpec) -> EventReceiver {
    hall.submit_prompt(&text.tokens, text.adapter.as_deref(), SamplingParams::pooling(spec), 0)
}

/// All texts and questions in one batch.
pub(crate) fn check<B: Backend>(name: &str, make: impl Fn() -> B) {
    let family = Family::open(name);
    let texts = texts(&family);
    let mut hall = hall_of(&family, &adapters(&texts), config(&family, 1024), Arc::new(make()), |executor| executor);
    let questions: Vec<_> =
        texts.iter().flat_map(|text| text.questions().into_iter().map(move |question| (text, question))).collect();
    let receivers: Vec<_> = questions.iter().map(|(text, (spec, _))| submit(&mut hall, text, *spec)).collect();
    for ((text, (spec, expected)), events) in questions.iter().zip(receivers) {
        check_answer(name, text, *spec, expected, &read(events));
    }
}

pub(crate) fn check_answer(name: &str, text: &Text, spec: PoolSpec, expected: &[Vec<f32>], found: &[PooledVector]) {
    let what = format!("{name} {:?} {spec:?}", text.adapter);
    assert_eq!(found.len(), expected.len(), "{what}");
    let tolerance = if spec.rows == PoolRows::Sum { 1e-4 * text.tokens.len() as f32 } else { 1e-4 };
    for (found, expected) in found.iter().zip(expected) {
        assert_eq!(found.len(), expected.len(), "{what}");
        for (found, expected) in found.iter().zip(expected) {
            assert!((found - expected).abs() < tolerance, "{what}: {found} vs {expected}");
        }
    }
}

#[test]
fn texts_are_read_as_transformers_and_peft_read_them() {
    for name in READ {
        check(name, || ReferenceBackend::new(Numerics::F32));
        check(name, || CpuBackend::new(CpuOptions { threads: 2, numerics: Numerics::F32, isa: None }).unwrap());
    }
}

pub(crate) type Bits = Vec<Vec<u32>>;

pub(crate) fn bits(vectors: &[PooledVector]) -> Bits {
    vectors.iter().map(|vector| vector.iter().map(|number| number.to_bits()).collect()).collect()
}

/// Each text alone, then all of them in halls that cut, cache and preempt in different ways, beside others who generate.
pub(crate) fn check_bits<B: Backend>(name: &str, block_size: u32, make: impl Fn() -> B) {
    let family = Family::open(name);
    let texts = texts(&family);
    let open = |config: SchedulerConfig| {
        let config = SchedulerConfig { block_size, ..config };
        hall_of(&family, &adapters(&texts), config, Arc::new(make()), |executor| executor)
    };
    let questions: Vec<(&Text, PoolSpec)> =
        texts.iter().flat_map(|text| text.questions().into_iter().map(move |(spec, _)| (text, spec))).collect();
    let mut alone = open(config(&family, 1024));
    let expected: Vec<Bits> = questions
        .iter()
        .map(|(text, spec)| {
            let events = submit(&mut alone, text, *spec);
            bits(&read(events))
        })
        .collect();

    let narrow = |num_blocks| SchedulerConfig { max_prefill_chunk: Some(5), ..config(&family, num_blocks) };
    let few = 160 / block_size;
    let uncached = SchedulerConfig { prefix_cache: false, ..narrow(few) };
    for config in [config(&family, 1024), narrow(1024), narrow(few), uncached] {
        let mut hall = open(config);
        // Twice: the second time the beginnings of texts are in the prefix cache.
        for _ in 0..2 {
            let generating: Vec<EventReceiver> = base_cases(&family).map(|case| hall.submit(case)).collect();
            let receivers: Vec<_> = questions.iter().map(|(text, spec)| submit(&mut hall, text, *spec)).collect();
            for (((text, spec), expected), events) in questions.iter().zip(&expected).zip(receivers) {
                assert!(bits(&read(events)) == *expected, "{name} {:?} {spec:?}", text.adapter);
            }
            drop(generating);
        }
    }
}

fn base_cases(family: &Family) -> impl Iterator<Item = &Case> {
    family.cases.iter().filter(|case| case.adapter.is_none())
}

#[test]
fn a_text_is_read_with_the_same_bits_however_it_is_cut_and_beside_whatever_else() {
    check_bits("llama", 4, || ReferenceBackend::new(Numerics::F32));
    for (name, numerics) in [("llama", Numerics::BF16), ("qwen2", Numerics::F32)] {
        check_bits(name, 4, || CpuBackend::new(CpuOptions { threads: 2, numerics, isa: None }).unwrap());
    }
}

#[test]
fn an_adapter_says_its_task_and_the_labels_of_its_head() {
    let family = Family::open("llama");
    let facts = |adapter: &str| family.compile(adapter).unwrap().facts(WeightFormat::F32);
    let tasks = [
        ("lora_r4", AdapterTask::Generation),
        ("features_lora", AdapterTask::Embedding),
        ("seq_cls_prefix", AdapterTask::SequenceClassification { labels: 4 }),
        ("token_cls_lora", AdapterTask::TokenClassification { labels: 5 }),
    ];
    for (adapter, task) in tasks {
        let facts = facts(adapter);
        assert_eq!((facts.task, facts.ops.contains_key(&OpClass::Head)), (task, task.labels() > 0), "{adapter}");
    }
    // A head is as large as its numbers.
    let width = family.spec.hidden_size as u64;
    let of_head = |adapter| facts(adapter).device_bytes - 4 * (facts(adapter).parameters - 5 * (width + 1));
    assert_eq!(of_head("token_cls_lora"), 4 * 5 * (width + 1));
}

#[test]
fn a_head_without_its_task_and_a_task_without_its_head_are_refused() {
    let family = Family::open("llama");
    let tasked = |adapter: &str, task: &str| family.compile_as(adapter, |config| config["task_type"] = task.into());
    let refused = tasked("lora_r4", "SEQ_CLS").unwrap_err();
    assert!(matches!(refused, DeltaError::MissingTensor { .. }), "{refused}");
    let refused = family.compile_as("seq_cls_lora", |config| {
        config["task_type"] = "CAUSAL_LM".into();
        config["modules_to_save"] = serde_json::Value::Null;
    });
    assert!(matches!(refused, Err(DeltaError::UnsupportedTensor { .. })), "{refused:?}");
    let refused = tasked("seq_cls_lora", "CAUSAL_LM").unwrap_err();
    assert!(matches!(&refused, DeltaError::UnsupportedField { field, .. } if field == "modules_to_save"), "{refused}");
    let refused = family.compile_as("seq_cls_lora", |config| config["modules_to_save"] = vec!["score", "norm"].into());
    assert!(matches!(refused, Err(DeltaError::UnsupportedField { .. })), "{refused:?}");
}
