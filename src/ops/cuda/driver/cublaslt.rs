//! cuBLASLt, NVIDIA's library of products of matrices, as far as this room uses it. It comes with a toolkit or with wheels of
//! Python, never with the driver, so it is loaded where it is asked for, and every function is looked up before it is
//! called. Numbers and signatures are those of its documentation, the same in releases 12 and 13.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::path::{Path, PathBuf};
use std::ptr;
use std::sync::Arc;

use libloading::Library;

use super::device::Device;
use crate::ops::cuda::library::{CudaLibrary, MissingLibrary};
use crate::ops::{ComputeDtype, OpsError};

/// A handle, a description or a choice of the library's.
type Opaque = *mut c_void;
type Attribute = c_int;

const COMPUTE_F32: c_int = 68;
const R_32F: c_int = 0;
const R_16F: c_int = 2;
const R_16BF: c_int = 14;
const TRANSPOSED: c_int = 1;
const DESC_TRANSA: Attribute = 3;
const PREF_MAX_WORKSPACE_BYTES: Attribute = 1;
const PREF_REDUCTION_SCHEME_MASK: Attribute = 3;
const PREF_MIN_ALIGNMENTS: [Attribute; 4] = [5, 6, 7, 8];
/// Parts of a sum are added as f32, in an order that is always the same; adding them in place is in no order.
const REDUCTION_COMPUTE_TYPE: u32 = 2;
/// Where matrices of ours begin.
const ALIGNMENT: u32 = 16;

/// What the library chose for a product (`cublasLtMatmulHeuristicResult_t`).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
struct Choice {
    algorithm: [u64; 8],
    workspace_bytes: usize,
    state: c_int,
    _waves: f32,
    _reserved: [c_int; 4],
}

/// Declares the functions, by their names without `cublasLt`; each returns a status.
macro_rules! functions {
    ($($field:ident: $name:literal ($($argument:ty),* $(,)?),)*) => {
        #[derive(Debug)]
        struct Functions {
            $($field: unsafe extern "C" fn($($argument),*) -> c_int,)*
        }

        impl Functions {
            fn of(library: &Library) -> Result<Self, MissingLibrary> {
                Ok(Self {
                    // SAFETY: the signature that the library documents, since its release 11.
                    $($field: *unsafe { library.get(concat!("cublasLt", $name)) }.map_err(|_| lacks($name))?,)*
                })
            }
        }
    };
}

functions! {
    create: "Create"(*mut Opaque),
    destroy: "Destroy"(Opaque),
    create_product: "MatmulDescCreate"(*mut Opaque, c_int, c_int),
    set_product: "MatmulDescSetAttribute"(Opaque, Attribute, *const c_void, usize),
    destroy_product: "MatmulDescDestroy"(Opaque),
    create_layout: "MatrixLayoutCreate"(*mut Opaque, c_int, u64, u64, i64),
    destroy_layout: "MatrixLayoutDestroy"(Opaque),
    create_preference: "MatmulPreferenceCreate"(*mut Opaque),
    set_preference: "MatmulPreferenceSetAttribute"(Opaque, Attribute, *const c_void, usize),
    destroy_preference: "MatmulPreferenceDestroy"(Opaque),
    choose: "MatmulAlgoGetHeuristic"(
        Opaque, Opaque, Opaque, Opaque, Opaque, Opaque, Opaque, c_int, *mut Choice, *mut c_int,
    ),
    multiply: "Matmul"(
        Opaque, Opaque, *const c_void, *const c_void, Opaque, *const c_void, Opaque, *const c_void, *const c_void, Opaque,
        *mut c_void, Opaque, *const [u64; 8], *mut c_void, usize, Opaque,
    ),
}

fn lacks(name: &str) -> MissingLibrary {
    MissingLibrary::Refused { library: CudaLibrary::CublasLt.name(), reason: format!("it has no cublasLt{name}") }
}

/// The library, loaded. It stays loaded: it has set up things of its own in the process by then.
#[derive(Debug)]
pub struct CublasLt {
    functions: Functions,
    status_name: Option<unsafe extern "C" fn(c_int) -> *const c_char>,
    path: PathBuf,
}

impl CublasLt {
    /// Load it: where the loader looks by itself, else from one of these folders.
    ///
    /// # Errors
    /// [`MissingLibrary`].
    pub fn open(folders: &[PathBuf]) -> Result<Self, MissingLibrary> {
        let library = CudaLibrary::CublasLt.open(folders)?;
        let path = CudaLibrary::CublasLt.path_in(&library);
        let functions = Functions::of(&library)?;
        // SAFETY: `const char* cublasLtGetStatusName(cublasStatus_t)`, where it has that.
        let status_name = unsafe { library.get(c"cublasLtGetStatusName") }.ok().map(|name| *name);
        std::mem::forget(library);
        Ok(Self { functions, status_name, path })
    }

