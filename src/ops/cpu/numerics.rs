//! The numerics that this backend computes: those of [`ops`] without f16. Types of their own, so that no kernel has to
//! answer for what no processor here multiplies.

use crate::ops::{self, OpsError};

/// A choice of [`ops`] without f16.
macro_rules! kept {
    ($($name:ident),*) => {
        $(
            /// As [`ops::$name`].
            #[derive(Clone, Copy, Debug, PartialEq, Eq)]
            pub(super) enum $name {
                F32,
                Bf16,
            }

            impl TryFrom<ops::$name> for $name {
                type Error = OpsError;

                fn try_from(kept: ops::$name) -> Result<Self, OpsError> {
                    match kept {
                        ops::$name::F32 => Ok(Self::F32),
                        ops::$name::Bf16 => Ok(Self::Bf16),
                        ops::$name::F16 => Err(OpsError::Dtype { dtype: kept.as_str(), backend: "cpu" }),
                    }
                }
            }

            impl From<$name> for ops::$name {
                fn from(kept: $name) -> Self {
                    match kept {
                        $name::F32 => Self::F32,
                        $name::Bf16 => Self::Bf16,
                    }
                }
            }
        )*
    };
}

kept!(WeightFormat, ComputeDtype, KvDtype);

/// As [`ops::Numerics`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Numerics {
    pub(super) weights: WeightFormat,
    pub(super) compute: ComputeDtype,
    pub(super) kv: KvDtype,
}

impl TryFrom<ops::Numerics> for Numerics {
    type Error = OpsError;

    fn try_from(ops::Numerics { weights, compute, kv }: ops::Numerics) -> Result<Self, OpsError> {
        Ok(Self { weights: weights.try_into()?, compute: compute.try_into()?, kv: kv.try_into()? })
    }
}

impl From<Numerics> for ops::Numerics {
    fn from(Numerics { weights, compute, kv }: Numerics) -> Self {
        Self { weights: weights.into(), compute: compute.into(), kv: kv.into() }
    }
}
