//! How a verb fails, and with which exit code.

use std::error::Error;
use std::io::ErrorKind;

use tonic::Code;

use super::bring::BringError;
use crate::config::Exit;
use crate::files::FileRefusal;
use crate::receipt::ReceiptError;

/// Why a verb failed.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// The server's answer.
    #[error("{}", describe(.0))]
    Status(#[from] Box<tonic::Status>),
    /// The address is no address.
    #[error("--server is {address:?}: {reason}")]
    BadAddress {
        /// As given.
        address: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// Nobody answers there.
    #[error(
        "no server answers at {address}: {}\n\
         `polydelta serve --model DIR` starts one and `polydelta demo` one with a model of its own; \
         --server or POLYDELTA_SERVER names another address",
        root_cause(source)
    )]
    Connect {
        /// As given.
        address: String,
        /// Why not.
        source: Box<tonic::transport::Error>,
    },
    /// A local file.
    #[error("{action} {path}: {source}")]
    File {
        /// What was being done.
        action: &'static str,
        /// To which file.
        path: String,
        /// The system's words.
        source: std::io::Error,
    },
    /// An adapter that cannot be had.
    #[error(transparent)]
    Bring(#[from] BringError),
    /// Writing to the terminal or pipe.
    #[error("writing the output: {0}")]
    Output(std::io::Error),
    /// `--timeout` has passed.
    #[error("no answer within --timeout")]
    TimedOut,
    /// Ctrl-C.
    #[error("interrupted")]
    Interrupted,
    /// The arguments contradict each other or the files they name.
    #[error("{0}")]
    Usage(#[from] UsageError),
    /// A receipt that is none, or is not as it was made.
    #[error("{path}: {source}")]
    Receipt {
        /// Where it is.
        path: String,
        /// What is wrong with it.
        source: ReceiptError,
    },
    /// A replayed answer is another one; the output says how.
    #[error("the answer is not the receipt's: {what}")]
    Differs {
        /// What differs.
        what: String,
    },
    /// What an answer was computed from is not on this server; the output says what is there.
    #[error("the receipt cannot be replayed on this server: {what}")]
    NotHere {
        /// What is another one, or missing.
        what: String,
    },
    /// The answer lacks what the protocol promises.
    #[error("the server's answer has no {missing}")]
    Incomplete {
        /// Name of the field.
        missing: &'static str,
    },
}

/// Arguments that cannot be followed.
#[derive(Debug, thiserror::Error)]
pub enum UsageError {
    /// A conversation that is none.
    #[error("{path} is no conversation: {reason}; expected a JSON array of {{\"role\": \"…\", \"content\": \"…\"}}")]
    Messages {
        /// As given.
        path: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Prompt bytes that are no text.
    #[error("the prompt is not UTF-8")]
    PromptEncoding,
}

impl From<tonic::Status> for CliError {
    fn from(status: tonic::Status) -> Self {
        // tonic gives up by itself, and says that the call was cancelled.
        let mut cause = status.source();
        while let Some(inner) = cause {
            if inner.is::<tonic::TimeoutExpired>() {
                return Self::TimedOut;
            }
            cause = inner.source();
        }
        Self::Status(Box::new(status))
    }
}

impl CliError {
    /// The exit code.
    #[must_use]
    pub fn exit(&self) -> Exit {
        match self {
            Self::Status(status) if is_a_strangers(status) => Exit::Unavailable,
            Self::Status(status) => exit_of(status.code()),
            Self::Bring(error) => error.exit(),
            Self::BadAddress { .. } | Self::Usage(_) => Exit::Usage,
            Self::Connect { .. } | Self::TimedOut => Exit::Unavailable,
            Self::File { source, .. } if source.kind() == ErrorKind::NotFound => Exit::NotFound,
            Self::File { source, .. } if FileRefusal::of(source).is_some() => Exit::Rejected,
            Self::File { .. } | Self::Output(_) | Self::Incomplete { .. } => Exit::Failure,
            Self::Interrupted => Exit::Interrupted,
            Self::Receipt { .. } => Exit::Rejected,
            Self::Differs { .. } => Exit::Differs,
            Self::NotHere { .. } => Exit::NotHere,
        }
    }
}

/// The innermost cause says more than that a transport failed.
fn root_cause(error: &tonic::transport::Error) -> String {
    let mut cause: &dyn Error = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause.to_string()
}

/// The exit code of a status.
#[must_use]
pub fn exit_of(code: Code) -> Exit {
    match code {
        Code::Ok => Exit::Ok,
        Code::NotFound => Exit::NotFound,
        Code::Unavailable | Code::ResourceExhausted | Code::DeadlineExceeded => Exit::Unavailable,
        Code::InvalidArgument
        | Code::AlreadyExists
        | Code::FailedPrecondition
        | Code::Aborted
        | Code::OutOfRange
        | Code::PermissionDenied
        | Code::Unauthenticated
        | Code::Unimplemented => Exit::Rejected,
        Code::Cancelled | Code::Unknown | Code::Internal | Code::DataLoss => Exit::Failure,
    }
}

/// The answer of a web server, a proxy or another gRPC service. Our own say why, always.
fn is_a_strangers(status: &tonic::Status) -> bool {
    let not_grpc = status.message().starts_with("grpc-status header missing");
    not_grpc || (status.code() == Code::Unimplemented && status.details().is_empty())
}

fn describe(status: &tonic::Status) -> String {
    use tonic_types::StatusExt;
    if is_a_strangers(status) {
        return format!(
            "what answers there is no polydelta server, or one that does not know this call ({}); --server or \
             POLYDELTA_SERVER names another address",
            if status.message().is_empty() { "unimplemented" } else { status.message() }
        );
    }
    let reason = status.get_details_error_info().map_or_else(|| format!("{:?}", status.code()), |info| info.reason);
    format!("{} [{reason}]", status.message())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_are_the_documented_ones() {
        let of = |code| CliError::from(tonic::Status::new(code, "x")).exit();
        assert_eq!(of(Code::NotFound), Exit::NotFound);
        assert_eq!(of(Code::Unavailable), Exit::Unavailable);
        assert_eq!(of(Code::InvalidArgument), Exit::Rejected);
        assert_eq!(of(Code::Internal), Exit::Failure);
        assert_eq!(CliError::BadAddress { address: "x".into(), reason: "y" }.exit(), Exit::Usage);
        let file = |kind: ErrorKind| CliError::File { action: "reading", path: "x".into(), source: kind.into() };
        assert_eq!(file(ErrorKind::NotFound).exit(), Exit::NotFound);
        assert_eq!(file(ErrorKind::PermissionDenied).exit(), Exit::Failure);
        let web = "grpc-status header missing, mapped from HTTP status code 404";
        for stranger in [tonic::Status::unimplemented(web), tonic::Status::unimplemented("")] {
            let error = CliError::from(stranger);
            assert_eq!(error.exit(), Exit::Unavailable);
            assert!(error.to_string().contains("--server"), "{error}");
        }
        assert_eq!(CliError::Interrupted.exit() as u8, 130);
    }
}
