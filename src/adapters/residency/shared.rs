//! The decisions behind their lock, and who is told of them.

use std::sync::{Arc, Mutex};

use super::super::events::{EventLog, Signals};
use super::super::sync::lock;
use super::state::{self, State};

/// What a [`Residency`](super::Residency) and all that it handed out share.
pub(super) struct Shared {
    pub(super) state: Mutex<State>,
    pub(super) events: Arc<EventLog>,
}

impl Shared {
    /// Run `change` under the lock, then tell the observers what it brought about.
    pub(super) fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let (result, signals) = self.change_quietly(change);
        self.events.ring(signals);
        result
    }

    /// Run `change` under the lock, for a caller that holds one of its own: it tells the observers when it has let go.
    pub(super) fn change_quietly<T>(&self, change: impl FnOnce(&mut State) -> T) -> (T, Signals) {
        let mut state = lock(&self.state);
        let result = change(&mut state);
        let state::Signals { events, removals, wakers } = state.take_signals();
        // Under the lock, so that the log has the order in which things happened.
        for (version, kind) in &events {
            self.events.push(None, *version, *kind);
        }
        (result, Signals { events: !events.is_empty(), removals, garbage: false, wakers })
    }
}
