//! The discrete Fourier transform of a line of any length, in f64 (Cooley & Tukey 1965): by fours, twos and the primes that are
//! left, of which widths of models have small ones.

use std::f64::consts::TAU;
use std::ops::{Add, Mul, Sub};

/// A complex number.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Complex {
    pub(super) re: f64,
    pub(super) im: f64,
}

impl Complex {
    /// i·z.
    pub(super) fn times_i(self) -> Self {
        Self { re: -self.im, im: self.re }
    }

    pub(super) fn conjugate(self) -> Self {
        Self { re: self.re, im: -self.im }
    }

    pub(super) fn scaled(self, factor: f64) -> Self {
        Self { re: self.re * factor, im: self.im * factor }
    }
}

impl Add for Complex {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self { re: self.re + other.re, im: self.im + other.im }
    }
}

impl Sub for Complex {
    type Output = Self;

    fn sub(self, other: Self) -> Self {
        Self { re: self.re - other.re, im: self.im - other.im }
    }
}

impl Mul for Complex {
    type Output = Self;

    fn mul(self, other: Self) -> Self {
        Self { re: self.re * other.re - self.im * other.im, im: self.re * other.im + self.im * other.re }
    }
}

/// e^(2πi·k / len) for every k below `len`.
pub(super) fn roots_of_unity(len: usize) -> Vec<Complex> {
    let root = |k: usize| {
        let (im, re) = (TAU * k as f64 / len as f64).sin_cos();
        Complex { re, im }
    };
    (0..len).map(root).collect()
}

/// Of lines of one length.
pub(super) struct Transform {
    radices: Vec<usize>,
    roots: Vec<Complex>,
}

impl Transform {
    pub(super) fn new(len: usize) -> Self {
        let (mut radices, mut left) = (Vec::new(), len);
        for radix in [4, 2].into_iter().chain((3..).step_by(2)) {
            while left > 1 && left.is_multiple_of(radix) {
                radices.push(radix);
                left /= radix;
            }
            if left <= 1 {
                break;
            }
        }
        Self { radices, roots: roots_of_unity(len) }
    }

    /// y[j] = Σ_k x[k]·e^(2πi·jk / len).
    pub(super) fn run(&self, x: &[Complex], y: &mut [Complex]) {
        debug_assert!(x.len() == self.roots.len() && y.len() == self.roots.len());
        let mut terms = vec![Complex::default(); self.radices.iter().copied().max().unwrap_or(1)];
        self.part(x, 0, 1, y, &mut terms);
    }

    /// The transform of every `stride`-th number of x, where the radices before `depth` have been taken out.
    fn part(&self, x: &[Complex], depth: usize, stride: usize, y: &mut [Complex], terms: &mut [Complex]) {
        let Some(radix) = self.radices.get(depth).copied() else {
            y[0] = x[0];
            return;
        };
        let part = y.len() / radix;
        for (at, y) in y.chunks_exact_mut(part).enumerate() {
            self.part(&x[at * stride..], depth + 1, stride * radix, y, terms);
        }
        for k in 0..part {
            for (at, term) in terms[..radix].iter_mut().enumerate() {
                *term = y[at * part + k] * self.roots[at * k * stride];
            }
            self.join(&terms[..radix], part * stride, |at, sum| y[at * part + k] = sum);
        }
    }

    /// put(q, Σ_r terms[r]·e^(2πi·qr / radix)) for every q; `step` is where the roots of the radix lie.
    fn join(&self, terms: &[Complex], step: usize, mut put: impl FnMut(usize, Complex)) {
        match *terms {
            [a, b] => {
                put(0, a + b);
                put(1, a - b);
            }
            [a, b, c, d] => {
                let (even, odd) = ((a + c, a - c), (b + d, (b - d).times_i()));
                put(0, even.0 + odd.0);
                put(1, even.1 + odd.1);
                put(2, even.0 - odd.0);
                put(3, even.1 - odd.1);
            }
            _ => {
                for q in 0..terms.len() {
                    let (mut sum, mut at) = (Complex::default(), 0);
                    for term in terms {
                        sum = sum + *term * self.roots[at * step];
                        at += q;
                        if at >= terms.len() {
                            at -= terms.len();
                        }
                    }
                    put(q, sum);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_any_length_are_transformed_as_by_the_definition() {
        for len in [1, 2, 3, 4, 7, 8, 12, 16, 35, 43, 72, 96, 128, 149] {
            let number = |at: usize| ((at * 37 + 11) % 64) as f64 / 32.0 - 1.0;
            let x: Vec<Complex> = (0..len).map(|at| Complex { re: number(at), im: number(at + 5) }).collect();
            let mut y = vec![Complex::default(); len];
            Transform::new(len).run(&x, &mut y);
            let roots = roots_of_unity(len);
            for (j, found) in y.iter().enumerate() {
                let terms = x.iter().enumerate().map(|(k, x)| *x * roots[j * k % len]);
                let sum = terms.fold(Complex::default(), Add::add);
                assert!((found.re - sum.re).abs() + (found.im - sum.im).abs() < 1e-10, "{len}, {j}");
            }
        }
    }
}
