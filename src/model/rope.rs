//! Rotary tables from a [`RopeSpec`]. Numbers are rounded to f32 where transformers rounds them: exponents, inverse
//! frequencies and every step between, then angles, cos and sin.

use std::f64::consts::PI;

use super::spec::{RopeScaling, RopeSpec};
use crate::ops::RopeTable;
use crate::types::LongRope;

/// Tables for positions `0..context`. In a model with two sets of frequencies (`long`, [`DecoderSpec::long_rope`]) that
/// is longer than the original context, the long ones for `0..context` follow the short ones for the original context,
/// in all its tables.
///
/// [`DecoderSpec::long_rope`]: super::DecoderSpec::long_rope
#[must_use]
pub fn rope_table(spec: &RopeSpec, context: usize, long: Option<LongRope>) -> RopeTable {
    let mut table = RopeTable { rotary_dim: spec.rotary_dim, cos: Vec::new(), sin: Vec::new() };
    match long.map(|long| long.original_context as usize) {
        Some(original) if original < context => {
            append(&mut table, spec, false, original);
            append(&mut table, spec, true, context);
        }
        _ => append(&mut table, spec, false, context),
    }
    table
}

fn append(table: &mut RopeTable, spec: &RopeSpec, long: bool, positions: usize) {
    let frequencies = inverse_frequencies(spec, long);
    let scale = attention_factor(spec) as f32;
    table.cos.reserve(positions * frequencies.len());
    table.sin.reserve(positions * frequencies.len());
    for position in 0..positions {
        for frequency in &frequencies {
            let angle = f64::from(position as f32 * frequency);
            table.cos.push(angle.cos() as f32 * scale);
            table.sin.push(angle.sin() as f32 * scale);
        }
    }
}

fn attention_factor(spec: &RopeSpec) -> f64 {
    match &spec.scaling {
        RopeScaling::Yarn { attention_factor, .. } | RopeScaling::LongRope { attention_factor, .. } => {
            *attention_factor
        }
        _ => 1.0,
    }
}

/// Angle per position of each pair of columns, `[rotary_dim / 2]`; `long` chooses between longrope's two.
#[must_use]
pub(super) fn inverse_frequencies(spec: &RopeSpec, long: bool) -> Vec<f32> {
    let dim = spec.rotary_dim;
    // theta ^ (2i / dim), the period of pair i over 2 pi.
    let periods = (0..dim / 2).map(|pair| {
        let exponent = (2 * pair) as f32 / dim as f32;
        f64::from(spec.theta as f32).powf(f64::from(exponent)) as f32
    });
    match &spec.scaling {
        RopeScaling::Default => periods.map(f32::recip).collect(),
        RopeScaling::Linear { factor } => periods.map(|period| period.recip() / *factor as f32).collect(),
        RopeScaling::Proportional { factor, rotated } => {
            let turning = periods.take(*rotated).map(|period| period.recip() / *factor as f32);
            turning.chain(std::iter::repeat_n(0.0, dim / 2 - rotated)).collect()
        }
        RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_context } => periods
            .map(|period| llama3(period.recip(), *factor, *low_freq_factor, *high_freq_factor, *original_context))
            .collect(),
        RopeScaling::Yarn { factor, beta_fast, beta_slow, truncate, original_context, .. } => {
            let column = |turns: f64| correction_column(turns, dim, spec.theta, *original_context as f64);
            let ends = ramp_ends(column(*beta_fast), column(*beta_slow), *truncate, dim);
            periods.enumerate().map(|(pair, period)| yarn(period, *factor as f32, ramp(pair, ends))).collect()
        }
        RopeScaling::Divided { divisors } => {
            periods.zip(divisors).map(|(period, divisor)| period.recip() / divisor).collect()
        }
        RopeScaling::LongRope { short_factor, long_factor, .. } => {
            let factors = if long { long_factor } else { short_factor };
            periods.zip(factors).map(|(period, factor)| (*factor as f32 * period).recip()).collect()
        }
    }
}

/// Llama 3.1's ramp between kept and divided frequencies (as published with its weights).
fn llama3(frequency: f32, factor: f64, low: f64, high: f64, original: f64) -> f32 {
    let wavelength = frequency.recip() * (2.0 * PI) as f32;
    if wavelength > (original / low) as f32 {
        return frequency / factor as f32;
    }
    if wavelength < (original / high) as f32 {
        return frequency;
    }
    let smooth = (wavelength.recip() * original as f32 - low as f32) / (high - low) as f32;
    (1.0 - smooth) * frequency / factor as f32 + smooth * frequency
}

/// The column, not yet whole, whose frequency turns `turns` times within the original context.
fn correction_column(turns: f64, dim: usize, theta: f64, original: f64) -> f64 {
    (dim as f64 * (original / (turns * 2.0 * PI)).ln()) / (2.0 * theta.ln())
}

/// First and last column of YaRN's ramp.
fn ramp_ends(low: f64, high: f64, truncate: bool, dim: usize) -> (f64, f64) {
    let (low, high) = if truncate { (low.floor(), high.ceil()) } else { (low, high) };
    let (low, high) = (low.max(0.0), high.min(dim as f64 - 1.0));
    // As in the paper's code: no division by 0.
    if low == high { (low, high + 0.001) } else { (low, high) }
}

fn ramp(pair: usize, (low, high): (f64, f64)) -> f32 {
    ((pair as f32 - low as f32) / (high - low) as f32).clamp(0.0, 1.0)
}

fn yarn(period: f32, factor: f32, ramp: f32) -> f32 {
    let (kept, divided) = (period.recip(), (factor * period).recip());
    let keep = 1.0 - ramp;
    divided * (1.0 - keep) + kept * keep
}
