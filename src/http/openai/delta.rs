//! Which model a request is for: the base, an adapter by its name or as `base:adapter`, or a mix. A name that nobody has is
//! never the base.

use serde::Deserialize;

use super::super::fields::Fields;
use super::super::refused::Refused;
use super::super::site::Site;
use crate::adapters::AdapterError;
use crate::admission::{AdapterChoice, DeltaChoice, PartChoice};
use crate::types::AdapterName;

/// Characters of a name that an error shows.
const MAX_SHOWN: usize = 256;

/// What a request is computed with.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Model {
    /// As the client called it, or the base.
    pub(super) name: String,
    pub(super) delta: DeltaChoice,
}

/// A part of a mix.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Part {
    adapter: String,
    weight: f32,
    adapter_version: Option<String>,
}

/// Take `model`, and the fields that say it more precisely.
pub(super) fn take(fields: &mut Fields, site: &Site) -> Result<Model, Refused> {
    let model = fields.take::<String>("model")?.filter(|model| !model.is_empty());
    let named = model.as_deref().map_or(Ok(None), |model| of_model(model, site))?;
    let adapter = fields.take::<String>("adapter")?.map(|adapter| adapter_name("adapter", &adapter)).transpose()?;
    let version = fields.take::<String>("adapter_version")?;
    let mix: Vec<Part> = fields.or_default("mix")?;
    let name = model.unwrap_or_else(|| site.base.clone());
    if !mix.is_empty() {
        if named.is_some() || adapter.is_some() || version.is_some() {
            return Err(Refused::Together { field: "mix", other: "another adapter" });
        }
        return Ok(Model { name, delta: DeltaChoice::Mix(mix.into_iter().map(part).collect::<Result<_, _>>()?) });
    }
    let adapter = match (named, adapter) {
        (Some(named), Some(adapter)) if named != adapter => {
            return Err(Refused::Together { field: "adapter", other: "a model that is another adapter" });
        }
        (named, adapter) => adapter.or(named),
    };
    let delta = match (adapter, version) {
        (Some(name), version) => DeltaChoice::Adapter(choice(name, "adapter_version", version.as_deref())?),
        (None, None) => DeltaChoice::Base,
        (None, Some(_)) => return Err(Refused::field("adapter_version", "it is set and no adapter is named")),
    };
    Ok(Model { name, delta })
}

/// The adapter that `model` names; `None`: the base.
pub(super) fn of_model(model: &str, site: &Site) -> Result<Option<AdapterName>, Refused> {
    if let Some(adapter) = adapter_of(model, site) {
        return Ok(Some(adapter));
    }
    if model == site.base {
        return Ok(None);
    }
    let behind = model.strip_prefix(site.base.as_str()).and_then(|rest| rest.strip_prefix(':'));
    let adapter = behind.and_then(|name| adapter_of(name, site));
    adapter.map(Some).ok_or_else(|| Refused::NoModel { model: model.chars().take(MAX_SHOWN).collect() })
}

/// An adapter of this name, also one that cannot be read now: it is not somebody else's name then.
fn adapter_of(name: &str, site: &Site) -> Option<AdapterName> {
    let name = name.parse::<AdapterName>().ok()?;
    match site.registry.get(&name) {
        Err(AdapterError::NotFound { .. }) => None,
        _ => Some(name),
    }
}

fn part(Part { adapter, weight, adapter_version }: Part) -> Result<PartChoice, Refused> {
    let name = adapter_name("mix.adapter", &adapter)?;
    Ok(PartChoice { adapter: choice(name, "mix.adapter_version", adapter_version.as_deref())?, weight })
}

fn adapter_name(field: &'static str, name: &str) -> Result<AdapterName, Refused> {
    name.parse().map_err(|error| Refused::field(field, error))
}

fn choice(name: AdapterName, field: &'static str, version: Option<&str>) -> Result<AdapterChoice, Refused> {
    let version = version.map(str::parse).transpose().map_err(|error| Refused::field(field, error))?;
    Ok(AdapterChoice { name, version })
}
