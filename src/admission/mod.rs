//! The gate: limits, validation, permits, deadlines, adapter leases. Turns a request into an EngineRequest or a refusal that names the field.
