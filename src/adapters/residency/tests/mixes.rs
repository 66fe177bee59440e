//! Versions without files of their own.

use super::*;
use crate::adapters::MixPart;

impl Device {
    /// A wish for the mix of two versions.
    fn want_mix(&self, parts: [u8; 2], bytes: u64) -> Want {
        let part = |id| MixPart { lease: self.leases.lease(version(id)), weight: 0.5 };
        self.residency.want(self.leases.lease_mix(parts.map(part).into()), bytes, ClientKey::LOCAL)
    }

    fn run_mix(&self, parts: [u8; 2], bytes: u64) -> ResidentLease {
        let want = self.want_mix(parts, bytes);
        if let Acquire::Load(ticket) = want.poll(Waker::noop()).unwrap() {
            ticket.begin_install(Arc::new(facts(bytes))).unwrap().complete();
        }
        ready(&want)
    }

    /// Carry out what has to leave.
    fn remove_all(&self) {
        while let Some(removal) = self.residency.take_removal() {
            removal.done();
        }
    }
}

#[test]
fn a_mix_is_loaded_once_and_takes_a_slot_like_any() {
    let device = Device::new(2, 100);
    let (first, second) = (device.run_mix([1, 2], 10), device.run_mix([2, 1], 10));
    assert_eq!((first.version(), first.slot()), (second.version(), second.slot()));
    assert_eq!((device.residency.stats().loads, device.state(1)), (1, AdapterState::Stored));
    let mix = first.version();
    drop((first, second));
    // It goes like any other, and its parts may be there at the same time.
    let held = [device.run(1, 10), device.run(3, 10)];
    assert_eq!(device.residency.status(mix).state, AdapterState::Stored);
    assert_eq!(device.residency.take_forgotten(), [mix]);
    assert!(device.residency.status(mix).facts.is_none(), "nothing is known of what cannot be asked for by name");
    drop(held);
    assert_eq!(device.leases.total(), 0);
}

#[test]
fn a_mix_leaves_with_the_last_name_of_a_part() {
    let device = Device::new(3, 100);
    let running = device.run_mix([1, 2], 10);
    let mix = running.version();
    drop(device.run_mix([1, 3], 10));
    drop(device.run_mix([2, 3], 10));
    device.events.ring(device.residency.set_retired(version(1), true));
    device.remove_all();
    let stats = device.residency.stats();
    assert_eq!((stats.resident, device.residency.status(mix).state), (2, AdapterState::Resident), "one is in use");
    drop(running);
    assert_eq!(device.residency.status(mix).state, AdapterState::Evicting);
    device.remove_all();
    assert_eq!((device.residency.stats().resident, device.residency.take_forgotten().len()), (1, 2));
    // One that was wanted before the name was gone comes, and goes at once.
    let want = device.want_mix([1, 2], 10);
    ticket(&want).begin_install(Arc::new(facts(10))).unwrap().complete();
    drop(ready(&want));
    assert_eq!(device.residency.status(mix).state, AdapterState::Evicting);
}

#[test]
fn nothing_is_kept_of_mixes_that_fail_or_are_given_up() {
    let device = Device::new(2, 100);
    let want = device.want_mix([1, 2], 10);
    let mix = want.version();
    ticket(&want).fail(Arc::new(broken("no")));
    assert!(device.residency.status(mix).last_error.is_some(), "while somebody asks");
    assert!(matches!(want.poll(Waker::noop()), Err(AdapterError::LoadFailed { .. })));
    drop(want);
    assert!(device.residency.status(mix).last_error.is_none());
    let want = device.want_mix([1, 2], 10);
    // Larger than was thought: the true size is known for the next try.
    let held = device.run(3, 90);
    assert!(matches!(ticket(&want).begin_install(Arc::new(facts(20))), Err(AdapterError::Outgrown { .. })));
    assert!(pending(&want), "it waits for room of its true size");
    drop(held);
    assert_eq!(ticket(&want).begin_install(Arc::new(facts(20))).unwrap().evict().len(), 1);
    assert!(device.residency.status(mix).facts.is_some());
    drop(want);
    assert!(device.residency.status(mix).facts.is_none());
    // A load that is given up when nobody waits any more.
    let want = device.want_mix([1, 2], 10);
    let load = ticket(&want);
    drop(want);
    drop(load);
    assert!(device.residency.status(mix).last_error.is_none());
    assert_eq!(device.leases.total(), 0);
}
