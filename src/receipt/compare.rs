//! A receipt held against another: thing by thing, what agrees and what does not.

use std::fmt::{self, Display};

use serde::Serialize;

use super::document::{ChoiceRecord, DeltaRecord, FinishRecord, Origin, Receipt, StopRecord};

/// What came of comparing one thing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// The same.
    Agrees,
    /// Another one, which may change an answer and need not.
    Warning,
    /// The answer is another one.
    Differs,
    /// What the answer was computed from is not to be had here: nothing follows from another answer.
    NotHere,
}

/// One thing that was compared.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Which, for people: `base`, `adapter sql`, `choice 0 tokens`.
    pub what: String,
    /// What came of it.
    pub verdict: Verdict,
    /// In the receipt.
    pub recorded: String,
    /// In its place.
    pub found: String,
}

impl Finding {
    /// Two things by their texts: the same, or with this verdict.
    #[must_use]
    pub fn new(what: impl Display, recorded: &dyn Display, found: &dyn Display, otherwise: Verdict) -> Self {
        let (recorded, found) = (recorded.to_string(), found.to_string());
        let verdict = if recorded == found { Verdict::Agrees } else { otherwise };
        Self { what: what.to_string(), verdict, recorded, found }
    }
}

/// What of another server is as it was where an answer was computed. Another version of the program, or another config.json
/// with the same weights, may well compute the same; another base or other numerics are another computation.
#[must_use]
pub fn compare_origins(recorded: &Origin, here: &Origin) -> Vec<Finding> {
    vec![
        Finding::new("program", &recorded.program, &here.program, Verdict::Warning),
        Finding::new("base", &recorded.base_sha256, &here.base_sha256, Verdict::NotHere),
        Finding::new("config.json", &recorded.config_sha256, &here.config_sha256, Verdict::Warning),
        Finding::new("numerics", &recorded.numerics, &here.numerics, Verdict::NotHere),
    ]
}

impl Receipt {
    /// What another answer has in common with this one, apart from where it was computed.
    #[must_use]
    pub fn compare_answer(&self, answer: &Self) -> Vec<Finding> {
        let mut findings = vec![
            Finding::new("adapter", &self.with(), &answer.with(), Verdict::NotHere),
            Finding::new("request", &self.request(self), &answer.request(self), Verdict::Differs),
        ];
        if self.prompt_logprobs_sha256.is_some() || answer.prompt_logprobs_sha256.is_some() {
            let digest = |receipt: &Self| receipt.prompt_logprobs_sha256.map_or("none".to_owned(), |d| d.to_string());
            findings.push(Finding::new("prompt log-probs", &digest(self), &digest(answer), Verdict::Differs));
        }
        findings.push(Finding::new("choices", &self.choices.len(), &answer.choices.len(), Verdict::Differs));
        for (index, (recorded, found)) in self.choices.iter().zip(&answer.choices).enumerate() {
            findings.extend(recorded.compare(found, index));
        }
        findings
    }

    /// What it was computed with, and from where on.
    fn with(&self) -> String {
        match self.active_from {
            None | Some(0) => self.delta.to_string(),
            Some(from) => format!("{} from token {from} on", self.delta),
        }
    }

    /// What was asked for, in a few words; in full where it is not what `other` says.
    fn request(&self, other: &Self) -> String {
        let Self { prompt_token_ids, sampling, stopping, .. } = self;
        if (prompt_token_ids, sampling, stopping) != (&other.prompt_token_ids, &other.sampling, &other.stopping) {
            return serde_json::json!([prompt_token_ids, sampling, stopping]).to_string();
        }
        let (tokens, most) = (prompt_token_ids.len(), stopping.max_tokens);
        match sampling.temperature > 0.0 {
            true => format!("{tokens} prompt tokens, at most {most} more, sampled with seed {}", sampling.seed),
            false => format!("{tokens} prompt tokens, at most {most} more, greedy"),
        }
    }
}

impl ChoiceRecord {
    fn compare(&self, found: &Self, index: usize) -> [Finding; 3] {
        let what = |part: &str| format!("choice {index} {part}");
        let (own, other) = (Tokens { own: self, other: found }, Tokens { own: found, other: self });
        [
            Finding::new(what("tokens"), &own, &other, Verdict::Differs),
            Finding::new(what("finish"), &self.finish(), &found.finish(), Verdict::Differs),
            Finding::new(what("log-probs"), &self.logprobs_sha256, &found.logprobs_sha256, Verdict::Differs),
        ]
    }

    fn finish(&self) -> String {
        match (self.finish_reason, &self.stop_match) {
            (FinishRecord::Length, _) => "length".to_owned(),
            (FinishRecord::Stop, None) => "stop".to_owned(),
            (FinishRecord::Stop, Some(StopRecord::Text(text))) => format!("stop at {text:?}"),
            (FinishRecord::Stop, Some(StopRecord::TokenId(id))) => format!("stop at token {id}"),
        }
    }
}

/// Tokens of a choice: how many, and the first that another choice does not have.
struct Tokens<'a> {
    own: &'a ChoiceRecord,
    other: &'a ChoiceRecord,
}

impl Display for Tokens<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (own, other) = (&self.own.token_ids, &self.other.token_ids);
        write!(f, "{}", own.len())?;
        let same = own.iter().zip(other).take_while(|(own, other)| own == other).count();
        match own.get(same) {
            Some(id) if own != other => write!(f, ", number {same} is {id}"),
            _ => Ok(()),
        }
    }
}

impl Display for DeltaRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Base => f.write_str("none"),
            Self::Adapter { name, version } => write!(f, "{name} {version}"),
            Self::Mix { version, parts } => write!(f, "a mix of {} {version}", parts.len()),
            Self::Inline { version } => write!(f, "brought {version}"),
        }
    }
}
