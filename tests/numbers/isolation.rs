//! A step that fails, with the real kernels: whoever makes it fail ends, and its neighbours get the same bits as alone.

use std::sync::Arc;

use polydelta::engine::{EventReceiver, Leftover, StepError, StepExecutor, StepInput};
use polydelta::ops::Numerics;
use polydelta::ops::cpu::{CpuBackend, CpuOptions};
use polydelta::types::{AdapterSlot, OpClasses, RequestFailure, SequenceEvent, StepOutput};

use crate::engine::{Hall, config, hall_of};
use crate::fixture::{Case, Family};

/// When the rows of the culprit make a step fail.
#[derive(Clone, Copy, Debug)]
struct Fault {
    /// Its adapter's; nobody else uses it.
    slot: AdapterSlot,
    /// From this place of its sequence on: 0 is its first chunk.
    from: u32,
    /// The step panics, else it ends in an error.
    panics: bool,
}

/// The real executor, which computes every step and then fails those with rows of the culprit: what it wrote to the KV
/// cache stays written.
struct Failing<E> {
    inner: E,
    fault: Option<Fault>,
}

impl<E: StepExecutor> StepExecutor for Failing<E> {
    type Prepared = E::Prepared;

    fn execute(&mut self, step: &StepInput<'_>) -> Result<StepOutput, StepError> {
        let output = self.inner.execute(step)?;
        let Some(Fault { slot, from, panics }) = self.fault else { return Ok(output) };
        if !step.sequences().any(|sequence| sequence.slot == Some(slot) && sequence.start >= from) {
            return Ok(output);
        }
        assert!(!panics, "a kernel panics");
        Err(StepError::NoPrefix { slot: slot.0 })
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

/// Tokens with the bits of their log-probabilities, and those of the others that were likely.
pub(crate) type Bits = Vec<(u32, u32, Vec<(u32, u32)>)>;

pub(crate) fn read(mut events: EventReceiver) -> Result<Bits, RequestFailure> {
    let mut bits = Bits::new();
    while let Some(event) = events.blocking_recv() {
        match event {
            SequenceEvent::Token { token: Some(token), logprob, .. } => {
                let logprob = logprob.unwrap();
                let top = logprob.top.iter().map(|(id, logprob)| (*id, logprob.to_bits())).collect();
                bits.push((token, logprob.logprob.to_bits(), top));
            }
            SequenceEvent::Started { .. } => {}
            SequenceEvent::Failed(failure) => return Err(failure),
            other => panic!("{other:?}"),
        }
    }
    Ok(bits)
}

fn start(family: &Family, adapters: &[String], numerics: Numerics, fault: Option<Fault>) -> Hall {
    let backend = CpuBackend::new(CpuOptions { threads: 2, numerics, isa: None }).unwrap();
    hall_of(family, adapters, config(family, 1024), Arc::new(backend), |inner| Failing { inner, fault })
}

#[test]
fn neighbours_of_a_request_that_makes_steps_fail_get_the_bits_that_they_get_alone() {
    const CULPRIT: &str = "lora_r4";
    let family = Family::open("llama");
    let cases: Vec<&Case> = family.cases.iter().collect();
    let (culprits, neighbours): (Vec<&Case>, Vec<&Case>) =
        cases.iter().partition(|case| case.adapter.as_deref() == Some(CULPRIT));
    let mut adapters: Vec<String> = cases.iter().filter_map(|case| case.adapter.clone()).collect();
    adapters.sort();
    adapters.dedup();
    let slot = AdapterSlot(adapters.iter().position(|adapter| adapter == CULPRIT).unwrap() as u32);
    let culprit = culprits.into_iter().max_by_key(|case| case.prompt.len()).unwrap();
    for numerics in [Numerics::F32, Numerics::BF16] {
        let mut hall = start(&family, &adapters, numerics, None);
        let alone: Vec<Bits> = neighbours.iter().map(|case| read(hall.submit(case)).unwrap()).collect();
        // In its first chunk; in its second token; in a later one.
        let last = culprit.prompt.len() as u32;
        for (from, panics) in [(0, false), (last, true), (last + 3, false)] {
            let fault = Fault { slot, from, panics };
            let mut hall = start(&family, &adapters, numerics, Some(fault));
            let ended = hall.submit(culprit);
            let beside: Vec<EventReceiver> = neighbours.iter().map(|case| hall.submit(case)).collect();
            assert_eq!(read(ended), Err(RequestFailure::EngineFailed), "{numerics:?} {fault:?}");
            for ((case, alone), events) in neighbours.iter().zip(&alone).zip(beside) {
                assert!(read(events).as_ref() == Ok(alone), "{numerics:?} {fault:?}: {}", case.name);
            }
            let stats = hall.stats();
            assert!(stats.failed_steps > 0 && stats.running + stats.waiting == 0, "{stats:?}");
        }
    }
}
