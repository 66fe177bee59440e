use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::Wake;

use super::*;
use crate::adapters::events::{AdapterEventKind, AdapterObserver};
use crate::adapters::lease::LeaseTable;
use crate::adapters::testing::facts;
use crate::types::AdapterFault;
use crate::types::AdapterSlot;

mod mixes;
mod properties;

struct Device {
    residency: Residency,
    leases: Arc<LeaseTable>,
    events: Arc<EventLog>,
}

fn version(id: u8) -> AdapterVersion {
    AdapterVersion([id; 32])
}

impl Device {
    fn new(slots: u32, bytes: u64) -> Self {
        let events = Arc::new(EventLog::new(64));
        let limits = ResidencyLimits { max_resident_adapters: slots, device_bytes: bytes };
        let residency = Residency::new(limits, Arc::clone(&events));
        Self { residency, leases: LeaseTable::new(Arc::clone(&events)), events }
    }

    fn want_of(&self, client: ClientKey, id: u8, bytes: u64) -> Want {
        self.residency.want(self.leases.lease(version(id)), bytes, client)
    }

    fn want(&self, id: u8, bytes: u64) -> Want {
        self.want_of(ClientKey::LOCAL, id, bytes)
    }

    /// Bring a version to the device and lease it.
    fn run(&self, id: u8, bytes: u64) -> ResidentLease {
        let want = self.want(id, bytes);
        if let Acquire::Load(ticket) = want.poll(Waker::noop()).unwrap() {
            ticket.begin_install(Arc::new(facts(bytes))).unwrap().complete();
        }
        ready(&want)
    }

    fn state(&self, id: u8) -> AdapterState {
        self.residency.status(version(id)).state
    }
}

/// Says that it was woken.
#[derive(Default)]
struct Alarm(AtomicBool);

impl Wake for Alarm {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::SeqCst);
    }
}

impl Alarm {
    /// Since it was last asked.
    fn rang(&self) -> bool {
        self.0.swap(false, Ordering::SeqCst)
    }
}

/// A disk that fails while a version is loaded.
fn broken(words: &str) -> AdapterError {
    AdapterError::io("reading")(std::io::Error::other(words))
}

fn ready(want: &Want) -> ResidentLease {
    match want.poll(Waker::noop()).unwrap() {
        Acquire::Ready(lease) => lease,
        other => panic!("{other:?}"),
    }
}

fn ticket(want: &Want) -> LoadTicket {
    match want.poll(Waker::noop()).unwrap() {
        Acquire::Load(ticket) => ticket,
        other => panic!("{other:?}"),
    }
}

fn pending(want: &Want) -> bool {
    matches!(want.poll(Waker::noop()).unwrap(), Acquire::Pending)
}

#[test]
fn the_first_want_loads_and_all_others_wait_for_it() {
    let device = Device::new(2, 100);
    let (first, second) = (device.want(1, 10), device.want(1, 10));
    let load = ticket(&first);
    assert!(pending(&second) && pending(&first));
    assert_eq!(device.state(1), AdapterState::Loading);
    let install = load.begin_install(Arc::new(facts(20))).unwrap();
    assert_eq!((install.slot(), install.evict()), (AdapterSlot(0), &[][..]));
    install.complete();
    let (a, b) = (ready(&first), ready(&second));
    assert_eq!((a.slot(), b.binding(&[1]).version), (AdapterSlot(0), version(1)));
    let stats = device.residency.stats();
    assert_eq!((stats.leases, stats.bytes_used, stats.slots_used, stats.loads), (2, 20, 1, 1));
}

#[test]
fn the_least_recently_used_idle_version_leaves() {
    let device = Device::new(2, 100);
    drop(device.run(1, 10));
    drop(device.run(2, 10));
    drop(device.run(1, 10));
    let want = device.want(3, 10);
    let install = ticket(&want).begin_install(Arc::new(facts(10))).unwrap();
    assert_eq!(install.evict(), [(AdapterSlot(1), version(2))]);
    assert_eq!((install.slot(), device.state(2)), (AdapterSlot(1), AdapterState::Evicting));
    install.complete();
    assert_eq!((device.state(1), device.state(2)), (AdapterState::Resident, AdapterState::Stored));
}

