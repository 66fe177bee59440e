//! Says when a step hangs. A thread that hangs in a kernel or a driver cannot be ended from outside, so all that can be
//! done is to tell: first the balancers, and, when there is no hope left, whoever restarts the process.

use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior, interval};

use super::pulse::{EnginePulse, StepInFlight};

/// How many looks fit into the time after which a step counts as hanging.
const LOOKS: u32 = 8;

/// How long a step may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WatchdogLimits {
    /// After this it hangs.
    pub stuck: Duration,
    /// After this it is not coming back; `None` waits for ever.
    pub hopeless: Option<Duration>,
}

/// What the watchdog saw.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Alarm {
    /// A step hangs. Said once per step.
    Stuck {
        /// Which.
        step: StepInFlight,
        /// For how long at least.
        waited: Duration,
    },
    /// It has ended after all.
    Moving {
        /// Which.
        step: StepInFlight,
        /// How long it took, about.
        took: Duration,
    },
    /// It is not coming back. Nothing follows.
    Hopeless {
        /// Which.
        step: StepInFlight,
        /// For how long at least.
        waited: Duration,
    },
}

/// Watch until the engine ends or a step is hopeless. A step is found between one and one and an eighth of its limit.
pub async fn watch(pulse: EnginePulse, limits: WatchdogLimits, mut tell: impl FnMut(Alarm)) {
    let mut clock = interval((limits.stuck / LOOKS).max(Duration::from_millis(1)));
    clock.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // The step seen last, since when, and whether it counts as hanging.
    let mut seen: Option<(StepInFlight, Instant, bool)> = None;
    while !pulse.has_ended() {
        clock.tick().await;
        let now = pulse.in_flight();
        match &mut seen {
            Some((step, since, stuck)) if now.is_some_and(|now| now.serial == step.serial) => {
                let waited = since.elapsed();
                if !*stuck && waited >= limits.stuck {
                    *stuck = true;
                    tell(Alarm::Stuck { step: *step, waited });
                }
                if limits.hopeless.is_some_and(|limit| waited >= limit) {
                    tell(Alarm::Hopeless { step: *step, waited });
                    return;
                }
            }
            _ => {
                if let Some((step, since, true)) = seen {
                    tell(Alarm::Moving { step, took: since.elapsed() });
                }
                seen = now.map(|step| (step, Instant::now(), false));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    const LIMITS: WatchdogLimits =
        WatchdogLimits { stuck: Duration::from_secs(10), hopeless: Some(Duration::from_secs(100)) };

    /// What a watchdog has said so far, in words.
    #[derive(Clone, Default)]
    struct Said(Arc<Mutex<Vec<&'static str>>>);

    impl Said {
        fn take(&self) -> Vec<&'static str> {
            std::mem::take(&mut self.0.lock().unwrap())
        }

        fn watch(&self, pulse: &EnginePulse, limits: WatchdogLimits) -> tokio::task::JoinHandle<()> {
            let said = self.clone();
            tokio::spawn(watch(pulse.clone(), limits, move |alarm| {
                let (word, step, time) = match alarm {
                    Alarm::Stuck { step, waited } => ("stuck", step, waited),
                    Alarm::Moving { step, took } => ("moving", step, took),
                    Alarm::Hopeless { step, waited } => ("hopeless", step, waited),
                };
                assert!(time >= Duration::from_secs(10), "{word} after {time:?}");
                assert_eq!((step.sequences, step.rows), (3, 40), "the facts of the step");
                said.0.lock().unwrap().push(word);
            }))
        }
    }

    async fn pass(seconds: u64) {
        tokio::time::sleep(Duration::from_secs(seconds)).await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_step_that_hangs_is_told_once_and_so_is_its_end() {
        let (pulse, said) = (EnginePulse::default(), Said::default());
        let watchdog = said.watch(&pulse, LIMITS);
        pulse.begin(3, 40);
        pass(9).await;
        assert!(said.take().is_empty(), "not yet");
        pass(5).await;
        assert_eq!(said.take(), ["stuck"]);
        pass(30).await;
        assert!(said.take().is_empty(), "once");
        pulse.rest();
        pass(5).await;
        assert_eq!(said.take(), ["moving"]);
        pulse.end();
        watchdog.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn steps_that_follow_each_other_and_an_engine_at_rest_do_not_hang() {
        let (pulse, said) = (EnginePulse::default(), Said::default());
        let watchdog = said.watch(&pulse, LIMITS);
        for _ in 0..50 {
            pulse.begin(3, 40);
            pass(4).await;
        }
        pulse.rest();
        pass(1000).await;
        assert!(said.take().is_empty());
        pulse.end();
        watchdog.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_step_that_never_ends_is_given_up_where_a_limit_says_so() {
        let (pulse, said) = (EnginePulse::default(), Said::default());
        pulse.begin(3, 40);
        said.watch(&pulse, LIMITS).await.unwrap();
        assert_eq!(said.take(), ["stuck", "hopeless"]);
        let patient = said.watch(&pulse, WatchdogLimits { hopeless: None, ..LIMITS });
        pass(100_000).await;
        assert_eq!(said.take(), ["stuck"]);
        pulse.end();
        patient.await.unwrap();
    }
}