    /// Its file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn outcome(&self, call: &'static str, status: c_int) -> Result<(), OpsError> {
        if status == 0 {
            return Ok(());
        }
        // SAFETY: any number may be asked for; the name is a string of the library's own, or null.
        let name = self.status_name.map(|name| unsafe { name(status) }).filter(|name| !name.is_null());
        // SAFETY: as above.
        let name = name.map(|name| unsafe { CStr::from_ptr(name) }.to_string_lossy().into_owned());
        Err(OpsError::Library { call, error: name.unwrap_or_else(|| format!("status {status}")) })
    }

    fn made(
        &self,
        call: &'static str,
        make: impl FnOnce(&Functions, *mut Opaque) -> c_int,
    ) -> Result<Opaque, OpsError> {
        let mut made = ptr::null_mut();
        let status = make(&self.functions, &raw mut made);
        self.outcome(call, status).map(|()| made)
    }
}

/// y = x wᵀ in numbers: y `[rows, outputs]` in f32, x `[rows, inputs]` and w `[outputs, inputs]` in the compute dtype, all
/// row by row with so many numbers from one row to the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(in super::super) struct ProductShape {
    pub(in super::super) dtype: ComputeDtype,
    pub(in super::super) rows: usize,
    pub(in super::super) inputs: usize,
    pub(in super::super) outputs: usize,
    pub(in super::super) x_stride: usize,
    pub(in super::super) w_stride: usize,
    pub(in super::super) y_stride: usize,
}

/// The library at work on a device.
#[derive(Debug)]
pub(in super::super) struct CublasLtHandle {
    library: Arc<CublasLt>,
    device: Arc<Device>,
    handle: Opaque,
}

// SAFETY: the library lets any thread use a handle whose current context is the handle's.
unsafe impl Send for CublasLtHandle {}
// SAFETY: as above; a handle is not changed by its use.
unsafe impl Sync for CublasLtHandle {}

impl CublasLtHandle {
    /// # Errors
    /// [`OpsError::Library`], [`OpsError::Driver`].
    pub(in super::super) fn new(library: &Arc<CublasLt>, device: &Arc<Device>) -> Result<Self, OpsError> {
        device.enter()?;
        // SAFETY: a context is current; one handle is written.
        let handle = library.made("cublasLtCreate", |lt, made| unsafe { (lt.create)(made) })?;
        Ok(Self { library: Arc::clone(library), device: Arc::clone(device), handle })
    }
}

impl Drop for CublasLtHandle {
    fn drop(&mut self) {
        self.device.note(self.device.enter());
        // SAFETY: it lives, and products are dropped before it or not launched any more.
        let destroyed = unsafe { (self.library.functions.destroy)(self.handle) };
        self.device.note(self.library.outcome("cublasLtDestroy", destroyed));
    }
}

/// Something of the library's, which stays loaded, that goes with this value.
#[derive(Debug)]
struct Owned {
    what: Opaque,
    destroy: unsafe extern "C" fn(Opaque) -> c_int,
}

impl Drop for Owned {
    fn drop(&mut self) {
        // SAFETY: it lives, and this function is of its kind. What the library refuses here nobody can mend.
        let _ = unsafe { (self.destroy)(self.what) };
    }
}

/// How a product of one shape is computed.
#[derive(Debug)]
pub(in super::super) struct Product {
    library: Arc<CublasLt>,
    description: Owned,
    /// Of w, x and y.
    layouts: [Owned; 3],
    algorithm: [u64; 8],
}

// SAFETY: descriptions and layouts are plain data of the library's, which are only read from now on.
unsafe impl Send for Product {}

