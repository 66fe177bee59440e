//! The numbers by which kernels know functions: `activate` and `bend` of `kernels/rows.cuh`.

use crate::ops::{Activation, NonLinearity};

/// What kernels call an activation.
pub(super) fn number_of(activation: Activation) -> u32 {
    match activation {
        Activation::Silu => 0,
        Activation::GeluTanh => 1,
        Activation::Gelu => 2,
    }
}

/// What kernels call a non-linearity, and its slope where it has one.
pub(super) fn number_of_non_linearity(non_linearity: NonLinearity) -> (u32, f32) {
    let number = match non_linearity {
        NonLinearity::Gate(activation) => number_of(activation),
        NonLinearity::Identity => 3,
        NonLinearity::Relu => 4,
        NonLinearity::Relu6 => 5,
        NonLinearity::SquaredRelu => 6,
        NonLinearity::LeakyRelu { slope } => return (7, slope),
        NonLinearity::Sigmoid => 8,
        NonLinearity::Tanh => 9,
        NonLinearity::Mish => 10,
        NonLinearity::QuickGelu => 11,
        NonLinearity::ClippedGelu => 12,
        NonLinearity::Laplace => 13,
    };
    (number, 0.0)
}
