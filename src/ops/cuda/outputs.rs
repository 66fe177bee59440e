//! What is wanted of sampled rows, as the kernel reads it, and what came of them.

use std::sync::Arc;

use super::abi::{Address, IdCount, IdNumber, OutputSpec, SampleLists, Sampled};
use super::driver::{Device, Mirror};
use super::image::{Image, addresses_of};
use crate::ops::{OpsError, SampleOutcome};
use crate::sampler;
use crate::types::{Output, SampleSpec, SampledToken, SequenceFailure, TokenLogprob};

/// What is wanted, on the device.
#[derive(Debug, Default)]
pub(super) struct Outputs {
    /// Rows and alternatives of each that there is room for: all, and those of the row that wants most.
    pub(super) rows: usize,
    pub(super) most: usize,
    /// By row: whether log-probabilities are reported.
    reported: Vec<bool>,
}

/// Lists that the specs of all rows point into.
#[derive(Default)]
struct Lists {
    specs: Vec<OutputSpec>,
    biases: Vec<IdNumber>,
    banned: Vec<u32>,
    counts: Vec<IdCount>,
}

impl Outputs {
    /// Where alternatives begin among the results, and the bytes of all of them.
    fn layout(&self) -> (usize, usize) {
        let alternatives = self.rows * size_of::<Sampled>();
        (alternatives, alternatives + self.rows * self.most * size_of::<IdNumber>())
    }

    /// Put the outputs of a step into its image, and their lists at `at`.
    pub(super) fn pack(&mut self, outputs: &[Output], at: usize, image: &mut Image) {
        let mut lists = Lists::default();
        outputs.iter().for_each(|output| lists.push(output));
        let top = |spec: &OutputSpec| usize::try_from(spec.top).unwrap_or(0);
        self.rows = outputs.len();
        self.most = lists.specs.iter().map(top).max().unwrap_or(0);
        self.reported.clear();
        self.reported.extend(lists.specs.iter().map(|spec| spec.top >= 0));
        let lists = SampleLists {
            outputs: image.list(lists.specs),
            biases: image.list(lists.biases),
            banned: image.list(lists.banned),
            counts: image.list(lists.counts),
        };
        image.set(at, &lists, &addresses_of!(SampleLists: outputs, biases, banned, counts));
    }
}

impl Lists {
    fn push(&mut self, output: &Output) {
        match output {
            Output::Sample(spec) => self.push_sample(spec),
            Output::PromptLogprobs { target, top } => {
                let top = i32::try_from(*top).unwrap_or(i32::MAX);
                self.specs.push(OutputSpec { scored: 1, target: *target, top, ..NEUTRAL });
            }
        }
    }

    fn push_sample(&mut self, spec: &SampleSpec) {
        let params = &*spec.params;
        let (biases, banned, counts) = (self.biases.len(), self.banned.len(), self.counts.len());
        self.biases.extend(params.logit_bias.iter().map(|(id, number)| IdNumber { id: *id, number: *number }));
        self.banned.extend(&spec.banned);
        let seen = spec.counts.iter().flat_map(|counts| counts.iter());
        self.counts.extend(seen.map(|(id, count)| IdCount { id, count }));
        self.specs.push(OutputSpec {
            temperature: params.temperature,
            top_k: params.top_k,
            top_p: params.top_p,
            min_p: params.min_p,
            uniform: sampler::uniform(spec),
            repetition_penalty: params.repetition_penalty,
            presence_penalty: params.presence_penalty,
            frequency_penalty: params.frequency_penalty,
            top: params.logprobs.map_or(-1, |top| i32::try_from(top).unwrap_or(i32::MAX)),
            biases: biases as u32,
            biases_end: self.biases.len() as u32,
            banned: banned as u32,
            banned_end: self.banned.len() as u32,
            counts: counts as u32,
            counts_end: self.counts.len() as u32,
            ..NEUTRAL
        });
    }
}

/// Nothing but the largest logit.
const NEUTRAL: OutputSpec = OutputSpec {
    scored: 0,
    target: 0,
    temperature: 0.0,
    top_k: 0,
    top_p: 1.0,
    min_p: 0.0,
    uniform: 0.0,
    repetition_penalty: 1.0,
    presence_penalty: 0.0,
    frequency_penalty: 0.0,
    top: -1,
    biases: 0,
    biases_end: 0,
    banned: 0,
    banned_end: 0,
    counts: 0,
    counts_end: 0,
};

/// What came of sampled rows: [`Sampled`] of each, then their alternatives.
#[derive(Debug, Default)]
pub(super) struct Results {
    memory: Option<Mirror>,
    /// Whether anything was written there since the last time.
    written: bool,
}

impl Results {
    /// Where the rows of a step are written from row `first` on.
    ///
    /// # Errors
    /// [`OpsError::OutOfMemory`].
    pub(super) fn at(
        &mut self,
        device: &Arc<Device>,
        outputs: &Outputs,
        first: usize,
    ) -> Result<(Address<Sampled>, Address<IdNumber>), OpsError> {
        let (alternatives, bytes) = outputs.layout();
        let memory = Mirror::at_least(&mut self.memory, device, "sampled tokens", bytes)?;
        self.written = true;
        let base = memory.device.address();
        let alternatives = Address::new(base + alternatives as u64).add(first * outputs.most);
        Ok((Address::new(base).add(first), alternatives))
    }

    /// A recorded step writes what its launches wrote.
    pub(super) fn replayed(&mut self) {
        self.written = true;
    }

    /// Put the copy back on the stream of steps.
    pub(super) fn fetch(&mut self, device: &Device, outputs: &Outputs) -> Result<(), OpsError> {
        let (_, bytes) = outputs.layout();
        match &mut self.memory {
            Some(Mirror { device: memory, host }) if self.written => memory.send(0, host, bytes, &device.compute),
            _ => Ok(()),
        }
    }

    /// What came of each row, once the device has been waited for.
    pub(super) fn outcomes(&mut self, outputs: &Outputs) -> Vec<SampleOutcome> {
        let written = std::mem::take(&mut self.written);
        let Some(memory) = self.memory.as_ref().filter(|_| written) else { return Vec::new() };
        let (sampled, alternatives) = memory.host.bytes().split_at(outputs.layout().0);
        let word =
            |bytes: &[u8], at: usize| bytes[at..].first_chunk().map_or(0, |word: &[u8; 4]| u32::from_le_bytes(*word));
        let outcome = |(row, reported): (usize, &bool)| {
            let at = row * size_of::<Sampled>();
            if word(sampled, at) != 0 {
                return Err(SequenceFailure::NonFinite);
            }
            let top = (0..word(sampled, at + 12) as usize).map(|index| {
                let at = (row * outputs.most + index) * size_of::<IdNumber>();
                (word(alternatives, at), f32::from_bits(word(alternatives, at + 4)))
            });
            let logprob =
                reported.then(|| TokenLogprob { logprob: f32::from_bits(word(sampled, at + 8)), top: top.collect() });
            Ok(SampledToken { token: word(sampled, at + 4), logprob })
        };
        outputs.reported.iter().enumerate().map(outcome).collect()
    }
}
