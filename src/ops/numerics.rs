//! How a backend keeps numbers: three choices that are one another's business only where a flag makes them together.

use half::bf16;

/// A choice between f32 and bf16, as a type of its own, so that none is taken for another.
macro_rules! kept {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum $name {
            /// 32-bit floats, nothing is narrowed.
            F32,
            /// bfloat16.
            Bf16,
        }

        impl $name {
            /// Bytes of one number.
            #[must_use]
            pub fn size(self) -> usize {
                match self {
                    Self::F32 => 4,
                    Self::Bf16 => 2,
                }
            }

            /// The name in flags and logs.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self {
                    Self::F32 => "f32",
                    Self::Bf16 => "bf16",
                }
            }

            /// The number that is kept of this one.
            #[must_use]
            pub fn round(self, value: f32) -> f32 {
                match self {
                    Self::F32 => value,
                    Self::Bf16 => bf16::from_f32(value).to_f32(),
                }
            }
        }
    };
}

kept! {
    /// How matrices lie on the device, the base's and adapters' alike.
    WeightFormat
}

kept! {
    /// What the inputs of every GEMM are rounded to; sums are f32.
    ComputeDtype
}

kept! {
    /// What the KV cache keeps of K and V.
    KvDtype
}

/// All of a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Numerics {
    /// Of matrices.
    pub weights: WeightFormat,
    /// Of the inputs of GEMMs.
    pub compute: ComputeDtype,
    /// Of the KV cache.
    pub kv: KvDtype,
}

impl Numerics {
    /// `--dtype f32`.
    pub const F32: Self = Self { weights: WeightFormat::F32, compute: ComputeDtype::F32, kv: KvDtype::F32 };
    /// `--dtype bf16`.
    pub const BF16: Self = Self { weights: WeightFormat::Bf16, compute: ComputeDtype::Bf16, kv: KvDtype::Bf16 };
}