#[test]
fn as_many_leave_as_the_bytes_ask_for() {
    let device = Device::new(4, 100);
    (1..=3).for_each(|id| drop(device.run(id, 30)));
    let want = device.want(4, 65);
    let install = ticket(&want).begin_install(Arc::new(facts(65))).unwrap();
    assert_eq!(install.evict(), [(AdapterSlot(0), version(1)), (AdapterSlot(1), version(2))]);
    assert_eq!(install.slot(), AdapterSlot(3), "a free slot is taken before a victim's");
    install.complete();
    let stats = device.residency.stats();
    assert_eq!((stats.bytes_used, stats.slots_used, stats.evictions), (95, 2, 2));
}

#[test]
fn leased_and_pinned_versions_stay() {
    let device = Device::new(2, 100);
    let running = device.run(1, 10);
    device.events.ring(device.residency.set_pinned(version(2), true));
    drop(device.run(2, 10));
    let want = device.want(3, 10);
    assert!(pending(&want));
    drop(running);
    let install = ticket(&want).begin_install(Arc::new(facts(10))).unwrap();
    assert_eq!(install.evict(), [(AdapterSlot(0), version(1))]);
}

#[test]
fn waiting_in_vain_is_refused() {
    let device = Device::new(1, 100);
    let result = device.want(1, 101).poll(Waker::noop());
    assert!(matches!(result, Err(AdapterError::TooLargeForDevice { bytes: 101, max: 100, .. })));
    device.events.ring(device.residency.set_pinned(version(2), true));
    drop(device.run(2, 10));
    let result = device.want(1, 10).poll(Waker::noop());
    assert!(matches!(result, Err(AdapterError::PinnedFull { pinned_slots: 1, max_slots: 1, .. })));
    assert_eq!(device.residency.stats().waiting, 0);
}

#[test]
fn a_load_given_up_before_it_touched_the_device_puts_its_victims_back() {
    let device = Device::new(1, 100);
    drop(device.run(1, 10));
    let want = device.want(2, 50);
    drop(ticket(&want));
    assert_eq!(device.state(1), AdapterState::Resident);
    assert!(matches!(want.poll(Waker::noop()), Err(AdapterError::LoadAbandoned { .. })));
    assert_eq!(device.residency.stats().bytes_used, 10);
    assert!(device.residency.take_removal().is_none());
}

#[test]
fn victims_of_a_failed_installation_must_be_removed_before_their_slot_is_used() {
    let device = Device::new(1, 100);
    drop(device.run(1, 10));
    let want = device.want(2, 50);
    drop(ticket(&want).begin_install(Arc::new(facts(50))).unwrap());
    assert_eq!(device.state(1), AdapterState::Evicting);
    assert!(matches!(want.poll(Waker::noop()), Err(AdapterError::LoadAbandoned { .. })));

    let removal = device.residency.take_removal().unwrap();
    assert_eq!((removal.version(), removal.slot()), (version(1), AdapterSlot(0)));
    assert!(device.residency.take_removal().is_none(), "it is someone's duty");
    assert!(pending(&want));
    drop(removal);
    let load = ticket(&want);
    assert!(device.residency.take_removal().is_none(), "the load carries it out");
    drop(load);
    device.residency.take_removal().expect("a victim that may be gone is not put back").done();
    assert_eq!((device.state(1), device.residency.stats().slots_used), (AdapterState::Stored, 0));
}

