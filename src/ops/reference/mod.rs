//! The definition of every op, slow and obvious, in f32.
