//! What the engine holds for others and gives back.

use crate::types::AdapterFault;

/// Holds the adapter of a request on the device until the engine has let go of the request.
pub trait HeldAdapter: Send {
    /// How the request went, where that says something of the adapter. Said before it is dropped.
    fn judge(&mut self, verdict: Result<(), AdapterFault>);
}

/// Whatever must stay alive until the engine has let go of a request: its adapter's lease.
pub type Lease = Box<dyn HeldAdapter>;

/// What a slot held. Dropping it may take longer than a step.
pub type Leftover = Box<dyn Send>;