#[test]
fn a_failure_after_the_removals_leaves_the_slot_free() {
    let device = Device::new(1, 100);
    drop(device.run(1, 10));
    let want = device.want(2, 50);
    let mut install = ticket(&want).begin_install(Arc::new(facts(50))).unwrap();
    install.evicted();
    assert_eq!((install.evict().len(), device.state(1)), (0, AdapterState::Stored));
    install.fail(Arc::new(broken("no")));
    let stats = device.residency.stats();
    assert_eq!((stats.slots_used, stats.bytes_used, stats.resident), (0, 0, 0));
}

#[test]
fn a_failed_load_is_reported_once_to_everyone_who_waits() {
    let device = Device::new(1, 100);
    let (first, second) = (device.want(1, 10), device.want(1, 10));
    let load = ticket(&first);
    assert!(pending(&second));
    load.fail(Arc::new(broken("disk on fire")));
    for want in [&first, &second] {
        let error = want.poll(Waker::noop()).unwrap_err();
        assert!(matches!(&error, AdapterError::LoadFailed { .. }) && error.to_string().contains("disk on fire"));
    }
    assert!(device.residency.status(version(1)).last_error.unwrap().contains("disk on fire"));
    ticket(&second).begin_install(Arc::new(facts(10))).unwrap().complete();
    drop(ready(&first));
    assert_eq!(device.residency.status(version(1)).last_error, None);
}

#[test]
fn a_version_that_outgrows_its_reservation_is_loaded_again_with_the_right_one() {
    let device = Device::new(2, 100);
    let running = device.run(1, 50);
    let want = device.want(2, 10);
    let result = ticket(&want).begin_install(Arc::new(facts(60)));
    assert!(matches!(result, Err(AdapterError::Outgrown { bytes: 60, reserved: 10, free: 40 | 50, .. })), "{result:?}");
    assert!(pending(&want), "60 bytes have to become free");
    drop(running);
    let install = ticket(&want).begin_install(Arc::new(facts(60))).unwrap();
    assert_eq!(install.evict().len(), 1);
    install.complete();
    let want = device.want(3, 1);
    let result = ticket(&want).begin_install(Arc::new(facts(101)));
    assert!(matches!(result, Err(AdapterError::TooLargeForDevice { bytes: 101, .. })));
    assert!(matches!(want.poll(Waker::noop()), Err(AdapterError::TooLargeForDevice { .. })));
}

#[test]
fn a_loaded_version_is_kept_for_those_who_were_promised_it() {
    let device = Device::new(1, 100);
    let (first, second) = (device.want(1, 10), device.want(2, 10));
    let load = ticket(&first);
    assert!(pending(&second));
    load.begin_install(Arc::new(facts(10))).unwrap().complete();
    assert!(pending(&second), "version 1 has not been used yet");
    drop(ready(&first));
    drop(ticket(&second));
    drop(first);
}

#[test]
fn those_who_wait_for_room_are_served_in_order() {
    let device = Device::new(1, 100);
    let running = device.run(1, 10);
    let (second, third) = (device.want(2, 10), device.want(3, 10));
    assert!(pending(&second) && pending(&third));
    drop(running);
    assert!(pending(&third), "second is first");
    ticket(&second).begin_install(Arc::new(facts(10))).unwrap().complete();
    drop(ready(&second));
    ticket(&third).begin_install(Arc::new(facts(10))).unwrap().complete();
}

#[test]
fn giving_up_a_place_in_line_lets_the_next_one_go() {
    let device = Device::new(1, 100);
    let running = device.run(1, 10);
    let (second, third) = (device.want(2, 10), device.want(3, 10));
    assert!(pending(&second) && pending(&third));
    drop(second);
    drop(running);
    drop(ticket(&third));
}

#[test]
fn a_hot_adapter_cannot_starve_a_cold_one() {
    let device = Device::new(1, 100);
    let hot = device.run(1, 10);
    let cold = device.want(2, 10);
    assert!(pending(&cold));
    let newer = device.want(1, 10);
    assert!(pending(&newer), "the hot version drains");
    drop(hot);
    ticket(&cold).begin_install(Arc::new(facts(10))).unwrap().complete();
    let running = ready(&cold);
    assert!(pending(&newer));
    drop(running);
    ticket(&newer).begin_install(Arc::new(facts(10))).unwrap().complete();
    drop(ready(&newer));
}

