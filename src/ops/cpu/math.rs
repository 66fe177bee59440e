//! Elementary functions on one f32, branch-free so that loops over them vectorise. Every lane, tail and instruction
//! set runs the same operations, so a result never depends on where in a row a number stands.

use super::isa::Arithmetic;
use crate::ops::NonLinearity;

const LN2_HIGH: f32 = 0.693_359_4;
const LN2_LOW: f32 = -2.121_944_4e-4;

/// 1.5 * 2^23: adding it and taking it away rounds to an integer, which then stands in the low bits.
const ROUND: f32 = 12_582_912.0;

/// e^r - 1 for |r| <= ln 2 / 2, by its Taylor series; the first term left out is below 3e-9 of the result.
#[inline(always)]
fn exp_m1_reduced<A: Arithmetic>(r: f32) -> f32 {
    let mut p = 1.0 / 5040.0;
    for c in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0] {
        p = A::mul_add(p, r, c);
    }
    p * r
}

/// e^x to about 1 ulp; 0 below -104, infinite above 88.8, NaN for NaN.
#[inline(always)]
pub(super) fn exp<A: Arithmetic>(x: f32) -> f32 {
    // Not `clamp`: comparisons that are false for NaN let it through, as they must.
    let bounded = if x > 89.0 { 89.0 } else { x };
    let bounded = if bounded < -105.0 { -105.0 } else { bounded };
    let shifted = A::mul_add(bounded, std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = A::mul_add(n, -LN2_LOW, A::mul_add(n, -LN2_HIGH, bounded));
    let power = shifted.to_bits().wrapping_sub(ROUND.to_bits()) as i32;
    // In two factors, so that neither leaves the exponent range where the result does not.
    let half = power >> 1;
    let factor = |n: i32| f32::from_bits((n.wrapping_add(127) as u32) << 23);
    (exp_m1_reduced::<A>(r) + 1.0) * factor(half) * factor(power.wrapping_sub(half))
}

/// 2^x for x <= 1, to about 1 ulp; 0 below -126, NaN for NaN. Coefficients of Cephes' exp2f (Moshier), for |r| <= 1/2.
#[inline(always)]
pub(super) fn exp2<A: Arithmetic>(x: f32) -> f32 {
    let shifted = x + ROUND;
    let r = x - (shifted - ROUND);
    let mut p = 1.535_336_2e-4;
    for c in [1.339_887_4e-3, 9.618_437e-3, 5.550_332_5e-2, 0.240_226_48, std::f32::consts::LN_2, 1.0] {
        p = A::mul_add(p, r, c);
    }
    // The integer stands in the low bits of `shifted`, whose upper ones the shift drops.
    let power = f32::from_bits((shifted.to_bits() << 23).wrapping_add(1.0_f32.to_bits()));
    // Not `max`: a comparison that is false for NaN lets it through, as it must.
    if x < -126.0 { 0.0 } else { p * power }
}

/// The higher of two, as one instruction; b where one is NaN.
#[inline(always)]
pub(super) fn higher(a: f32, b: f32) -> f32 {
    if a > b { a } else { b }
}

/// tanh x, to about 1e-6 relative.
#[inline(always)]
pub(super) fn tanh<A: Arithmetic>(x: f32) -> f32 {
    let twice = x.abs() * 2.0;
    let near = exp_m1_reduced::<A>(twice);
    let small = near / (near + 2.0);
    let large = 1.0 - 2.0 / (exp::<A>(twice) + 1.0);
    let magnitude = if twice < 0.34 { small } else { large };
    magnitude.copysign(x)
}

/// erf x to 2e-7 absolute: its Maclaurin series below 1, Abramowitz & Stegun 7.1.26 from 1 on.
#[inline(always)]
pub(super) fn erf<A: Arithmetic>(x: f32) -> f32 {
    let a = x.abs();
    let z = a * a;
    let mut series = -1.0 / (362_880.0 * 19.0);
    for c in [
        1.0 / (40_320.0 * 17.0),
        -1.0 / (5_040.0 * 15.0),
        1.0 / (720.0 * 13.0),
        -1.0 / (120.0 * 11.0),
        1.0 / (24.0 * 9.0),
        -1.0 / (6.0 * 7.0),
        1.0 / (2.0 * 5.0),
        -1.0 / 3.0,
        1.0,
    ] {
        series = A::mul_add(series, z, c);
    }
    let small = a * series * std::f32::consts::FRAC_2_SQRT_PI;
    let t = 1.0 / A::mul_add(0.327_591_1, a, 1.0);
    let mut p = 1.061_405_4;
    for c in [-1.453_152, 1.421_413_7, -0.284_496_74, 0.254_829_6] {
        p = A::mul_add(p, t, c);
    }
    let large = 1.0 - p * t * exp::<A>(-z);
    (if a < 1.0 { small } else { large }).copysign(x)
}

/// x · sigmoid(x).
#[inline(always)]
pub(super) fn silu<A: Arithmetic>(x: f32) -> f32 {
    x / (1.0 + exp::<A>(-x))
}

/// GELU in its tanh form (Hendrycks & Gimpel 2016).
#[inline(always)]
pub(super) fn gelu_tanh<A: Arithmetic>(x: f32) -> f32 {
    const SQRT_2_OVER_PI: f32 = 0.797_884_6;
    let inner = SQRT_2_OVER_PI * A::mul_add(0.044_715 * x * x, x, x);
    0.5 * x * (1.0 + tanh::<A>(inner))
}

/// GELU with erf.
#[inline(always)]
pub(super) fn gelu<A: Arithmetic>(x: f32) -> f32 {
    0.5 * x * (1.0 + erf::<A>(x * std::f32::consts::FRAC_1_SQRT_2))
}

/// max(x, 0); NaN for NaN.
#[inline(always)]
pub(super) fn relu(x: f32) -> f32 {
    if x < 0.0 { 0.0 } else { x }
}

/// 1 / (1 + e^-x).
#[inline(always)]
pub(super) fn sigmoid<A: Arithmetic>(x: f32) -> f32 {
    1.0 / (1.0 + exp::<A>(-x))
}

/// x · tanh(ln(1 + e^x)): with n = e^x (e^x + 2) that is x · n / (n + 2).
#[inline(always)]
pub(super) fn mish<A: Arithmetic>(x: f32) -> f32 {
    let bounded = if x > NonLinearity::MISH_LINEAR { NonLinearity::MISH_LINEAR } else { x };
    let power = exp::<A>(bounded);
    let n = power * (power + 2.0);
    x * (n / (n + 2.0))
}

/// The bits of x rounded to bf16, to nearest even, as the upper half of an f32. A NaN stays one.
#[inline(always)]
pub(super) fn round_bf16_bits(x: f32) -> u32 {
    let bits = x.to_bits();
    let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) & 0xffff_0000;
    let quiet = (bits | 0x0040_0000) & 0xffff_0000;
    if x.is_nan() { quiet } else { rounded }
}

