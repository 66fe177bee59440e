//! What is noted of a running request for its receipt.

use std::sync::Arc;

use super::delta::{ServingDelta, ServingPart};
use crate::receipt::{
    ChoiceRecord, DeltaRecord, FORMAT, LogprobHasher, Origin, PartRecord, Receipt, SamplingRecord, StopRecord,
    StoppingRecord,
};
use crate::types::{FinishReason, SamplingParams, StoppingParams, TokenLogprob};

/// What is known of a request before its first token.
pub(super) struct Noted<'a> {
    pub origin: &'a Origin,
    pub serving: &'a ServingDelta,
    pub active_from: Option<u32>,
    pub prompt: &'a [u32],
    pub sampling: &'a SamplingParams,
    pub stopping: &'a StoppingParams,
    pub stop: &'a [String],
    pub choices: u32,
    /// Whether log-probabilities are the client's too, or the receipt's alone.
    pub reports_logprobs: bool,
}

/// A receipt in the making. It is told of every token that belongs to the answer, and of no other.
pub(super) struct Draft {
    receipt: Receipt,
    prompt: Option<LogprobHasher>,
    choices: Vec<ChoiceDraft>,
    reports_logprobs: bool,
}

#[derive(Default)]
struct ChoiceDraft {
    ids: Vec<u32>,
    logprobs: LogprobHasher,
    finish: Option<(FinishReason, Option<StopRecord>)>,
}

impl Draft {
    pub(super) fn new(noted: &Noted<'_>) -> Self {
        let receipt = Receipt {
            polydelta_receipt: FORMAT,
            origin: noted.origin.clone(),
            delta: delta_record(noted.serving),
            active_from: noted.active_from,
            prompt_token_ids: noted.prompt.to_vec(),
            sampling: SamplingRecord::from(noted.sampling),
            stopping: StoppingRecord::new(noted.stopping, noted.stop),
            prompt_logprobs_sha256: None,
            choices: Vec::new(),
        };
        Self {
            receipt,
            prompt: noted.sampling.prompt_logprobs.map(|_| LogprobHasher::default()),
            choices: (0..noted.choices).map(|_| ChoiceDraft::default()).collect(),
            reports_logprobs: noted.reports_logprobs,
        }
    }

    /// What the next token of the prompt is worth.
    pub(super) fn prompt_logprob(&mut self, logprob: &TokenLogprob) {
        if let Some(prompt) = &mut self.prompt {
            prompt.add(logprob.logprob);
        }
    }

    /// The next token of a choice; gives its log-probability back where the client is to have it.
    pub(super) fn token(&mut self, index: u32, id: u32, logprob: Option<TokenLogprob>) -> Option<TokenLogprob> {
        if let Some(choice) = self.choices.get_mut(index as usize) {
            choice.ids.push(id);
            logprob.iter().for_each(|logprob| choice.logprobs.add(logprob.logprob));
        }
        logprob.filter(|_| self.reports_logprobs)
    }

    /// Why a choice ended.
    pub(super) fn finish(&mut self, index: u32, reason: FinishReason, stop: Option<StopRecord>) {
        if let Some(choice) = self.choices.get_mut(index as usize) {
            choice.finish = Some((reason, stop));
        }
    }

    /// The receipt, once every choice has ended.
    pub(super) fn receipt(self) -> Arc<Receipt> {
        let record = |ChoiceDraft { ids, logprobs, finish }: ChoiceDraft| {
            let (reason, stop_match) = finish?;
            let (finish_reason, logprobs_sha256) = (reason.into(), logprobs.digest());
            Some(ChoiceRecord { token_ids: ids, finish_reason, stop_match, logprobs_sha256 })
        };
        Arc::new(Receipt {
            prompt_logprobs_sha256: self.prompt.map(LogprobHasher::digest),
            choices: self.choices.into_iter().filter_map(record).collect(),
            ..self.receipt
        })
    }
}

fn delta_record(serving: &ServingDelta) -> DeltaRecord {
    let part = |ServingPart { name, version, weight }: &ServingPart| PartRecord {
        name: name.clone(),
        version: *version,
        weight: *weight,
    };
    match serving {
        ServingDelta::Base => DeltaRecord::Base,
        ServingDelta::Adapter { name, version } => DeltaRecord::Adapter { name: name.clone(), version: *version },
        ServingDelta::Mix { version, parts } => {
            DeltaRecord::Mix { version: *version, parts: parts.iter().map(part).collect() }
        }
        ServingDelta::Sent { version } => DeltaRecord::Inline { version: *version },
    }
}
