//! What the operator asked for (flags and POLYDELTA_* variables) and what the server needs, checked at once. The only room that reads the environment.
