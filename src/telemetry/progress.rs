//! Progress of something long that a person waits for: a bar on a terminal, else one log line at the end; and a sign of
//! life while nobody knows how long it takes.

use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Progress over a known number of bytes. Dropping it takes the bar away.
#[derive(Debug)]
pub struct Progress {
    label: String,
    bytes: u64,
    done: u64,
    started: Instant,
    bar: Option<ProgressBar>,
}

/// Between two pictures of the spinner.
const TICK: Duration = Duration::from_millis(100);
const STYLE: &str = "{spinner} {msg} [{bar:30}] {bytes}/{total_bytes} {bytes_per_sec} {eta}";

impl Progress {
    /// Begin. `terminal` tells whether standard error is one.
    #[must_use]
    pub fn bytes(label: &str, bytes: u64, terminal: bool) -> Self {
        let bar = terminal.then(|| {
            let bar = ProgressBar::with_draw_target(Some(bytes), ProgressDrawTarget::stderr());
            let style = ProgressStyle::with_template(STYLE).unwrap_or_else(|_| ProgressStyle::default_bar());
            let bar = bar.with_style(style.progress_chars("=> ")).with_message(label.to_owned());
            // It lives on where nothing moves, as while a server checks what it has got.
            bar.enable_steady_tick(TICK);
            bar
        });
        Self { label: label.to_owned(), bytes, done: 0, started: Instant::now(), bar }
    }

    /// This many more bytes are done.
    pub fn advance(&mut self, bytes: u64) {
        self.done = self.done.saturating_add(bytes);
        if let Some(bar) = &self.bar {
            bar.set_position(self.done);
        }
    }

    /// Bytes done so far, and in all.
    #[must_use]
    pub fn position(&self) -> (u64, u64) {
        (self.done, self.bytes)
    }

    /// All is done: take the bar away, or log one line where there is none.
    pub fn finish(mut self) {
        match self.bar.take() {
            Some(bar) => bar.finish_and_clear(),
            None => {
                let seconds = self.started.elapsed().as_secs_f64();
                tracing::info!(bytes = self.done, seconds, "{} done", self.label);
            }
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.abandon();
        }
    }
}

/// A sign of life on a terminal: what is being waited for, and since when. Nothing elsewhere.
#[derive(Debug)]
pub struct Spinner {
    bar: Option<ProgressBar>,
}

impl Spinner {
    /// Begin to wait for `what`. `terminal` tells whether standard error is one that can be drawn over.
    #[must_use]
    pub fn start(what: &str, terminal: bool) -> Self {
        let bar = terminal.then(|| {
            let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
            let style = ProgressStyle::with_template("{spinner} {msg} {elapsed}");
            let bar = bar.with_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()));
            bar.set_message(what.to_owned());
            bar.enable_steady_tick(TICK);
            bar
        });
        Self { bar }
    }

    /// Something else is waited for now.
    pub fn now(&self, what: &str) {
        if let Some(bar) = &self.bar {
            bar.set_message(what.to_owned());
        }
    }

    /// It is over: take the sign away, so that what follows begins on a clean line.
    pub fn clear(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}

impl Drop for Spinner {
    fn drop(&mut self) {
        self.clear();
    }
}
