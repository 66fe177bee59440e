//! An adapter as clients see it now.

use tonic::Status;

use super::super::{convert, pb, status};
use crate::adapters::AdapterRegistry;
use crate::types::AdapterName;

pub(super) fn describe(registry: &AdapterRegistry, name: &AdapterName) -> Result<pb::Adapter, Status> {
    registry.get(name).map(|info| convert::adapter(&info)).map_err(|error| status::of(&error))
}
