//! How a backend keeps numbers: three choices that are one another's business only where a flag makes them together.

use half::{bf16, f16};

/// The nearest f16, of two as near the even one. What is too large for one is NaN, not infinity, which a softcap or a
/// score of minus infinity would hide: whoever keeps numbers in f16 learns of every one that does not fit.
#[must_use]
pub fn nearest_f16(value: f32) -> f16 {
    let nearest = f16::from_f32(value);
    if nearest.is_infinite() { f16::NAN } else { nearest }
}

/// A choice of f32, bf16 and f16, as a type of its own, so that none is taken for another.
macro_rules! kept {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum $name {
            /// 32-bit floats, nothing is narrowed.
            F32,
            /// bfloat16.
            Bf16,
            /// IEEE 754 binary16, where nothing is infinite ([`nearest_f16`]).
            F16,
        }

        impl $name {
            /// Bytes of one number.
            #[must_use]
            pub fn size(self) -> usize {
                match self {
                    Self::F32 => 4,
                    Self::Bf16 | Self::F16 => 2,
                }
            }

            /// The name in flags and logs.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self {
                    Self::F32 => "f32",
                    Self::Bf16 => "bf16",
                    Self::F16 => "f16",
                }
            }

            /// The number that is kept of this one.
            #[must_use]
            pub fn round(self, value: f32) -> f32 {
                match self {
                    Self::F32 => value,
                    Self::Bf16 => bf16::from_f32(value).to_f32(),
                    Self::F16 => nearest_f16(value).to_f32(),
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
    /// `--dtype f16`.
    pub const F16: Self = Self { weights: WeightFormat::F16, compute: ComputeDtype::F16, kv: KvDtype::F16 };
    /// What `--dtype` names.
    pub const ALL: [Self; 3] = [Self::F32, Self::BF16, Self::F16];
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn f16_is_the_nearest_number_and_none_where_there_is_none_near() {
        let round = |value| ComputeDtype::F16.round(value);
        assert_eq!(
            [1.0, -0.1, 65_504.0, 65_519.9, 2.0_f32.powi(-24)].map(round),
            [1.0, -0.099_975_586, 65_504.0, 65_504.0, 2.0_f32.powi(-24)]
        );
        assert_eq!([2049.0, 2051.0, 2.0_f32.powi(-25), -0.0].map(round), [2048.0, 2052.0, 0.0, 0.0]);
        assert!(round(-0.0).is_sign_negative());
        for far in [65_520.0, -65_520.0, f32::MAX, f32::INFINITY, f32::NEG_INFINITY, f32::NAN] {
            assert!(round(far).is_nan(), "{far}");
        }
    }
}
