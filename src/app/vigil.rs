//! Keeps watch over the engine: the server ends with it, and health follows its steps.

use std::sync::{Arc, OnceLock};

use tokio::sync::watch;

use super::error::AppError;
use crate::config::WatchdogConfig;
use crate::engine::{Alarm, EngineEnd, EnginePulse, WatchdogLimits, watch as watch_steps};
use crate::wire::Lifecycle;

/// What came of the engine.
pub(super) struct Vigil {
    ended: watch::Receiver<Option<EngineEnd>>,
    /// Set where a step did not end, and the server has to end without its engine.
    given_up: Arc<OnceLock<AppError>>,
}

impl Vigil {
    /// Begin. Must be called within a tokio runtime.
    pub(super) fn begin(
        ended: watch::Receiver<Option<EngineEnd>>,
        pulse: EnginePulse,
        config: WatchdogConfig,
        lifecycle: &Lifecycle,
    ) -> Self {
        let given_up = Arc::new(OnceLock::new());
        let limits = WatchdogLimits { stuck: config.step_timeout, hopeless: config.step_abort_timeout };
        let (watched, reason) = (lifecycle.clone(), Arc::clone(&given_up));
        tokio::spawn(watch_steps(pulse, limits, move |alarm| heed(alarm, &watched, &reason)));
        tokio::spawn(end_with_engine(ended.clone(), lifecycle.clone()));
        Self { ended, given_up }
    }

    /// Why the engine cannot go on; `None` while it can.
    pub(super) fn failure(&self) -> Option<AppError> {
        if let Some(AppError::EngineStuck { sequences, rows, waited }) = self.given_up.get() {
            return Some(AppError::EngineStuck { sequences: *sequences, rows: *rows, waited: *waited });
        }
        let gone = || self.ended.has_changed().is_err();
        let reason = match &*self.ended.borrow() {
            Some(EngineEnd::Stopped) => "it was told to".to_owned(),
            Some(EngineEnd::DeviceBroken { error }) => format!("the device computes nothing any more: {error}"),
            Some(EngineEnd::Panicked { message }) => format!("it panicked: {message}"),
            // Its thread is gone and has not said why, which its end must not hide.
            None if gone() => "its thread is gone".to_owned(),
            None => return None,
        };
        Some(AppError::EngineStopped { reason })
    }

    /// Wait until the engine thread has ended.
    pub(super) async fn ended(&mut self) {
        // An error means that it has.
        let _ = self.ended.wait_for(Option::is_some).await;
    }
}

fn heed(alarm: Alarm, lifecycle: &Lifecycle, given_up: &OnceLock<AppError>) {
    match alarm {
        Alarm::Stuck { step, waited } => {
            tracing::error!(
                sequences = step.sequences,
                rows = step.rows,
                seconds = waited.as_secs(),
                "a step hangs; health says NOT_SERVING until it ends"
            );
            lifecycle.set_stuck(true);
        }
        Alarm::Moving { step, took } => {
            tracing::warn!(
                sequences = step.sequences,
                rows = step.rows,
                seconds = took.as_secs(),
                "the step has ended"
            );
            lifecycle.set_stuck(false);
        }
        Alarm::Hopeless { step, waited } => {
            let error = AppError::EngineStuck { sequences: step.sequences, rows: step.rows, waited };
            tracing::error!(%error, "the server ends without its engine");
            // Said once: nothing follows a hopeless step.
            let _ = given_up.set(error);
            lifecycle.cut();
        }
    }
}

/// Nothing could be answered any more.
async fn end_with_engine(mut ended: watch::Receiver<Option<EngineEnd>>, lifecycle: Lifecycle) {
    // An error means that the thread is gone without a word.
    let _ = ended.wait_for(Option::is_some).await;
    // Without effect where the server has ended before its engine, as it should.
    lifecycle.cut();
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::config::Exit;
    use crate::engine::StepInFlight;
    use crate::wire::Phase;

    fn limits() -> WatchdogConfig {
        WatchdogConfig { step_timeout: Duration::from_secs(10), step_abort_timeout: None }
    }

    fn vigil(lifecycle: &Lifecycle) -> (watch::Sender<Option<EngineEnd>>, Vigil) {
        let (sender, ended) = watch::channel(None);
        (sender, Vigil::begin(ended, EnginePulse::default(), limits(), lifecycle))
    }

    #[tokio::test(start_paused = true)]
    async fn however_the_engine_ends_the_server_ends_with_an_error() {
        let ends = [
            EngineEnd::Stopped,
            EngineEnd::DeviceBroken { error: "no memory".into() },
            EngineEnd::Panicked { message: "a defect".into() },
        ];
        for end in ends.into_iter().map(Some).chain([None]) {
            let lifecycle = Lifecycle::new();
            let (sender, mut vigil) = vigil(&lifecycle);
            assert!(vigil.failure().is_none(), "it runs");
            if end.is_some() {
                sender.send_replace(end.clone());
            }
            // Its thread is gone, with or without a word.
            drop(sender);
            lifecycle.reached(Phase::Cut).await;
            vigil.ended().await;
            let failure = vigil.failure().unwrap();
            assert_eq!(failure.exit(), Exit::Failure, "{end:?}");
            assert!(matches!(failure, AppError::EngineStopped { .. }), "{end:?}: {failure}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_step_that_is_not_coming_back_ends_the_server_with_its_facts() {
        let lifecycle = Lifecycle::new();
        let (_sender, vigil) = vigil(&lifecycle);
        let step = StepInFlight { serial: 7, sequences: 3, rows: 40 };
        let stuck = lifecycle.stuck();
        heed(Alarm::Stuck { step, waited: Duration::from_secs(10) }, &lifecycle, &vigil.given_up);
        assert!(*stuck.borrow());
        heed(Alarm::Moving { step, took: Duration::from_secs(11) }, &lifecycle, &vigil.given_up);
        assert!(!*stuck.borrow());
        assert_eq!((lifecycle.phase(), vigil.failure().is_none()), (Phase::Serving, true));
        heed(Alarm::Hopeless { step, waited: Duration::from_secs(300) }, &lifecycle, &vigil.given_up);
        assert_eq!(lifecycle.phase(), Phase::Cut);
        let failure = vigil.failure().unwrap();
        assert_eq!(failure.to_string(), "a step of 3 sequences and 40 rows has not ended for 300 s");
        assert_eq!(failure.exit(), Exit::Failure);
    }
}
