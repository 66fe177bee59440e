//! Rotary tables from a [`RopeSpec`]. Frequencies are computed in f64 and rounded where transformers rounds them: the
//! inverse frequencies to f32, then angles, cos and sin in f32.

use super::spec::{RopeScaling, RopeSpec};
use crate::ops::RopeTable;

/// Tables for positions `0..context`.
#[must_use]
pub fn rope_table(spec: &RopeSpec, context: usize) -> RopeTable {
    let (frequencies, attention_factor) = frequencies(spec, context);
    let mut cos = Vec::with_capacity(context * frequencies.len());
    let mut sin = Vec::with_capacity(context * frequencies.len());
    for position in 0..context {
        for frequency in &frequencies {
            let angle = f64::from(position as f32 * frequency);
            cos.push((angle.cos() * attention_factor) as f32);
            sin.push((angle.sin() * attention_factor) as f32);
        }
    }
    RopeTable { rotary_dim: spec.rotary_dim, cos, sin }
}

fn frequencies(spec: &RopeSpec, context: usize) -> (Vec<f32>, f64) {
    let half = spec.rotary_dim / 2;
    let base = (0..half).map(|i| spec.theta.powf(-((2 * i) as f64) / spec.rotary_dim as f64));
    let rounded = |frequencies: Vec<f64>| frequencies.into_iter().map(|f| f as f32).collect();
    match &spec.scaling {
        RopeScaling::Default => (rounded(base.collect()), 1.0),
        RopeScaling::Linear { factor } => (rounded(base.map(|f| f / factor).collect()), 1.0),
        RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_context } => {
            let stretched = base.map(|f| llama3(f, *factor, *low_freq_factor, *high_freq_factor, *original_context));
            (rounded(stretched.collect()), 1.0)
        }
        RopeScaling::LongRope { short_factor, long_factor, attention_factor, original_context } => {
            let factors = if context > *original_context { long_factor } else { short_factor };
            (rounded(base.zip(factors).map(|(f, factor)| f / factor).collect()), *attention_factor)
        }
    }
}

/// Llama 3.1's ramp between kept and divided frequencies (as published with its weights).
fn llama3(frequency: f64, factor: f64, low: f64, high: f64, original: f64) -> f64 {
    let wavelength = 2.0 * std::f64::consts::PI / frequency;
    if wavelength < original / high {
        frequency
    } else if wavelength > original / low {
        frequency / factor
    } else {
        let smooth = (original / wavelength - low) / (high - low);
        (1.0 - smooth) * frequency / factor + smooth * frequency
    }
}
