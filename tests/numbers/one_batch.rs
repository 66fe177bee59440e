//! Every method in one batch: all adapters of a base, of PEFT and of AdapterHub, mixes, adapters of resized vocabularies, texts that
//! are read and the base itself go through one engine at once, and each has the oracle's numbers and the bits that it has alone.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};

use polydelta::delta::DeltaProgram;
use polydelta::engine::{EventReceiver, Leftover, StepError, StepExecutor, StepInput};
use polydelta::ops::cpu::{CpuBackend, CpuOptions};
use polydelta::ops::{Backend, Numerics, reference::ReferenceBackend};
use polydelta::scheduler::SchedulerConfig;
use polydelta::types::{AdapterSlot, OpClasses, PoolSpec, SamplingParams, StepOutput};

use crate::engine::{Hall, config, hall_with};
use crate::fixture::{Case, Family};
use crate::heads::{self, Text, check_answer, texts};
use crate::isolation::{Bits, read};
use crate::methods::kinds;

/// Bases with adapters of every method.
pub(crate) const BASES: [&str; 2] = ["llama", "qwen2"];
/// Where their other adapters are.
const OTHERS: [&str; 2] = ["../adapterhub", "../vocabulary"];
/// Fewer sequences are no batch worth the name.
const LEAST: usize = 40;

/// Who had rows in a step.
#[derive(Debug, Default)]
struct Present {
    adapters: BTreeSet<AdapterSlot>,
    base: bool,
}

/// The real executor, which computes nothing before the door is opened and notes who has rows in each step.
struct Gathering<E> {
    inner: E,
    door: Option<Receiver<()>>,
    seen: Arc<Mutex<Vec<Present>>>,
}

impl<E: StepExecutor> StepExecutor for Gathering<E> {
    type Prepared = E::Prepared;

    fn execute(&mut self, step: &StepInput<'_>) -> Result<StepOutput, StepError> {
        if let Some(door) = self.door.take() {
            // Where a test has failed, nobody is behind it any more.
            let _ = door.recv();
        }
        let mut present = Present::default();
        for sequence in step.sequences() {
            match sequence.slot {
                Some(slot) => present.adapters.extend([slot]),
                None => present.base = true,
            }
        }
        self.seen.lock().unwrap().push(present);
        self.inner.execute(step)
    }

    fn install(&mut self, slot: AdapterSlot, prepared: Self::Prepared) {
        self.inner.install(slot, prepared);
    }

    fn remove(&mut self, slot: AdapterSlot) -> Leftover {
        self.inner.remove(slot)
    }

    fn classes(&self, slot: AdapterSlot) -> OpClasses {
        self.inner.classes(slot)
    }
}

/// All that there is for a base.
struct Everyone {
    family: Family,
    programs: BTreeMap<String, DeltaProgram>,
    cases: Vec<Case>,
    texts: Vec<Text>,
}

/// Its prompts with every adapter, and what is asked of its texts.
impl Everyone {
    fn of(name: &str) -> Self {
        let family = Family::open(name);
        let texts = texts(&family);
        let (mut programs, mut cases) = (BTreeMap::new(), Vec::new());
        let others = OTHERS.map(|folder| (format!("{folder} "), Family::open(&format!("{folder}/{name}"))));
        let all =
            std::iter::once((String::new(), &family)).chain(others.iter().map(|(of, family)| (of.clone(), family)));
        for (of, family) in all {
            for case in &family.cases {
                // Two folders may have one of the same name.
                let named = case.adapter.as_ref().map(|adapter| format!("{of}{adapter}"));
                if let (Some(adapter), Some(named)) = (&case.adapter, &named) {
                    programs.entry(named.clone()).or_insert_with(|| family.compile(adapter).unwrap());
                }
                cases.push(Case { adapter: named, ..case.clone() });
            }
        }
        for adapter in texts.iter().filter_map(|text| text.adapter.as_ref()) {
            programs.entry(adapter.clone()).or_insert_with(|| family.compile(adapter).unwrap());
        }
        Self { family, programs, cases, texts }
    }

    /// An engine with seats for all, behind a door, and what it will have seen.
    fn hall<B: Backend>(&self, block_size: u32, backend: B) -> (Hall, Sender<()>, Arc<Mutex<Vec<Present>>>) {
        let config = SchedulerConfig {
            block_size,
            max_num_seqs: 512,
            max_num_batched_tokens: 8192,
            // What the cache had would be computed beside nobody.
            prefix_cache: false,
            ..config(&self.family, 8192)
        };
        let (key, door) = channel();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let noted = Arc::clone(&seen);
        let gathering = |inner| Gathering { inner, door: Some(door), seen: noted };
        let programs = self.programs.iter().map(|(name, program)| (name.clone(), program.clone())).collect();
        (hall_with(&self.family, programs, config, Arc::new(backend), gathering), key, seen)
    }

