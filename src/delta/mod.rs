//! A delta is a small program: compilers from adapter files to a DeltaProgram, one file per PEFT method, and its residency on a device.

pub mod safetensors;
