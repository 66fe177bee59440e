//! Compiling on a toy base: what is refused and by which name, what is accepted and to what it compiles. That the
//! numbers are PEFT's is for the golden tests.

mod config;
mod experts;
mod folds;
mod heads;
mod mutations;
mod prompts;
mod road;
mod rotations;
mod saved;
mod shira;
mod tensors;
mod toy;
mod vocabulary;
