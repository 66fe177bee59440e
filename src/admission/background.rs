//! Work that takes long, and those who wait for it.

use tokio::sync::oneshot;
use tracing::Span;

use crate::engine::AdapterInstaller;
use crate::types::{Problem, ToProblem};

/// Work that did not come back, since it panicked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("work in the background panicked")]
pub struct Lost;

impl ToProblem for Lost {
    fn to_problem(&self) -> Problem {
        Problem::internal("background work", self)
    }
}

/// Have `work` done where it takes no time from steps. It is not begun where nobody waits for it any more.
///
/// # Errors
/// [`Lost`].
pub(super) async fn in_background<T: Send + 'static>(
    installer: &dyn AdapterInstaller,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Lost> {
    let span = Span::current();
    let (done, result) = oneshot::channel();
    installer.in_background(Box::new(move || {
        if !done.is_closed() {
            // Fails where the client has left meanwhile.
            let _ = done.send(span.in_scope(work));
        }
    }));
    result.await.map_err(|_| Lost)
}

/// Have `work` done on a thread that may block.
///
/// # Errors
/// [`Lost`].
pub(crate) async fn off_reactor<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Lost> {
    let span = Span::current();
    tokio::task::spawn_blocking(move || span.in_scope(work)).await.map_err(|_| Lost)
}
