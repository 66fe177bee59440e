//! The house: puts the rooms together for each verb of the command line.

pub mod inspect;
