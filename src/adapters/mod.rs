//! Which adapters exist and which are on the device: registry, versions, leases, budgets, residency, store. Sees names, sizes and digests, never a tensor.
