//! Rotary embeddings as `config.json` spells them, read as transformers 5 reads them.
//!
//! v4 writes `rope_theta` and `rope_scaling`, v5 `rope_parameters`, flat or (Gemma 3) by layer type. Where both dicts
//! are there, `rope_scaling` counts and the other does not exist. A spelling that transformers takes and then ignores
//! is refused: whoever wrote it meant something.

use serde_json::{Map, Value};

use super::ModelError;
use super::config::Fields;
use super::spec::{DecoderSpec, Family, RopeScaling, RopeSpec};

/// What a family without a value of its own rotates by.
const DEFAULT_THETA: f64 = 10_000.0;
/// Mixtral.
const MIXTRAL_THETA: f64 = 1_000_000.0;
/// Gemma 3's layers without a window.
const GEMMA3_GLOBAL_THETA: f64 = 1_000_000.0;
/// Phi-3's `original_max_position_embeddings`, which always counts there, written or not.
const PHI3_ORIGINAL_CONTEXT: usize = 4096;

/// Keys of a dict by layer type.
const FULL: &str = "full_attention";
const SLIDING: &str = "sliding_attention";

/// The one rotary embedding of all families but Gemma 3.
pub(super) fn flat_rope(fields: &Fields<'_>, spec: &DecoderSpec) -> Result<RopeSpec, ModelError> {
    let empty = Map::new();
    let (parameters, path) = parameters(fields, &empty)?;
    let parameters = Fields::new(parameters, path);
    if let Some(key) = parameters.keys().find(|key| parameters.is_object(key)) {
        return Err(parameters.unsupported(key, "; this family has no rotary embeddings by layer type"));
    }
    let default = if spec.family == Family::Mixtral { MIXTRAL_THETA } else { DEFAULT_THETA };
    let theta = theta(&parameters, fields, "rope_theta", default)?;
    Reader { fields, parameters, spec, original: Original::TopLevelFirst }.rope(theta)
}

/// `rope_scaling` where it is written and not empty, else `rope_parameters`.
fn parameters<'a>(
    fields: &Fields<'a>,
    empty: &'a Map<String, Value>,
) -> Result<(&'a Map<String, Value>, &'static str), ModelError> {
    match fields.object("rope_scaling")?.filter(|scaling| !scaling.is_empty()) {
        Some(scaling) => Ok((scaling, "rope_scaling")),
        None => Ok((fields.object("rope_parameters")?.unwrap_or(empty), "rope_parameters")),
    }
}

/// Gemma 3's two: of layers without and with a window, in this order. `rope_scaling` is laid over the former.
pub(super) fn gemma3_ropes(fields: &Fields<'_>, spec: &DecoderSpec) -> Result<Vec<RopeSpec>, ModelError> {
    let empty = Map::new();
    let by_type = Fields::new(fields.object("rope_parameters")?.unwrap_or(&empty), "rope_parameters");
    if let Some(key) = by_type.keys().find(|key| by_type.get(key).is_some() && !by_type.is_object(key)) {
        return Err(by_type.unsupported(key, "; Gemma 3 has its rotary embeddings by layer type, one object for each"));
    }
    let mut full = by_type.object(FULL)?.cloned().unwrap_or_default();
    if let Some(scaling) = fields.object("rope_scaling")? {
        check_gemma3_scaling(&Fields::new(scaling, "rope_scaling"))?;
        full.extend(scaling.iter().map(|(key, value)| (key.clone(), value.clone())));
    }
    let read = |parameters: &Map<String, Value>, path, field, default| {
        let parameters = Fields::new(parameters, path);
        let theta = theta(&parameters, fields, field, default)?;
        Reader { fields, parameters, spec, original: Original::OwnOnly }.rope(theta)
    };
    let sliding = by_type.object(SLIDING)?.unwrap_or(&empty);
    Ok(vec![
        read(&full, "rope_parameters.full_attention", "rope_theta", GEMMA3_GLOBAL_THETA)?,
        read(sliding, "rope_parameters.sliding_attention", "rope_local_base_freq", DEFAULT_THETA)?,
    ])
}

/// transformers lays `rope_scaling` over a dict whose `rope_type` is set already, so that an older `type` says nothing.
fn check_gemma3_scaling(scaling: &Fields<'_>) -> Result<(), ModelError> {
    let typed = scaling.get("rope_type").is_some();
    let counts = |key: &str| typed || key == "rope_theta" || scaling.get(key).is_none_or(|value| value == "default");
    if let Some(key) = scaling.keys().find(|key| !counts(key)) {
        return Err(scaling.unsupported(key, "; in Gemma 3 `rope_scaling` counts only with a `rope_type`"));
    }
    match scaling.keys().find(|key| scaling.is_object(key)) {
        Some(key) => Err(scaling.unsupported(key, "; rotary embeddings by layer type belong into `rope_parameters`")),
        None => Ok(()),
    }
}

