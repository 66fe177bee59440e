//! Functions of one number: between gate and up, and between the matrices of a bottleneck.

/// The activation between gate and up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// x · sigmoid(x).
    Silu,
    /// GELU, tanh approximation (`gelu_pytorch_tanh`).
    GeluTanh,
    /// GELU, exact (erf).
    Gelu,
}

/// What stands between the matrices of a bottleneck.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum NonLinearity {
    /// One of those that stand between gate and up.
    Gate(Activation),
    /// x.
    Identity,
    /// max(x, 0).
    Relu,
    /// min(max(x, 0), 6).
    Relu6,
    /// max(x, 0)².
    SquaredRelu,
    /// x where it is positive, else `slope * x`.
    LeakyRelu {
        /// Below zero.
        slope: f32,
    },
    /// 1 / (1 + e⁻ˣ).
    Sigmoid,
    /// tanh x.
    Tanh,
    /// x · tanh(ln(1 + eˣ)) (Misra 2019).
    Mish,
    /// x · sigmoid(1.702 x).
    QuickGelu,
    /// GELU, exact, within -10..=10.
    ClippedGelu,
    /// (1 + erf((x - 0.707107) / (0.282095 √2))) / 2 (Ma et al. 2022).
    Laplace,
}

impl NonLinearity {
    /// Slope of [`NonLinearity::QuickGelu`].
    pub(super) const QUICK: f32 = 1.702;
    /// Bound of [`NonLinearity::ClippedGelu`].
    pub(super) const CLIP: f32 = 10.0;
    /// Mean of [`NonLinearity::Laplace`].
    #[allow(clippy::approx_constant)] // transformers has it with six digits.
    pub(super) const LAPLACE_MEAN: f32 = 0.707_107;
    /// Its deviation times √2.
    pub(super) const LAPLACE_WIDTH: f32 = 0.398_942_57;
    /// From here on [`NonLinearity::Mish`] is x itself in f32.
    pub(super) const MISH_LINEAR: f32 = 20.0;
}
