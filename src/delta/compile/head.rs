//! What an adapter was trained for (`task_type`), and the classifier's head that PEFT saves beside any method where that is
//! classification: the module `score` or `classifier` of transformers' `…ForSequenceClassification` and
//! `…ForTokenClassification`, whose whole weight PEFT puts into the file by `modules_to_save`.

use super::compilation::Compilation;
use crate::delta::DeltaError;
use crate::delta::class::{DeltaOp, Head};
use crate::delta::layout::Site;
use crate::delta::peft::fields::{Fields, Names};
use crate::delta::peft::keys::{HEAD_BIAS, HEAD_WEIGHT, is_head};
use crate::types::{AdapterTask, MAX_LABELS};

/// `task_type`, as far as it changes what an adapter gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Task {
    /// `CAUSAL_LM`, none, and whatever else has no head.
    Generation,
    /// `FEATURE_EXTRACTION`.
    Embedding,
    /// `SEQ_CLS`.
    Sequences,
    /// `TOKEN_CLS`.
    Tokens,
}

impl Task {
    pub(super) fn read(fields: &Fields) -> Result<Self, DeltaError> {
        let task = match fields.str("task_type")? {
            Some("FEATURE_EXTRACTION") => Self::Embedding,
            Some("SEQ_CLS") => Self::Sequences,
            Some("TOKEN_CLS") => Self::Tokens,
            _ => Self::Generation,
        };
        if task.has_head() {
            // PEFT adds the names of heads by itself.
            let others = match fields.names("modules_to_save")? {
                Some(Names::List(names)) => !names.iter().all(|name| is_head(name)),
                Some(Names::Pattern(_)) => true,
                None => false,
            };
            if others {
                return Err(fields.unsupported("modules_to_save", " but for the head of a classifier"));
            }
        }
        Ok(task)
    }

    pub(super) fn has_head(self) -> bool {
        matches!(self, Self::Sequences | Self::Tokens)
    }

    /// Take the head, where there must be one.
    pub(super) fn compile(self, compilation: &mut Compilation<'_>) -> Result<(), DeltaError> {
        if !self.has_head() {
            return Ok(());
        }
        let [labels, _] = compilation.shared_sizes(HEAD_WEIGHT)?;
        if !(1..=MAX_LABELS).contains(&labels) {
            return Err(DeltaError::Labels { labels, max: MAX_LABELS });
        }
        let weight = compilation.required_shared(HEAD_WEIGHT, &[labels, compilation.base.layout.hidden_size])?;
        let bias = compilation.tensors.take_shaped(HEAD_BIAS, &[labels])?.map(|bias| bias.to_f32());
        compilation.push(Site::Labels, Head { weight, bias });
        Ok(())
    }

    /// With the labels that its head has.
    pub(super) fn of(self, ops: &[(Site, DeltaOp)]) -> AdapterTask {
        let heads = ops.iter().filter_map(|(_, op)| if let DeltaOp::Head(head) = op { Some(head) } else { None });
        let labels = heads.map(|head| head.weight.rows() as u32).next().unwrap_or(0);
        match self {
            Self::Generation => AdapterTask::Generation,
            Self::Embedding => AdapterTask::Embedding,
            Self::Sequences => AdapterTask::SequenceClassification { labels },
            Self::Tokens => AdapterTask::TokenClassification { labels },
        }
    }
}