/// Lanes of a running sum or maximum.
pub(super) const LANES: usize = 16;

/// Fold lanes in one fixed tree.
#[inline(always)]
pub(super) fn fold_lanes(mut lanes: [f32; LANES], op: impl Fn(f32, f32) -> f32) -> f32 {
    for width in [8, 4, 2, 1] {
        for i in 0..width {
            lanes[i] = op(lanes[i], lanes[i + width]);
        }
    }
    lanes[0]
}

/// Σ x, lane `i % 16` first.
#[inline(always)]
pub(super) fn sum(x: &[f32]) -> f32 {
    let mut lanes = [0.0; LANES];
    let (chunks, tail) = x.as_chunks::<LANES>();
    for chunk in chunks {
        lanes.iter_mut().zip(chunk).for_each(|(lane, x)| *lane += x);
    }
    lanes.iter_mut().zip(tail).for_each(|(lane, x)| *lane += x);
    fold_lanes(lanes, |a, b| a + b)
}

/// Σ a b of slices of one length, lane `i % 16` first, so that it depends on the length alone.
#[inline(always)]
pub(super) fn dot<A: Arithmetic>(a: &[f32], b: &[f32]) -> f32 {
    let mut lanes = [0.0; LANES];
    let ((a, rest_of_a), (b, rest_of_b)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
    for (a, b) in a.iter().zip(b) {
        for i in 0..LANES {
            lanes[i] = A::mul_add(a[i], b[i], lanes[i]);
        }
    }
    for (lane, (a, b)) in lanes.iter_mut().zip(rest_of_a.iter().zip(rest_of_b)) {
        *lane = A::mul_add(*a, *b, *lane);
    }
    fold_lanes(lanes, |a, b| a + b)
}

/// Σ x², as [`dot`].
#[inline(always)]
pub(super) fn sum_of_squares<A: Arithmetic>(x: &[f32]) -> f32 {
    dot::<A>(x, x)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::cpu::isa::{Fused, Plain};

    fn sweep(low: f32, high: f32) -> impl Iterator<Item = f32> {
        (0..=40_000).map(move |i| low + (high - low) * (i as f32 / 40_000.0))
    }

    fn relative(got: f32, want: f64) -> f64 {
        (f64::from(got) - want).abs() / want.abs().max(1e-30)
    }

    #[test]
    fn exp_is_within_two_ulps_and_keeps_its_edges() {
        for x in sweep(-86.0, 88.0) {
            assert!(relative(exp::<Fused>(x), f64::from(x).exp()) < 2.4e-7, "{x}");
            assert!(relative(exp::<Plain>(x), f64::from(x).exp()) < 2.4e-7, "{x}");
        }
        assert_eq!(exp::<Fused>(0.0), 1.0);
        assert_eq!(exp::<Fused>(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp::<Fused>(-200.0), 0.0);
        assert_eq!(exp::<Fused>(f32::INFINITY), f32::INFINITY);
        assert_eq!(exp::<Fused>(100.0), f32::INFINITY);
        assert!(exp::<Fused>(f32::NAN).is_nan());
    }

    #[test]
    fn exp2_is_within_two_ulps_and_keeps_its_edges() {
        for x in sweep(-126.0, 1.0) {
            assert!(relative(exp2::<Fused>(x), f64::from(x).exp2()) < 2.4e-7, "{x}");
            assert!(relative(exp2::<Plain>(x), f64::from(x).exp2()) < 2.4e-7, "{x}");
        }
        assert_eq!([0.0, -1.0, -126.0].map(exp2::<Fused>), [1.0, 0.5, f32::MIN_POSITIVE]);
        assert_eq!([-126.1, -1e9, f32::NEG_INFINITY].map(exp2::<Fused>), [0.0; 3]);
        assert!(exp2::<Fused>(f32::NAN).is_nan() && exp2::<Plain>(-f32::NAN).is_nan());
    }

    #[test]
    fn tanh_and_erf_follow_their_definitions() {
        for x in sweep(-12.0, 12.0) {
            assert!(relative(tanh::<Fused>(x), f64::from(x).tanh()) < 1e-6 || x == 0.0, "{x}");
        }
        for (x, want) in [(0.0, 0.0), (0.5, 0.520_499_9), (0.999, 0.842_285_4), (1.0, 0.842_700_8), (2.0, 0.995_322_3)]
        {
            assert!((erf::<Fused>(x) - want).abs() < 3e-7, "erf({x}) = {}", erf::<Fused>(x));
            assert_eq!(erf::<Plain>(-x), -erf::<Plain>(x));
        }
        assert_eq!(tanh::<Plain>(f32::INFINITY), 1.0);
        assert_eq!(tanh::<Plain>(f32::NEG_INFINITY), -1.0);
        assert!(tanh::<Plain>(f32::NAN).is_nan() && erf::<Plain>(f32::NAN).is_nan());
    }

    #[test]
    fn activations_are_right_at_known_points() {
        assert!((silu::<Fused>(1.0) - 0.731_058_6).abs() < 1e-6);
        assert!((gelu::<Fused>(1.0) - 0.841_344_7).abs() < 1e-6);
        assert!((gelu_tanh::<Fused>(1.0) - 0.841_192).abs() < 1e-6);
        assert_eq!(silu::<Fused>(-1000.0), 0.0);
        for x in sweep(-30.0, 40.0) {
            let wide = f64::from(x);
            let want = wide * (1.0 + wide.exp()).ln().tanh();
            assert!((f64::from(mish::<Fused>(x)) - want).abs() < 1e-6 * (1.0 + want.abs()), "{x}");
        }
        assert_eq!([sigmoid::<Plain>(0.0), relu(-1.0), relu(2.0)], [0.5, 0.0, 2.0]);
        assert!(mish::<Plain>(f32::NAN).is_nan() && relu(f32::NAN).is_nan() && sigmoid::<Plain>(f32::NAN).is_nan());
    }

    #[test]
    fn rounding_to_bf16_agrees_with_half() {
        let specials = [0.0, -0.0, 1.0, f32::INFINITY, f32::NEG_INFINITY, f32::NAN, f32::MAX, f32::MIN_POSITIVE, 1e-40];
        let near_ties = (0..100_000_u32).map(|i| f32::from_bits(0x3f80_7ff0 + i));
        for x in specials.into_iter().chain(near_ties) {
            let want = half::bf16::from_f32(x).to_f32();
            assert_eq!(round_bf16_bits(x), want.to_bits(), "{x}");
        }
    }

    #[test]
    fn a_sum_of_squares_covers_ragged_lengths() {
        for len in [1, 15, 16, 17, 50] {
            let x: Vec<f32> = (0..len).map(|i| i as f32).collect();
            assert_eq!(sum_of_squares::<Fused>(&x), x.iter().map(|x| x * x).sum::<f32>());
        }
    }
}
