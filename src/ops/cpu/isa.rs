//! Which instruction set the kernels use, decided once at start.

use crate::ops::OpsError;

/// An instruction set path. Results are promised bit for bit within one path, and to agree closely between paths.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Isa {
    /// x86-64 with AVX-512F and AVX512-BF16: bf16 products by `vdpbf16ps`. In f32 mode the same as [`Isa::Avx512`].
    Avx512Bf16,
    /// x86-64 with AVX-512F: 512-bit FMA, bf16 widened by shifts.
    Avx512,
    /// x86-64 with AVX2 and FMA: 256-bit FMA, bf16 widened by shifts.
    Avx2,
    /// Plain Rust, for any machine.
    Portable,
}

impl Isa {
    /// All paths, fastest first.
    pub const ALL: [Self; 4] = [Self::Avx512Bf16, Self::Avx512, Self::Avx2, Self::Portable];

    /// The fastest path this machine has.
    #[must_use]
    pub fn best() -> Self {
        Self::ALL.into_iter().find(|isa| isa.is_available()).unwrap_or(Self::Portable)
    }

    /// True when this machine can run the path.
    #[must_use]
    pub fn is_available(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        {
            let avx2 = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
            let avx512 = avx2 && is_x86_feature_detected!("avx512f");
            match self {
                Self::Avx512Bf16 => avx512 && is_x86_feature_detected!("avx512bf16"),
                Self::Avx512 => avx512,
                Self::Avx2 => avx2,
                Self::Portable => true,
            }
        }
        #[cfg(not(target_arch = "x86_64"))]
        {
            self == Self::Portable
        }
    }

    /// The name in logs.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Avx512Bf16 => "avx512bf16",
            Self::Avx512 => "avx512",
            Self::Avx2 => "avx2",
            Self::Portable => "portable",
        }
    }
}

/// Proof that this machine has a path: it is only made by [`DetectedIsa::new`], so kernels may rely on it.
#[derive(Clone, Copy, Debug)]
pub(super) struct DetectedIsa(Isa);

impl DetectedIsa {
    pub(super) fn new(isa: Isa) -> Result<Self, OpsError> {
        if isa.is_available() { Ok(Self(isa)) } else { Err(OpsError::Isa { isa: isa.as_str() }) }
    }

    pub(super) fn get(self) -> Isa {
        self.0
    }
}

/// How `a * b + c` is computed. A path uses one of the two everywhere, so that a tail and a full vector agree.
pub(super) trait Arithmetic: Copy {
    fn mul_add(a: f32, b: f32, c: f32) -> f32;
}

/// One rounding. Only where the processor has the instruction: elsewhere it is a slow library call.
#[derive(Clone, Copy)]
pub(super) struct Fused;

/// Two roundings, or one on processors that always have the instruction.
#[derive(Clone, Copy)]
pub(super) struct Plain;

impl Arithmetic for Fused {
    #[inline(always)]
    fn mul_add(a: f32, b: f32, c: f32) -> f32 {
        a.mul_add(b, c)
    }
}

impl Arithmetic for Plain {
    #[inline(always)]
    fn mul_add(a: f32, b: f32, c: f32) -> f32 {
        if cfg!(any(target_arch = "aarch64", target_feature = "fma")) { a.mul_add(b, c) } else { a * b + c }
    }
}

/// Compiles a loop over plain f32 once per instruction set and picks by [`DetectedIsa`]. The bodies hold no intrinsics:
/// Rust never reassociates or contracts floats, so what the compiler vectorises gives the bits of the scalar loop.
macro_rules! dispatched {
    ($(#[$meta:meta])* fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? = $body:ident) => {
        $(#[$meta])*
        #[allow(clippy::too_many_arguments)]
        pub(in crate::ops::cpu) fn $name(isa: $crate::ops::cpu::isa::DetectedIsa, $($arg: $ty),*) $(-> $ret)? {
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx2,fma")]
                #[allow(clippy::too_many_arguments)]
                fn wide($($arg: $ty),*) $(-> $ret)? {
                    $body::<$crate::ops::cpu::isa::Fused>($($arg),*)
                }
                if isa.get() != $crate::ops::cpu::isa::Isa::Portable {
                    #[allow(unsafe_code)]
                    // SAFETY: every path but `Portable` includes AVX2 and FMA, and `DetectedIsa` exists only for
                    // paths this machine has.
                    return unsafe { wide($($arg),*) };
                }
            }
            let _ = isa;
            $body::<$crate::ops::cpu::isa::Plain>($($arg),*)
        }
    };
}
pub(super) use dispatched;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_path_is_available_and_portable_always_is() {
        assert!(Isa::best().is_available());
        assert!(Isa::Portable.is_available());
        assert!(DetectedIsa::new(Isa::best()).is_ok());
    }

    #[test]
    fn a_path_the_machine_lacks_is_refused_by_name() {
        for isa in Isa::ALL.into_iter().filter(|isa| !isa.is_available()) {
            assert_eq!(DetectedIsa::new(isa).unwrap_err(), OpsError::Isa { isa: isa.as_str() });
        }
    }
}
