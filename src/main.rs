//! The polydelta command.

fn main() {}
