//! The log: lines for people or JSON objects, on standard error.

use std::any::Any;
use std::backtrace::{Backtrace, BacktraceStatus};
use std::panic::PanicHookInfo;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::util::SubscriberInitExt;

use super::log_sink::LogSink;

/// How to log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogSettings {
    /// Levels, as `info` or `info,polydelta::engine=debug`.
    pub filter: String,
    /// One JSON object a line.
    pub json: bool,
    /// Colours in text; the caller knows whether standard error is a terminal and whether `NO_COLOR` is set.
    pub color: bool,
}

/// Why there is no log.
#[derive(Debug, thiserror::Error)]
pub enum LoggingError {
    /// The filter cannot be read.
    #[error("--log is {filter:?}: {reason}")]
    Filter {
        /// What was given.
        filter: String,
        /// What is wrong.
        reason: String,
    },
    /// The process logs already.
    #[error("logging is set up already")]
    AlreadySet,
}

/// Set up logging for the process, once, before anything is logged. Panics are logged too: std's own hook writes to
/// standard error itself, and a thread that panics while nobody reads there would hang with std's lock in hand.
///
/// # Errors
/// [`LoggingError`].
pub fn init_logging(settings: &LogSettings, sink: LogSink) -> Result<(), LoggingError> {
    subscriber(settings, sink)?.try_init().map_err(|_| LoggingError::AlreadySet)?;
    std::panic::set_hook(Box::new(log_panic));
    Ok(())
}

pub(super) fn log_panic(panic: &PanicHookInfo<'_>) {
    let thread = std::thread::current();
    let thread = thread.name().unwrap_or("unnamed");
    let location = panic.location().map(ToString::to_string).unwrap_or_default();
    let backtrace = Backtrace::capture();
    let backtrace = (backtrace.status() == BacktraceStatus::Captured).then(|| backtrace.to_string());
    let message = panic_message(panic.payload()).unwrap_or("a panic without a message");
    tracing::error!(thread, location, backtrace, "panicked: {message}");
}

/// The message of a panic, where it had one.
#[must_use]
pub fn panic_message(payload: &dyn Any) -> Option<&str> {
    let text = payload.downcast_ref::<&str>().copied();
    text.or_else(|| payload.downcast_ref::<String>().map(String::as_str))
}

/// The subscriber of these settings, writing where it is told.
pub(super) fn subscriber<W>(
    settings: &LogSettings,
    writer: W,
) -> Result<Box<dyn tracing::Subscriber + Send + Sync>, LoggingError>
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let filter = EnvFilter::builder()
        .parse(&settings.filter)
        .map_err(|error| LoggingError::Filter { filter: settings.filter.clone(), reason: error.to_string() })?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(writer);
    Ok(if settings.json {
        Box::new(builder.json().flatten_event(true).finish())
    } else {
        Box::new(builder.with_ansi(settings.color).finish())
    })
}