    fn questions(&self) -> impl Iterator<Item = (&Text, PoolSpec, Vec<Vec<f32>>)> {
        let of = |text: &Text| text.questions();
        self.texts.iter().flat_map(move |text| of(text).into_iter().map(move |(spec, rows)| (text, spec, rows)))
    }

    fn submit(hall: &mut Hall, case: &Case) -> EventReceiver {
        // More than any vocabulary of the fixtures has.
        let sampling = SamplingParams { logprobs: Some(128), ..SamplingParams::greedy() };
        hall.submit_prompt(&case.prompt, case.adapter.as_deref(), sampling, case.ids.len())
    }

    fn check(&self, case: &Case, bits: &Bits) {
        let name = format!("{} {}", self.family.name, case.name);
        let ids: Vec<u32> = bits.iter().map(|(id, ..)| *id).collect();
        assert_eq!(ids, case.ids, "{name}");
        for (step, (_, logprob, all)) in bits.iter().enumerate() {
            let near = |found: u32, expected: f32| (f32::from_bits(found) - expected).abs() < 1e-4;
            let all: BTreeMap<u32, u32> = all.iter().copied().collect();
            assert!(near(*logprob, case.logprobs[step]), "{name}: log-prob {step}");
            let others = case.top[step].iter().all(|(id, expected)| near(all[id], *expected));
            assert!(others, "{name}: log-probs of others at {step}");
        }
    }
}

/// What each is given beside nobody.
fn alone<B: Backend>(everyone: &Everyone, block_size: u32, backend: B) -> (Vec<Bits>, Vec<heads::Bits>) {
    let (mut hall, key, seen) = everyone.hall(block_size, backend);
    drop(key);
    let cases = everyone.cases.iter().map(|case| read(Everyone::submit(&mut hall, case)).unwrap()).collect();
    let texts = everyone
        .questions()
        .map(|(text, spec, _)| heads::bits(&heads::read(heads::submit(&mut hall, text, spec))))
        .collect();
    assert!(seen.lock().unwrap().iter().all(|present| present.adapters.len() + usize::from(present.base) <= 1));
    (cases, texts)
}

pub(crate) fn check<B: Backend>(base: &str, block_size: u32, make: impl Fn() -> B) {
    let everyone = Everyone::of(base);
    // A mix is made of methods and is none.
    let kinds_here = everyone.programs.values().map(|program| program.kind.clone()).filter(|kind| kind != "mix");
    let here: BTreeSet<String> = kinds_here.collect();
    assert_eq!(here, kinds(), "{}: the methods in the batch are those of the table in the README", base);

    let (alone, texts_alone) = alone(&everyone, block_size, make());
    let (mut hall, key, seen) = everyone.hall(block_size, make());
    // The first to come waits at the door, and has gone when the others begin.
    let first = Everyone::submit(&mut hall, &Case { ids: vec![0], ..everyone.cases[0].clone() });
    let cases: Vec<_> = everyone.cases.iter().map(|case| Everyone::submit(&mut hall, case)).collect();
    let texts: Vec<_> = everyone.questions().map(|(text, spec, _)| heads::submit(&mut hall, text, spec)).collect();
    key.send(()).unwrap();
    assert_eq!(read(first).unwrap().len(), 1);

    for ((case, alone), events) in everyone.cases.iter().zip(&alone).zip(cases) {
        let bits = read(events).unwrap();
        everyone.check(case, &bits);
        assert!(bits == *alone, "{} {}: other bits than alone", base, case.name);
    }
    for (((text, spec, rows), alone), events) in everyone.questions().zip(&texts_alone).zip(texts) {
        let found = heads::read(events);
        check_answer(base, text, spec, &rows, &found);
        assert!(heads::bits(&found) == *alone, "{} {:?}: other bits than alone", base, text.adapter);
    }

    let slot = |adapter: &String| hall.binding(adapter, &[]).slot;
    let generating: BTreeSet<_> = everyone.cases.iter().filter_map(|case| case.adapter.as_ref()).map(slot).collect();
    assert!(generating.len() >= LEAST);
    let seen = seen.lock().unwrap();
    let whole = seen.iter().any(|present| present.base && present.adapters.is_superset(&generating));
    let most = seen.iter().map(|present| present.adapters.len()).max();
    assert!(whole, "{}: no step had rows of the base and of all {} adapters: {most:?}", base, generating.len());
}

#[test]
fn every_method_in_one_batch_on_the_reference_backend() {
    for base in BASES {
        check(base, 4, || ReferenceBackend::new(Numerics::F32));
    }
}

#[test]
fn every_method_in_one_batch_on_the_cpu_backend() {
    for base in BASES {
        check(base, 4, || CpuBackend::new(CpuOptions { threads: 2, numerics: Numerics::F32, isa: None }).unwrap());
    }
}
