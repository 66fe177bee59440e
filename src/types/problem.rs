//! What went wrong, said once for every protocol.
//!
//! A room's error knows what happened, and says it as a [`Problem`]; a door knows how its protocol says such a thing.
//! Neither looks into the other: an error that is new gets its class and reason beside it, a protocol that is new is one
//! match over [`Class`] and [`Subject`].

use std::error::Error;
use std::fmt::Display;
use std::time::Duration;

/// What kind of problem it is, by what is to be done about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Class {
    /// The request cannot be meant, whatever the server holds: change it.
    Invalid,
    /// It goes on somewhere else than where it stopped: go on from there.
    OutOfRange,
    /// More at once than the door takes.
    TooLarge,
    /// What it names is not there.
    NotFound,
    /// What it would make is there.
    AlreadyExists,
    /// Somebody else changed it meanwhile: look again.
    Conflict,
    /// The client took too long to send or to read.
    TooSlow,
    /// Something else must change first.
    Unmet,
    /// Something is used up, for now or until somebody makes room.
    Exhausted,
    /// This server does not do that.
    Unsupported,
    /// It may be asked again, here or elsewhere.
    Unavailable,
    /// The client's deadline has passed.
    DeadlineExceeded,
    /// What was stored is damaged.
    DataLoss,
    /// A defect, or a machine that fails: the log has the cause.
    Internal,
}

/// What a problem is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Subject {
    /// What is wrong of what was sent: the path of a field as the protobuf spells it, or a field or tensor of an upload.
    Field(String),
    /// An adapter, by name.
    Adapter(String),
    /// An upload, by id.
    Upload(String),
    /// What must change before it can work.
    Condition {
        /// UPPER_SNAKE and stable, e.g. `DEVICE_MEMORY`.
        kind: &'static str,
        /// Whose condition it is.
        of: String,
    },
    /// What is used up, where trying again does not help.
    Quota(&'static str),
}

/// For the operator's log; no client sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// What was being done, or what is wrong.
    pub what: &'static str,
    /// The error and its causes.
    pub error: String,
}

/// One thing that went wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Its kind.
    pub class: Class,
    /// UPPER_SNAKE and stable: programs match on it.
    pub reason: &'static str,
    /// For people. Says nothing that only the operator may know.
    pub message: String,
    /// What it is about, most telling first.
    pub subjects: Vec<Subject>,
    /// The variable parts of the message by name, for programs. Each name once.
    pub numbers: Vec<(&'static str, String)>,
    /// After how long it may be tried again without any other change. `None`: it would not help, or nobody knows.
    pub retry: Option<Duration>,
    /// What the log is to have of it.
    pub report: Option<Report>,
}

/// An error that can say what it is to whoever asked.
pub trait ToProblem: Error + Send + Sync {
    /// As a problem, its numbers included.
    fn to_problem(&self) -> Problem;
}

impl Problem {
    /// A problem of which nothing else is known.
    #[must_use]
    pub fn new(class: Class, reason: &'static str, message: impl Display) -> Self {
        let (subjects, numbers) = (Vec::new(), Vec::new());
        Self { class, reason, message: message.to_string(), subjects, numbers, retry: None, report: None }
    }

    /// A field that is wrong.
    #[must_use]
    pub fn invalid(reason: &'static str, field: impl Display, message: impl Display) -> Self {
        Self::new(Class::Invalid, reason, message).about(Subject::Field(field.to_string()))
    }

    /// A quota that is used up; trying again does not help.
    #[must_use]
    pub fn quota(reason: &'static str, quota: &'static str, message: impl Display) -> Self {
        Self::new(Class::Exhausted, reason, message).about(Subject::Quota(quota))
    }

    /// The server ends: the request may be made again, elsewhere.
    #[must_use]
    pub fn draining() -> Self {
        Self::new(Class::Unavailable, "SERVER_DRAINING", "the server is shutting down")
    }

    /// The client's deadline.
    #[must_use]
    pub fn deadline_exceeded() -> Self {
        Self::new(Class::DeadlineExceeded, "DEADLINE_EXCEEDED", "the deadline of the call has passed")
    }

    /// A defect, or a machine that fails. Says no more than that something failed; the log gets `error` and its causes.
    #[must_use]
    pub fn internal(what: &'static str, error: &dyn Error) -> Self {
        Self::new(Class::Internal, "INTERNAL", "internal error; the server's log has the cause").report(what, error)
    }

    /// What it is about; several may be said, most telling first.
    #[must_use]
    pub fn about(mut self, subject: Subject) -> Self {
        self.subjects.push(subject);
        self
    }

    /// A variable part of the message.
    #[must_use]
    pub fn with(mut self, name: &'static str, value: impl Display) -> Self {
        self.numbers.push((name, value.to_string()));
        self
    }

    /// When to try again.
    #[must_use]
    pub fn retry_after(self, delay: Duration) -> Self {
        Self { retry: Some(delay), ..self }
    }

    /// For the log: `error` and its causes.
    #[must_use]
    pub fn report(self, what: &'static str, error: &dyn Error) -> Self {
        let mut chain = error.to_string();
        let mut source = error.source();
        while let Some(cause) = source {
            chain = format!("{chain}: {cause}");
            source = cause.source();
        }
        Self { report: Some(Report { what, error: chain }), ..self }
    }

    /// In the words of an error that has this one as its cause.
    #[must_use]
    pub fn saying(self, message: impl Display) -> Self {
        Self { message: message.to_string(), ..self }
    }

    /// The same problem met in an adapter that was stored long ago. It was accepted once; that this server does not take
    /// it, with a lower limit than then or another version of the program, is not in the request that names it.
    #[must_use]
    pub fn of_stored(self) -> Self {
        if self.class != Class::Invalid {
            return self;
        }
        let unmet = |subject| match subject {
            Subject::Field(of) => Subject::Condition { kind: "ADAPTER", of },
            subject => subject,
        };
        let subjects = self.subjects.into_iter().map(unmet).collect();
        Self { class: Class::Unmet, subjects, ..self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("outer")]
    struct Outer(#[source] std::num::ParseIntError);

    #[test]
    fn an_internal_problem_keeps_its_causes_for_the_log() {
        let cause = "x".parse::<u32>().unwrap_err();
        let problem = Problem::internal("counting", &Outer(cause.clone()));
        assert_eq!(problem.report, Some(Report { what: "counting", error: format!("outer: {cause}") }));
        assert!(!problem.message.contains("outer"), "{problem:?}");
    }

    #[test]
    fn what_was_wrong_in_an_upload_is_a_condition_of_a_stored_adapter() {
        let refused = Problem::invalid("INVALID_CONFIG", "r", "r is 0").with("found", 0);
        let stored = refused.clone().of_stored();
        assert_eq!(stored.class, Class::Unmet);
        assert_eq!(stored.subjects, [Subject::Condition { kind: "ADAPTER", of: "r".to_owned() }]);
        assert_eq!((stored.reason, &stored.numbers), (refused.reason, &refused.numbers));
        let full = Problem::quota("DISK_FULL", "disk", "the disk is full");
        assert_eq!(full.clone().of_stored(), full);
    }
}
