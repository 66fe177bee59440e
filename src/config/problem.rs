//! What is wrong with a configuration.

use std::fmt;
use std::path::PathBuf;

/// One problem, named by the flag to change.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigProblem {
    /// A number outside its range.
    #[error("{flag} is {value}, allowed are {min} to {max}")]
    OutOfRange {
        /// The flag.
        flag: &'static str,
        /// What was given.
        value: u64,
        /// Smallest allowed.
        min: u64,
        /// Largest allowed.
        max: u64,
    },
    /// A value that cannot be read.
    #[error("{flag} is {value:?}, expected {expected}")]
    Invalid {
        /// The flag.
        flag: &'static str,
        /// What was given.
        value: String,
        /// What it should look like.
        expected: &'static str,
    },
    /// A folder that does not exist.
    #[error("{flag}: there is no folder {}", path.display())]
    NoFolder {
        /// The flag.
        flag: &'static str,
        /// The folder.
        path: PathBuf,
    },
    /// The same name twice.
    #[error("{flag} names {name:?} twice")]
    Duplicate {
        /// The flag.
        flag: &'static str,
        /// The name.
        name: String,
    },
    /// A number that another flag's number forbids.
    #[error("{flag} is {value}, less than {other} with {other_value}")]
    LessThan {
        /// The flag.
        flag: &'static str,
        /// What was given.
        value: u64,
        /// The other flag.
        other: &'static str,
        /// Its value.
        other_value: u64,
    },
    /// Something this build cannot do.
    #[error("{flag} is {value:?}: {reason}")]
    Unsupported {
        /// The flag.
        flag: &'static str,
        /// What was given.
        value: String,
        /// What is missing.
        reason: &'static str,
    },
    /// A default of this program is not a value of its own flag.
    #[error("a built-in default does not parse: {reason}")]
    Defaults {
        /// What the parser said.
        reason: String,
    },
    /// A default that the environment does not supply.
    #[error("{flag} has no default here: {reason}")]
    NoDefault {
        /// The flag.
        flag: &'static str,
        /// Why.
        reason: &'static str,
    },
}

/// Every problem of a configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigProblems(pub Vec<ConfigProblem>);

impl fmt::Display for ConfigProblems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.0.iter().enumerate() {
            if index > 0 {
                writeln!(f)?;
            }
            write!(f, "{problem}")?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigProblems {}
