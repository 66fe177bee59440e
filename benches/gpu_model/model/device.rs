//! Devices, by the figures that NVIDIA publishes of them: data sheets of the products, white papers of the architectures. Nobody
//! has measured anything here, and what a device reaches of its figures is not known to this model.

/// A device.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Device {
    pub(crate) name: &'static str,
    /// Compute capability.
    pub(crate) capability: (u32, u32),
    /// Streaming multiprocessors.
    pub(crate) processors: u32,
    /// Bytes that its memory moves in a second.
    pub(crate) bandwidth: f64,
    /// Products and sums of dense bf16 matrices in a second. Those of `mma.sync`, which the kernels use, reach less of it on
    /// compute capability 9.0.
    pub(crate) flops: f64,
    /// Bytes of the L2 cache.
    pub(crate) l2: f64,
}

pub(crate) const DEVICES: [Device; 4] = [
    Device { name: "h100-sxm", capability: (9, 0), processors: 132, bandwidth: 3.35e12, flops: 989e12, l2: 50.0 * MIB },
    Device { name: "h200", capability: (9, 0), processors: 132, bandwidth: 4.8e12, flops: 989e12, l2: 50.0 * MIB },
    Device {
        name: "a100-sxm-80",
        capability: (8, 0),
        processors: 108,
        bandwidth: 2.039e12,
        flops: 312e12,
        l2: 40.0 * MIB,
    },
    Device { name: "l4", capability: (8, 9), processors: 58, bandwidth: 300e9, flops: 121e12, l2: 48.0 * MIB },
];

const MIB: f64 = 1_048_576.0;
