//! What a step puts on a device, by its launches as the backend makes them, and what that costs at the least.

pub(crate) mod abi;
pub(crate) mod costs;
pub(crate) mod device;
pub(crate) mod plan;
pub(crate) mod report;
pub(crate) mod tally;