impl Product {
    /// Have the library choose; `None` where it has nothing for this shape.
    ///
    /// The library counts by columns, so what lies row by row as `[a, b]` is its b x a matrix: it computes yᵀ = w xᵀ, with
    /// its first matrix, b x a for our `[a, b]` w, transposed.
    ///
    /// # Errors
    /// [`OpsError::Library`], [`OpsError::Driver`].
    pub(in super::super) fn choose(
        handle: &CublasLtHandle,
        shape: &ProductShape,
        workspace_bytes: usize,
    ) -> Result<Option<Self>, OpsError> {
        handle.device.enter()?;
        let library = &handle.library;
        let lt = &library.functions;
        let own = |what, destroy| Owned { what, destroy };
        // SAFETY: one description is written.
        let description = library
            .made("cublasLtMatmulDescCreate", |lt, made| unsafe { (lt.create_product)(made, COMPUTE_F32, R_32F) })?;
        let description = own(description, lt.destroy_product);
        set(library, lt.set_product, &description, DESC_TRANSA, &TRANSPOSED)?;
        let layout = |dtype, rows: usize, columns: usize, stride: usize| {
            // SAFETY: one layout is written.
            let layout = library.made("cublasLtMatrixLayoutCreate", |lt, made| unsafe {
                (lt.create_layout)(made, dtype, rows as u64, columns as u64, stride as i64)
            })?;
            Ok::<_, OpsError>(own(layout, lt.destroy_layout))
        };
        let dtype = match shape.dtype {
            ComputeDtype::F32 => R_32F,
            ComputeDtype::Bf16 => R_16BF,
            ComputeDtype::F16 => R_16F,
        };
        let layouts = [
            layout(dtype, shape.inputs, shape.outputs, shape.w_stride)?,
            layout(dtype, shape.inputs, shape.rows, shape.x_stride)?,
            layout(R_32F, shape.outputs, shape.rows, shape.y_stride)?,
        ];
        let preference = preference(library, workspace_bytes)?;
        let choice = best(handle, &description, &layouts, &preference)?;
        let choice = choice.filter(|choice| choice.state == 0 && choice.workspace_bytes <= workspace_bytes);
        let library = Arc::clone(library);
        Ok(choice.map(|Choice { algorithm, .. }| Self { library, description, layouts, algorithm }))
    }

    /// Put it on the stream of steps.
    ///
    /// # Safety
    /// `w`, `x` and `y` must be addresses of such matrices, multiples of 16, and `workspace` that of as many bytes as it was
    /// chosen for, which nothing else on the stream uses meanwhile; all are freed on the stream.
    pub(in super::super) unsafe fn launch(
        &self,
        handle: &CublasLtHandle,
        [w, x, y]: [u64; 3],
        (workspace, workspace_bytes): (u64, usize),
    ) -> Result<(), OpsError> {
        handle.device.enter()?;
        let (one, zero) = (1.0_f32, 0.0_f32);
        let at = |address: u64| address as *mut c_void;
        let [w_layout, x_layout, y_layout] = &self.layouts;
        // SAFETY: numbers of the host are read before the call returns; what is on the device is the caller's promise.
        let status = unsafe {
            (self.library.functions.multiply)(
                handle.handle,
                self.description.what,
                ptr::from_ref(&one).cast(),
                at(w),
                w_layout.what,
                at(x),
                x_layout.what,
                ptr::from_ref(&zero).cast(),
                at(y),
                y_layout.what,
                at(y),
                y_layout.what,
                &raw const self.algorithm,
                at(workspace),
                workspace_bytes,
                handle.device.compute.0.cast(),
            )
        };
        self.library.outcome("cublasLtMatmul", status)
    }
}

/// What the library may take for granted, and must not do.
fn preference(library: &Arc<CublasLt>, workspace_bytes: usize) -> Result<Owned, OpsError> {
    let lt = &library.functions;
    // SAFETY: one preference is written.
    let preference =
        library.made("cublasLtMatmulPreferenceCreate", |lt, made| unsafe { (lt.create_preference)(made) })?;
    let preference = Owned { what: preference, destroy: lt.destroy_preference };
    set(library, lt.set_preference, &preference, PREF_MAX_WORKSPACE_BYTES, &(workspace_bytes as u64))?;
    set(library, lt.set_preference, &preference, PREF_REDUCTION_SCHEME_MASK, &REDUCTION_COMPUTE_TYPE)?;
    for alignment in PREF_MIN_ALIGNMENTS {
        set(library, lt.set_preference, &preference, alignment, &ALIGNMENT)?;
    }
    Ok(preference)
}

/// The first of the library's choices.
fn best(
    handle: &CublasLtHandle,
    description: &Owned,
    [w, x, y]: &[Owned; 3],
    preference: &Owned,
) -> Result<Option<Choice>, OpsError> {
    const NOT_SUPPORTED: c_int = 15;
    let (mut choice, mut found) = (Choice::default(), 0);
    // SAFETY: everything lives; room for one choice.
    let status = unsafe {
        (handle.library.functions.choose)(
            handle.handle,
            description.what,
            w.what,
            x.what,
            y.what,
            y.what,
            preference.what,
            1,
            &raw mut choice,
            &raw mut found,
        )
    };
    if status == NOT_SUPPORTED {
        return Ok(None);
    }
    handle.library.outcome("cublasLtMatmulAlgoGetHeuristic", status)?;
    Ok((found > 0).then_some(choice))
}

fn set<T>(
    library: &CublasLt,
    function: unsafe extern "C" fn(Opaque, Attribute, *const c_void, usize) -> c_int,
    what: &Owned,
    attribute: Attribute,
    value: &T,
) -> Result<(), OpsError> {
    // SAFETY: the attribute has the value's type, which is copied.
    let status = unsafe { function(what.what, attribute, ptr::from_ref(value).cast(), size_of::<T>()) };
    library.outcome("cublasLt…SetAttribute", status)
}