#[test]
fn a_drained_version_is_used_again_when_the_cold_one_gives_up() {
    let device = Device::new(1, 100);
    let _hot = device.run(1, 10);
    let (cold, newer) = (device.want(2, 10), device.want(1, 10));
    assert!(pending(&cold) && pending(&newer));
    drop(cold);
    drop(ready(&newer));
}

#[test]
fn a_retired_version_leaves_when_its_last_request_ends() {
    let device = Device::new(2, 100);
    let running = device.run(1, 10);
    device.events.ring(device.residency.set_retired(version(1), true));
    assert_eq!(device.state(1), AdapterState::Resident);
    assert_eq!(device.residency.stats().bytes_used, 10, "retired but leased versions count");
    drop(running);
    assert_eq!(device.state(1), AdapterState::Evicting);
    device.residency.take_removal().unwrap().done();
    assert_eq!(device.residency.stats().bytes_used, 0);
}

/// Wants that have been polled and found nothing, each with what is to wake it.
fn asleep(wants: Vec<Want>) -> Vec<(Want, Arc<Alarm>)> {
    let sleep = |want: Want| {
        let alarm = Arc::new(Alarm::default());
        assert!(matches!(want.poll(&Waker::from(alarm.clone())), Ok(Acquire::Pending)));
        (want, alarm)
    };
    wants.into_iter().map(sleep).collect()
}

/// Who of them was woken since the last call.
fn woken(sleepers: &[(Want, Arc<Alarm>)]) -> Vec<usize> {
    (0..sleepers.len()).filter(|index| sleepers[*index].1.rang()).collect()
}

#[test]
fn of_many_who_wait_for_room_only_the_first_is_woken_when_there_may_be_some() {
    let device = Device::new(2, 100);
    let (running, other) = (device.run(1, 10), device.run(2, 10));
    let mut waiting = asleep((3..9).map(|id| device.want(id, 10)).collect());
    assert_eq!(woken(&waiting), [0; 0]);
    drop(running);
    assert_eq!(woken(&waiting), [0]);
    // It takes the room; the next is first now and looks whether there is more.
    let load = ticket(&waiting[0].0);
    assert_eq!(woken(&waiting), [1]);
    assert!(pending(&waiting[1].0));
    load.begin_install(Arc::new(facts(10))).unwrap().complete();
    waiting.truncate(2);
    drop(ready(&waiting[0].0));
    drop(other);
    assert_eq!(device.residency.stats().waiting, 1);
}

#[test]
fn all_who_wait_for_a_version_are_woken_by_its_load_and_nobody_else_is() {
    let device = Device::new(1, 100);
    let loading = device.want(1, 10);
    let load = ticket(&loading);
    let same = asleep(vec![device.want(1, 10), device.want(1, 10)]);
    let others = asleep(vec![device.want(2, 10), device.want(3, 10), device.want(3, 10)]);
    load.begin_install(Arc::new(facts(10))).unwrap().complete();
    assert_eq!((woken(&same), woken(&others)), (vec![0, 1], vec![0]), "and the first in line, to look for room");
    let (first, alarm) = &others[0];
    assert!(matches!(first.poll(&Waker::from(alarm.clone())), Ok(Acquire::Pending)));
    let leases = [&same[0].0, &same[1].0, &loading].map(ready);
    assert_eq!(woken(&others), [0; 0]);
    drop(leases);
    assert_eq!(woken(&others), [0]);
    let load = ticket(&others[0].0);
    assert_eq!(woken(&others), [1], "the next in line");
    load.fail(Arc::new(broken("no")));
    assert!(matches!(others[0].0.poll(Waker::noop()), Err(AdapterError::LoadFailed { .. })));
    drop(same);
}

