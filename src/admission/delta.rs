//! What a request is computed with: the base, an adapter, a mix of several, or an adapter that it brings.

use std::sync::Arc;

use super::background::{Lost, off_reactor};
use super::error::AdmissionError;
use super::validate::InvalidRequest;
use crate::adapters::{
    AdapterBytes, AdapterError, AdapterLease, AdapterRegistry, OwnChatTemplate, OwnTokensFile, ResolvedAdapter,
    ResolvedMix, ResolvedPart, Want,
};
use crate::delta::{OF_ACTIVATED, OF_OTHER_TOKENS, refused_in_mix};
use crate::types::{AdapterName, AdapterVersion, ClientKey, MAX_ADDED_TOKENS};

/// Least parts of a mix: one adapter with a weight is asked for as two, one of them with the weight 0.
pub const MIN_MIX_PARTS: usize = 2;

/// Most parts of a mix: each is read and compiled for it.
pub const MAX_MIX_PARTS: usize = 8;

/// An adapter that a request names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdapterChoice {
    /// Its name.
    pub name: AdapterName,
    /// The version the name must stand for.
    pub version: Option<AdapterVersion>,
}

/// A part of a mix that a request asks for.
#[derive(Clone, Debug, PartialEq)]
pub struct PartChoice {
    /// Which adapter.
    pub adapter: AdapterChoice,
    /// How much of it.
    pub weight: f32,
}

/// What a request asks to be computed with.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum DeltaChoice {
    /// The base.
    #[default]
    Base,
    /// One adapter.
    Adapter(AdapterChoice),
    /// Σ weight · adapter.
    Mix(Vec<PartChoice>),
    /// One that the request brings.
    Sent(Arc<AdapterBytes>),
}

/// A part of a mix that serves a request.
#[derive(Clone, Debug, PartialEq)]
pub struct ServingPart {
    /// The name asked for.
    pub name: AdapterName,
    /// What it stood for.
    pub version: AdapterVersion,
    /// How much of it.
    pub weight: f32,
}

/// What serves a request.
#[derive(Clone, Debug, PartialEq)]
pub enum ServingDelta {
    /// The base.
    Base,
    /// One adapter.
    Adapter {
        /// The name asked for.
        name: AdapterName,
        /// What it stood for.
        version: AdapterVersion,
    },
    /// A mix.
    Mix {
        /// Digest of parts and weights.
        version: AdapterVersion,
        /// As they were asked for.
        parts: Vec<ServingPart>,
    },
    /// What the request brought.
    Sent {
        /// Digest of its files.
        version: AdapterVersion,
    },
}

impl ServingDelta {
    /// What metrics call it. A mix has no name of its own, nor has what a request brings.
    pub(super) fn label(&self) -> Option<&str> {
        match self {
            Self::Base => None,
            Self::Adapter { name, .. } => Some(name.as_str()),
            Self::Mix { .. } => Some("mix"),
            Self::Sent { .. } => Some("inline"),
        }
    }
}

/// A choice resolved to versions, which are kept while this lives.
#[derive(Clone)]
pub(super) enum ResolvedDelta {
    Base,
    Adapter(ResolvedAdapter),
    Mix(ResolvedMix),
    Sent(AdapterLease),
}

impl DeltaChoice {
    /// What its names stand for now, or what the request brings, of at most so many bytes.
    pub(super) async fn resolve(
        &self,
        registry: &Arc<AdapterRegistry>,
        max_sent_bytes: u64,
    ) -> Result<ResolvedDelta, AdmissionError> {
        match self {
            Self::Base => Ok(ResolvedDelta::Base),
            Self::Adapter(AdapterChoice { name, version }) => {
                Ok(ResolvedDelta::Adapter(registry.resolve(name, *version)?))
            }
            Self::Mix(parts) => {
                check_parts(parts)?;
                let named = parts.iter().map(|part| (&part.adapter.name, part.adapter.version, part.weight));
                let mix = registry.resolve_mix(named)?;
                mix.parts.iter().try_for_each(check_linear)?;
                Ok(ResolvedDelta::Mix(mix))
            }
            Self::Sent(files) => {
                check_sent(files, max_sent_bytes)?;
                let (registry, files) = (Arc::clone(registry), Arc::clone(files));
                let lease = off_reactor(move || registry.lease_sent(files)).await;
                lease.map(ResolvedDelta::Sent).map_err(|Lost| AdmissionError::DigestLost)
            }
        }
    }
}

fn check_sent(files: &AdapterBytes, max: u64) -> Result<(), AdmissionError> {
    if max == 0 {
        return Err(AdmissionError::NoSentAdapters);
    }
    let empty = [("inline_adapter.config", &files.config), ("inline_adapter.weights", &files.weights)];
    if let Some((field, _)) = empty.into_iter().find(|(_, file)| file.is_empty()) {
        return Err(InvalidRequest::Empty { field: field.to_owned() }.into());
    }
    match files.bytes() {
        bytes if bytes > max => Err(InvalidRequest::TooLong { field: "inline_adapter".to_owned(), bytes, max }.into()),
        _ => Ok(()),
    }
}

