//! Products of matrices by cuBLASLt, where that was asked for. The library chooses how to compute by the number of rows, so
//! a row's last bits may depend on the rows beside it, which our own kernels promise they do not.
//!
//! It is never asked in steps in which every sequence has one row: those are recorded, with more rows than there are, and
//! decoding keeps the promise. What our kernels do beside a product (low-rank pairs, scaled inputs, experts) is theirs as
//! before.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex, PoisonError};

use super::abi::{MatrixView, RowsView};
use super::driver::{CublasLt, CublasLtHandle, Device, DeviceMemory, Product, ProductShape};
use crate::ops::{ComputeDtype, OpsError};

/// What the library may use on its way: as much as its makers ask for on Hopper, and more than on others.
const WORKSPACE_BYTES: usize = 32 << 20;
/// Most shapes that are remembered; a model has a few for every number of rows of a step.
const MOST_SHAPES: usize = 1024;

/// Which products the library computes.
#[derive(Clone, Debug)]
pub struct LibraryGemm {
    /// The library.
    pub library: Arc<CublasLt>,
    /// Those of at least so many rows, in steps in which some sequence has several.
    pub from_rows: usize,
}

/// The library with what it chose so far.
#[derive(Debug)]
pub(super) struct LibraryGemms {
    /// Dropped first.
    products: Mutex<HashMap<ProductShape, Option<Product>>>,
    handle: CublasLtHandle,
    workspace: DeviceMemory,
    pub(super) from_rows: usize,
}

impl LibraryGemms {
    /// # Errors
    /// [`OpsError::Library`], [`OpsError::OutOfMemory`].
    pub(super) fn new(library: &LibraryGemm, device: &Arc<Device>) -> Result<Self, OpsError> {
        let handle = CublasLtHandle::new(&library.library, device)?;
        let workspace = DeviceMemory::new(device, &device.compute, "cuBLASLt's workspace", WORKSPACE_BYTES)?;
        Ok(Self { products: Mutex::default(), handle, workspace, from_rows: library.from_rows })
    }

    /// Bytes of the device that the library works in.
    pub(super) fn bytes(&self) -> u64 {
        self.workspace.bytes() as u64
    }

    /// Compute `rows` rows; false, and nothing done, where the library has nothing for the shape.
    ///
    /// # Errors
    /// [`OpsError::Library`].
    pub(super) fn launch(
        &self,
        dtype: ComputeDtype,
        rows: usize,
        x: &RowsView,
        w: &MatrixView,
        y: &RowsView,
    ) -> Result<bool, OpsError> {
        let (x_address, x_stride) = match dtype {
            ComputeDtype::F32 => (x.values.get(), x.cols),
            ComputeDtype::Bf16 | ComputeDtype::F16 => (x.input.get(), x.input_stride),
        };
        let shape = ProductShape {
            dtype,
            rows,
            inputs: w.cols as usize,
            outputs: w.rows as usize,
            x_stride: x_stride as usize,
            w_stride: w.stride as usize,
            y_stride: y.cols as usize,
        };
        let mut products = self.products.lock().unwrap_or_else(PoisonError::into_inner);
        if products.len() >= MOST_SHAPES {
            products.clear();
        }
        let product = match products.entry(shape) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(unknown) => {
                let product = Product::choose(&self.handle, unknown.key(), WORKSPACE_BYTES)?;
                if product.is_none() {
                    let shape = unknown.key();
                    tracing::warn!(
                        ?shape,
                        "cuBLASLt has nothing for a product of this shape: our own kernel computes it"
                    );
                }
                unknown.insert(product)
            }
        };
        let Some(product) = product else { return Ok(false) };
        let matrices = [w.values.get(), x_address, y.values.get()];
        // SAFETY: views are of memory that the decoder owns with this backend, of these sizes, freed on the stream of steps;
        // the workspace is used by one product after the other.
        unsafe { product.launch(&self.handle, matrices, (self.workspace.address(), WORKSPACE_BYTES)) }.map(|()| true)
    }
}
