//! Which KV blocks hold what: the block pool, block tables and the prefix index. Counts and ids only, never a tensor.
