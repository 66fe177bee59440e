//! What is wrong with a configuration.

use std::fmt;
use std::path::PathBuf;

use super::exit::Exit;

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
    #[error("{flag}: there is no folder {}{hint}", path.display())]
    NoFolder {
        /// The flag.
        flag: &'static str,
        /// The folder.
        path: PathBuf,
        /// What to do, where that can be guessed; else empty.
        hint: String,
    },
    /// A file that does not exist.
    #[error("{flag}: there is no file {}", path.display())]
    NoFile {
        /// The flag.
        flag: &'static str,
        /// The file.
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
    /// A value that its flag's parser does not take.
    #[error("{given_as} is {value:?}: {reason}")]
    Unreadable {
        /// The flag, or the place of an argument.
        flag: String,
        /// The flag or the variable that has the value.
        given_as: String,
        /// What was given.
        value: String,
        /// What is wrong with it, or what would be right.
        reason: String,
    },
    /// A flag at the end, or before another one.
    #[error("{flag} has no value")]
    NoValue {
        /// The flag.
        flag: String,
    },
    /// A word that is nothing here.
    #[error("there is no {word} here{}", meant.as_ref().map(|meant| format!("; is {meant} meant?")).unwrap_or_default())]
    Unknown {
        /// The word.
        word: String,
        /// What is spelled alike.
        meant: Option<String>,
    },
    /// A flag that may be given once.
    #[error("{flag} is given more than once")]
    Repeated {
        /// The flag.
        flag: String,
    },
    /// An argument that must be given.
    #[error("{what} is missing")]
    Missing {
        /// The argument as help shows it.
        what: String,
    },
    /// Two flags that exclude each other.
    #[error("{flag} and {other} exclude each other")]
    Conflict {
        /// One flag.
        flag: &'static str,
        /// The other.
        other: &'static str,
    },
    /// A flag that makes sense only beside another.
    #[error("{flag} means nothing without {other}")]
    Needs {
        /// The flag.
        flag: &'static str,
        /// The one it needs.
        other: &'static str,
    },
    /// A model that is named in a way this program does not read.
    #[error("{flag} is {value:?}: {hint}")]
    Model {
        /// The flag.
        flag: &'static str,
        /// What was given.
        value: String,
        /// What to do.
        hint: String,
    },
    /// Something that is there and is not served.
    #[error("{flag} is {value:?}: {hint}")]
    NotServed {
        /// The flag.
        flag: &'static str,
        /// What was given.
        value: String,
        /// What to do.
        hint: String,
    },
    /// A problem of a value that a variable has.
    #[error("{variable}: {problem}")]
    OfVariable {
        /// The variable.
        variable: String,
        /// What is wrong, as it is said of the flag.
        problem: Box<ConfigProblem>,
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

impl ConfigProblem {
    fn exit(&self) -> Exit {
        match self {
            Self::NoFolder { .. } | Self::NoFile { .. } => Exit::NotFound,
            Self::NotServed { .. } => Exit::Rejected,
            Self::OfVariable { problem, .. } => problem.exit(),
            _ => Exit::Usage,
        }
    }

    /// The flag it is about, where it is about one.
    #[must_use]
    pub fn flag(&self) -> Option<&str> {
        match self {
            Self::OutOfRange { flag, .. }
            | Self::Invalid { flag, .. }
            | Self::NoFolder { flag, .. }
            | Self::NoFile { flag, .. }
            | Self::Duplicate { flag, .. }
            | Self::LessThan { flag, .. }
            | Self::Unsupported { flag, .. }
            | Self::Conflict { flag, .. }
            | Self::Needs { flag, .. }
            | Self::Model { flag, .. }
            | Self::NotServed { flag, .. }
            | Self::NoDefault { flag, .. } => Some(flag),
            Self::OfVariable { problem, .. } => problem.flag(),
            Self::Unreadable { flag, .. } | Self::NoValue { flag } | Self::Repeated { flag } => Some(flag),
            Self::Unknown { .. } | Self::Missing { .. } | Self::Defaults { .. } => None,
        }
    }
}

/// Every problem of a configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigProblems(pub Vec<ConfigProblem>);

impl ConfigProblems {
    /// The exit code: [`Exit::NotFound`] where nothing is wrong but that what was named does not exist, and
    /// [`Exit::Rejected`] where it exists and is not served.
    #[must_use]
    pub fn exit(&self) -> Exit {
        match self.0.split_first() {
            Some((first, rest)) if rest.iter().all(|problem| problem.exit() == first.exit()) => first.exit(),
            _ => Exit::Usage,
        }
    }
}

impl fmt::Display for ConfigProblems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0[..] {
            [only] => write!(f, "{only}"),
            several => {
                write!(f, "{} things are wrong with the configuration", several.len())?;
                several.iter().try_for_each(|problem| write!(f, "\n  {problem}"))
            }
        }
    }
}

impl std::error::Error for ConfigProblems {}