fn theta(parameters: &Fields<'_>, fields: &Fields<'_>, field: &str, default: f64) -> Result<f64, ModelError> {
    let (theta, at, name) = if parameters.has("rope_theta") {
        (parameters.f64("rope_theta")?, parameters, "rope_theta")
    } else if fields.has(field) {
        (fields.f64(field)?, fields, field)
    } else {
        (Some(default), fields, field)
    };
    let fits = |theta: &f64| *theta > 0.0 && (*theta as f32).is_finite();
    theta.filter(fits).ok_or_else(|| at.bad(name, "a number above 0"))
}

/// Where `original_max_position_embeddings` comes from.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Original {
    /// The field beside the dict goes before the one in it.
    TopLevelFirst,
    /// A dict by layer type has its own.
    OwnOnly,
}

struct Reader<'a> {
    fields: &'a Fields<'a>,
    parameters: Fields<'a>,
    spec: &'a DecoderSpec,
    original: Original,
}

impl Reader<'_> {
    fn rope(&self, theta: f64) -> Result<RopeSpec, ModelError> {
        let kind = self.kind()?;
        let partial = self.partial()?;
        let head_dim = self.spec.head_dim;
        let whole = RopeSpec { theta, rotary_dim: head_dim, scaling: RopeScaling::Default };
        if !head_dim.is_multiple_of(2) {
            return Err(self.fields.bad("head_dim", "an even number"));
        }
        let rotary_dim = match (self.spec.family, kind) {
            (Family::Phi3, _) => (head_dim as f64 * partial) as usize,
            // Everybody else's unscaled rotation does not look at the fraction.
            (_, "default") => return Ok(whole),
            (_, "proportional") => head_dim,
            _ if partial == 1.0 => head_dim,
            _ => return Err(self.bad_partial("1 in this family")),
        };
        if rotary_dim == 0 || !rotary_dim.is_multiple_of(2) || rotary_dim > head_dim {
            return Err(self.bad_partial("a fraction that rotates an even number of head columns"));
        }
        let scaling = match (self.spec.family, kind) {
            (_, "default") => RopeScaling::Default,
            // Older files of the family call it so.
            (Family::Phi3, "longrope" | "su" | "yarn") => self.longrope(rotary_dim)?,
            (Family::Phi3, _) => return Err(self.unsupported_kind("; served for Phi-3: default, longrope")),
            (_, "linear") => RopeScaling::Linear { factor: self.required("factor")? },
            (_, "dynamic") => self.dynamic()?,
            (_, "yarn") => self.yarn()?,
            (_, "llama3") => self.llama3()?,
            (_, "longrope") => self.longrope(rotary_dim)?,
            (_, "proportional") => self.proportional(partial)?,
            _ => {
                let served = "; served: default, linear, dynamic, yarn, llama3, longrope, proportional";
                return Err(self.unsupported_kind(served));
            }
        };
        Ok(RopeSpec { rotary_dim, scaling, ..whole })
    }

    fn kind_field(&self) -> &'static str {
        if self.parameters.has("rope_type") || !self.parameters.has("type") { "rope_type" } else { "type" }
    }

    fn kind(&self) -> Result<&str, ModelError> {
        let field = self.kind_field();
        match self.parameters.str(field)? {
            Some(kind) => Ok(kind),
            None if self.parameters.has(field) => Err(self.parameters.bad(field, "a kind of rotary embedding")),
            None => Ok("default"),
        }
    }

    fn unsupported_kind(&self, hint: &'static str) -> ModelError {
        self.parameters.unsupported(self.kind_field(), hint)
    }

    fn partial(&self) -> Result<f64, ModelError> {
        match self.parameters.f64("partial_rotary_factor")? {
            Some(partial) => Ok(partial),
            None => self.fields.f64_or("partial_rotary_factor", 1.0),
        }
    }

    fn bad_partial(&self, expected: &'static str) -> ModelError {
        let own = self.parameters.has("partial_rotary_factor");
        if own { &self.parameters } else { self.fields }.bad("partial_rotary_factor", expected)
    }

    fn required(&self, name: &str) -> Result<f64, ModelError> {
        let found = self.parameters.f64(name)?;
        found.filter(|number| *number > 0.0).ok_or_else(|| self.parameters.bad(name, "a number above 0"))
    }

    fn original_context(&self) -> Result<usize, ModelError> {
        const FIELD: &str = "original_max_position_embeddings";
        if self.original == Original::TopLevelFirst && self.fields.has(FIELD) {
            return self.fields.positive(FIELD);
        }
        if self.spec.family == Family::Phi3 {
            return Ok(PHI3_ORIGINAL_CONTEXT);
        }
        if self.parameters.has(FIELD) { self.parameters.positive(FIELD) } else { Ok(self.spec.context_length) }
    }

    /// Within the model's own context, which is all that is served, it rotates as if it were not there.
    fn dynamic(&self) -> Result<RopeScaling, ModelError> {
        match self.parameters.f64("factor")? {
            Some(_) if self.spec.head_dim > 2 => Ok(RopeScaling::Default),
            Some(_) => Err(self.fields.bad("head_dim", "more than 2 for dynamic rotary embeddings")),
            None => Err(self.parameters.bad("factor", "a number")),
        }
    }

    fn llama3(&self) -> Result<RopeScaling, ModelError> {
        Ok(RopeScaling::Llama3 {
            factor: self.required("factor")?,
            low_freq_factor: self.required("low_freq_factor")?,
            high_freq_factor: self.required("high_freq_factor")?,
            original_context: self.original_context()? as f64,
        })
    }

    fn proportional(&self, partial: f64) -> Result<RopeScaling, ModelError> {
        let factor = if self.parameters.has("factor") { self.required("factor")? } else { 1.0 };
        let rotated = (partial * self.spec.head_dim as f64 / 2.0).floor();
        if !(0.0..=self.spec.head_dim as f64 / 2.0).contains(&rotated) {
            return Err(self.bad_partial("from 0 to 1"));
        }
        Ok(RopeScaling::Proportional { factor, rotated: rotated as usize })
    }

    /// How far the context is stretched: `factor`, or where that is null or (longrope) absent, what the lengths say.
    fn stretch(&self, original: usize) -> Result<f64, ModelError> {
        match self.parameters.get("factor") {
            Some(_) => self.required("factor"),
            None => Ok(self.spec.context_length as f64 / original as f64),
        }
    }

    fn attention_factor(&self, inferred: f64) -> Result<f64, ModelError> {
        let factor = self.parameters.f64("attention_factor")?.unwrap_or(inferred);
        let fits = (factor as f32).is_finite() && factor >= 0.0;
        if fits { Ok(factor) } else { Err(self.parameters.bad("attention_factor", "a number of at least 0")) }
    }

    fn yarn(&self) -> Result<RopeScaling, ModelError> {
        let original_context = self.original_context()?;
        if !self.parameters.has("factor") {
            return Err(self.parameters.bad("factor", "a number above 0, or null"));
        }
        let factor = self.stretch(original_context)?;
        // Neither null nor 0 counts as written.
        let optional = |name| Ok::<_, ModelError>(self.parameters.f64(name)?.filter(|number| *number != 0.0));
        let mscale = |scale: f64| if factor <= 1.0 { 1.0 } else { 0.1 * scale * factor.ln() + 1.0 };
        let inferred = match (optional("mscale")?, optional("mscale_all_dim")?) {
            (Some(some), Some(all)) => mscale(some) / mscale(all),
            _ => mscale(1.0),
        };
        let beta = |name, default| Ok::<_, ModelError>(optional(name)?.unwrap_or(default));
        let (beta_fast, beta_slow) = (beta("beta_fast", 32.0)?, beta("beta_slow", 1.0)?);
        for (name, turns) in [("beta_fast", beta_fast), ("beta_slow", beta_slow)] {
            if turns <= 0.0 {
                return Err(self.parameters.bad(name, "a number above 0"));
            }
        }
        Ok(RopeScaling::Yarn {
            factor,
            beta_fast,
            beta_slow,
            truncate: self.truncate()?,
            attention_factor: self.attention_factor(inferred)?,
            original_context,
        })
    }

    fn truncate(&self) -> Result<bool, ModelError> {
        if !self.parameters.has("truncate") {
            return Ok(true);
        }
        let truncate = self.parameters.bool_or("truncate", false)?;
        if self.original == Original::OwnOnly && !truncate {
            return Err(self.parameters.unsupported("truncate", "; by layer type it has no effect in transformers"));
        }
        Ok(truncate)
    }

    fn longrope(&self, rotary_dim: usize) -> Result<RopeScaling, ModelError> {
        let list = |name| {
            let factors = self.parameters.f64_list(name)?;
            let fit = factors.len() == rotary_dim / 2 && factors.iter().all(|factor| *factor as f32 > 0.0);
            let expected = "one number above 0 for every pair of rotating columns";
            if fit { Ok(factors) } else { Err(self.parameters.bad(name, expected)) }
        };
        let original_context = self.original_context()?;
        let stretch = self.stretch(original_context)?;
        let inferred = match stretch {
            _ if stretch <= 1.0 => 1.0,
            _ if original_context == 1 => return Err(self.parameters.bad("attention_factor", "a number")),
            _ => (1.0 + stretch.ln() / (original_context as f64).ln()).sqrt(),
        };
        Ok(RopeScaling::LongRope {
            short_factor: list("short_factor")?,
            long_factor: list("long_factor")?,
            attention_factor: self.attention_factor(inferred)?,
            original_context,
        })
    }
}