fn check_parts(parts: &[PartChoice]) -> Result<(), InvalidRequest> {
    let count = parts.len();
    if !(MIN_MIX_PARTS..=MAX_MIX_PARTS).contains(&count) {
        return Err(InvalidRequest::MixParts { count, min: MIN_MIX_PARTS, max: MAX_MIX_PARTS });
    }
    match parts.iter().find(|part| !part.weight.is_finite()) {
        Some(part) => Err(InvalidRequest::NotFinite { field: "mix.weight", value: part.weight }),
        None => Ok(()),
    }
}

/// Where it is not known yet what a part compiled to, loading tells.
fn check_linear(part: &ResolvedPart) -> Result<(), AdmissionError> {
    let mut refused = part.facts.iter().flat_map(|facts| {
        let activated = (!facts.invocation_tokens.is_empty()).then_some(OF_ACTIVATED);
        let whole = activated.or(facts.vocab_size.map(|_| OF_OTHER_TOKENS));
        let reason = move |class| whole.or(refused_in_mix(class));
        facts.ops.keys().filter_map(move |class| Some((*class, reason(*class)?)))
    });
    match refused.next() {
        Some((class, reason)) => Err(AdmissionError::NotLinear { name: part.adapter.name.clone(), class, reason }),
        None => Ok(()),
    }
}

impl ResolvedDelta {
    pub(super) fn version(&self) -> Option<AdapterVersion> {
        match self {
            Self::Base => None,
            Self::Adapter(adapter) => Some(adapter.lease.version()),
            Self::Mix(mix) => Some(mix.lease.version()),
            Self::Sent(lease) => Some(lease.version()),
        }
    }

    /// The adapters in it that have a name.
    pub(super) fn adapters(&self) -> Vec<&ResolvedAdapter> {
        match self {
            Self::Base | Self::Sent(_) => Vec::new(),
            Self::Adapter(adapter) => vec![adapter],
            Self::Mix(mix) => mix.parts.iter().map(|part| &part.adapter).collect(),
        }
    }

    pub(super) fn serving(&self) -> ServingDelta {
        let part = |part: &ResolvedPart| ServingPart {
            name: part.adapter.name.clone(),
            version: part.adapter.lease.version(),
            weight: part.weight,
        };
        match self {
            Self::Base => ServingDelta::Base,
            Self::Adapter(adapter) => {
                ServingDelta::Adapter { name: adapter.name.clone(), version: adapter.lease.version() }
            }
            Self::Mix(mix) => {
                ServingDelta::Mix { version: mix.lease.version(), parts: mix.parts.iter().map(part).collect() }
            }
            Self::Sent(lease) => ServingDelta::Sent { version: lease.version() },
        }
    }

    /// The adapter's own chat template; of a mix, the one that all parts bring. Where they bring different ones nothing
    /// says which is meant.
    pub(super) fn chat_template(&self) -> Result<Option<(&ResolvedAdapter, OwnChatTemplate)>, AdmissionError> {
        let adapters = self.adapters();
        let Some((first, others)) = adapters.split_first() else { return Ok(None) };
        match others.iter().find(|other| other.chat_template != first.chat_template) {
            Some(other) => Err(AdmissionError::ChatTemplates { one: first.name.clone(), other: other.name.clone() }),
            None => Ok(first.chat_template.map(|own| (*first, own))),
        }
    }

    /// The adapter's own tokens; of a mix, those that every part brings that brings any. Texts without them are read by all
    /// parts as the base reads them.
    pub(super) fn tokens(&self) -> Result<Option<(&ResolvedAdapter, OwnTokensFile)>, AdmissionError> {
        let mut bring = self.adapters().into_iter().filter_map(|adapter| Some((adapter, adapter.tokens?)));
        let Some((first, tokens)) = bring.next() else { return Ok(None) };
        match bring.find(|(_, others)| *others != tokens) {
            Some((other, _)) => {
                Err(AdmissionError::OwnTokensDiffer { one: first.name.clone(), other: other.name.clone() })
            }
            None => Ok(Some((first, tokens))),
        }
    }

    /// Tokens of its vocabulary where the base, of `base` tokens, has another number of them; the most that there may be where that
    /// shows once it is loaded. A mix has the base's.
    pub(super) fn vocab_size(&self, base: u32) -> Option<u32> {
        match self {
            Self::Adapter(adapter) if adapter.task.is_none() => Some(base.saturating_add(MAX_ADDED_TOKENS as u32)),
            Self::Adapter(adapter) => adapter.vocab_size,
            Self::Base | Self::Mix(_) | Self::Sent(_) => None,
        }
    }

    /// Ask for it on the device; `None` for the base, which is there.
    pub(super) fn want(self, registry: &AdapterRegistry, client: ClientKey) -> Result<Option<Want>, AdapterError> {
        match self {
            Self::Base => Ok(None),
            Self::Adapter(adapter) => registry.want_resolved(adapter, client).map(Some),
            Self::Mix(mix) => registry.want_mix(mix, client).map(Some),
            Self::Sent(lease) => registry.want_sent(lease, client).map(Some),
        }
    }
}