#[test]
fn who_wants_what_somebody_before_it_has_begun_to_load_waits_for_that_load() {
    let device = Device::new(1, 100);
    let running = device.run(1, 10);
    let waiting = asleep(vec![device.want(2, 10), device.want(3, 10), device.want(2, 10)]);
    drop(running);
    let load = ticket(&waiting[0].0);
    assert_eq!(woken(&waiting), [0, 1, 2], "the first, the next in line, and who wants the same");
    assert!(pending(&waiting[2].0));
    assert_eq!(device.residency.stats().waiting, 1);
    load.begin_install(Arc::new(facts(10))).unwrap().complete();
    drop([ready(&waiting[0].0), ready(&waiting[2].0)]);
}

#[test]
fn who_carries_out_removals_is_told_of_them_and_of_nothing_else() {
    struct Count(AtomicUsize);
    impl AdapterObserver for Count {
        fn on_removal(&self) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }
    let device = Device::new(1, 100);
    let count = Arc::new(Count(AtomicUsize::new(0)));
    device.events.observe(count.clone());
    let told = || count.0.swap(0, Ordering::SeqCst) > 0;
    drop(device.run(1, 10));
    drop(device.run(2, 10));
    assert!(!told(), "a load carries its own");
    device.residency.unload(version(2)).unwrap();
    assert!(told());
    drop(device.residency.take_removal().unwrap());
    assert!(told(), "it was handed on");
    device.residency.take_removal().unwrap().done();
    device.events.ring(device.residency.forget(version(2)));
    assert!(told());
}

#[test]
fn what_requests_say_as_they_let_go_sets_a_version_aside_and_a_pardon_takes_it_back() {
    let device = Device::new(1, 100);
    let judge = |verdict| {
        let mut lease = device.run(1, 10);
        lease.judge(verdict);
    };
    let fault = Err(AdapterFault::NonFinite);
    [fault, fault, Ok(()), fault, fault].into_iter().for_each(judge);
    drop(device.run(1, 10));
    assert_eq!(device.residency.set_aside(version(1)), None, "one that ends without a word says nothing");
    judge(fault);
    assert_eq!(device.residency.set_aside(version(1)).unwrap().faults, 3);
    assert_eq!(device.residency.stats().set_aside, 1);
    let told = device.residency.status(version(1)).last_error.unwrap();
    assert!(told.contains("set aside") && told.contains("not finite"), "{told}");
    device.events.ring(device.residency.pardon(version(1)));
    assert_eq!((device.residency.set_aside(version(1)), device.residency.stats().set_aside), (None, 0));
    assert_eq!(device.residency.status(version(1)).last_error, None);
    let kinds: Vec<_> = device.events.since(0).unwrap().into_iter().map(|event| event.kind).collect();
    assert_eq!(kinds[kinds.len() - 2..], [AdapterEventKind::SetAside, AdapterEventKind::Reinstated]);
}

#[test]
fn a_client_that_wants_many_adapters_does_not_keep_another_from_its_own() {
    let device = Device::new(1, 100);
    let running = device.run(99, 10);
    let (many, one) = (ClientKey([1; 32]), ClientKey([2; 32]));
    let flood: Vec<_> = (1..=20).map(|id| device.want_of(many, id, 10)).collect();
    assert!(flood.iter().all(pending));
    let polite = device.want_of(one, 50, 10);
    assert!(pending(&polite));
    drop(running);
    assert!(pending(&polite), "one load of the other is before it");
    ticket(&flood[0]).begin_install(Arc::new(facts(10))).unwrap().complete();
    drop(ready(&flood[0]));
    assert!(pending(&flood[1]), "19 of the other are behind it");
    ticket(&polite).begin_install(Arc::new(facts(10))).unwrap().complete();
    drop(ready(&polite));
    ticket(&flood[1]).begin_install(Arc::new(facts(10))).unwrap().complete();
}
