use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicUsize, Ordering};

use proptest::prelude::*;

use super::*;
use crate::adapters::events::AdapterObserver;
use crate::adapters::lease::LeaseTable;
use crate::adapters::testing::facts;

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

    fn want(&self, id: u8, bytes: u64) -> Want {
        self.residency.want(self.leases.lease(version(id)), bytes)
    }

    /// Bring a version to the device and lease it.
    fn run(&self, id: u8, bytes: u64) -> ResidentLease {
        let want = self.want(id, bytes);
        if let Acquire::Load(ticket) = want.poll().unwrap() {
            ticket.begin_install(Arc::new(facts(bytes))).unwrap().complete();
        }
        ready(&want)
    }

    fn state(&self, id: u8) -> AdapterState {
        self.residency.status(version(id)).state
    }
}

fn ready(want: &Want) -> ResidentLease {
    match want.poll().unwrap() {
        Acquire::Ready(lease) => lease,
        other => panic!("{other:?}"),
    }
}

fn ticket(want: &Want) -> LoadTicket {
    match want.poll().unwrap() {
        Acquire::Load(ticket) => ticket,
        other => panic!("{other:?}"),
    }
}

fn pending(want: &Want) -> bool {
    matches!(want.poll().unwrap(), Acquire::Pending)
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
    assert_eq!((a.slot(), b.binding().version), (AdapterSlot(0), version(1)));
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
    device.residency.set_pinned(version(2), true);
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
    let result = device.want(1, 101).poll();
    assert!(matches!(result, Err(AdapterError::TooLargeForDevice { bytes: 101, max: 100, .. })));
    device.residency.set_pinned(version(2), true);
    drop(device.run(2, 10));
    let result = device.want(1, 10).poll();
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
    assert!(matches!(want.poll(), Err(AdapterError::LoadAbandoned { .. })));
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
    assert!(matches!(want.poll(), Err(AdapterError::LoadAbandoned { .. })));

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
    install.fail(Arc::new(std::io::Error::other("no")));
    let stats = device.residency.stats();
    assert_eq!((stats.slots_used, stats.bytes_used, stats.resident), (0, 0, 0));
}

#[test]
fn a_failed_load_is_reported_once_to_everyone_who_waits() {
    let device = Device::new(1, 100);
    let (first, second) = (device.want(1, 10), device.want(1, 10));
    let load = ticket(&first);
    assert!(pending(&second));
    load.fail(Arc::new(std::io::Error::other("disk on fire")));
    for want in [&first, &second] {
        let error = want.poll().unwrap_err();
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
    assert!(matches!(want.poll(), Err(AdapterError::TooLargeForDevice { .. })));
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
    device.residency.set_retired(version(1), true);
    assert_eq!(device.state(1), AdapterState::Resident);
    assert_eq!(device.residency.stats().bytes_used, 10, "retired but leased versions count");
    drop(running);
    assert_eq!(device.state(1), AdapterState::Evicting);
    device.residency.take_removal().unwrap().done();
    assert_eq!(device.residency.stats().bytes_used, 0);
}

#[test]
fn whoever_waits_is_told_when_room_may_be_there() {
    struct Count(AtomicUsize);
    impl AdapterObserver for Count {
        fn on_capacity(&self) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }
    let device = Device::new(1, 100);
    let count = Arc::new(Count(AtomicUsize::new(0)));
    device.events.observe(count.clone());
    let told = || count.0.swap(0, Ordering::SeqCst) > 0;
    let want = device.want(1, 10);
    let load = ticket(&want);
    told();
    load.begin_install(Arc::new(facts(10))).unwrap().complete();
    assert!(told(), "a load has ended");
    let running = ready(&want);
    let next = device.want(2, 10);
    assert!(pending(&next) && !told());
    drop(running);
    assert!(told(), "a slot can be had");
    drop(want);
}

#[derive(Clone, Debug)]
enum Op {
    Want { id: u8 },
    Poll { index: usize },
    Leave { index: usize },
    Begin { index: usize, grow: u64 },
    GiveUp { index: usize },
    Evicted { index: usize },
    Complete { index: usize },
    Fail { index: usize },
    Release { index: usize },
    Pin { id: u8, pinned: bool },
    Retire { id: u8, retired: bool },
    Unload { id: u8 },
    Remove { done: bool },
}

fn op() -> impl Strategy<Value = Op> {
    let (id, index) = (0..6u8, 0..6usize);
    prop_oneof![
        4 => id.clone().prop_map(|id| Op::Want { id }),
        8 => index.clone().prop_map(|index| Op::Poll { index }),
        1 => index.clone().prop_map(|index| Op::Leave { index }),
        4 => (index.clone(), 0..15u64).prop_map(|(index, grow)| Op::Begin { index, grow }),
        1 => index.clone().prop_map(|index| Op::GiveUp { index }),
        1 => index.clone().prop_map(|index| Op::Evicted { index }),
        4 => index.clone().prop_map(|index| Op::Complete { index }),
        1 => index.clone().prop_map(|index| Op::Fail { index }),
        5 => index.prop_map(|index| Op::Release { index }),
        1 => (id.clone(), any::<bool>()).prop_map(|(id, pinned)| Op::Pin { id, pinned }),
        1 => (id.clone(), any::<bool>()).prop_map(|(id, retired)| Op::Retire { id, retired }),
        1 => id.prop_map(|id| Op::Unload { id }),
        2 => any::<bool>().prop_map(|done| Op::Remove { done }),
    ]
}

const SLOTS: u32 = 3;
const BYTES: u64 = 60;

/// The hall and the device in one: it does what the tickets say and checks that they never ask for harm.
struct World {
    device: Device,
    wants: Vec<Want>,
    tickets: Vec<LoadTicket>,
    installs: Vec<(InstallTicket, u64)>,
    running: Vec<ResidentLease>,
    pinned: HashSet<u8>,
    /// What lies in each slot.
    memory: HashMap<AdapterSlot, (AdapterVersion, u64)>,
}

/// As the files say; compilation may find more.
fn size(id: u8) -> u64 {
    5 + u64::from(id) * 7
}

impl World {
    fn new() -> Self {
        Self {
            device: Device::new(SLOTS, BYTES),
            wants: Vec::new(),
            tickets: Vec::new(),
            installs: Vec::new(),
            running: Vec::new(),
            pinned: HashSet::new(),
            memory: HashMap::new(),
        }
    }

    fn remove(&mut self, slot: AdapterSlot, version: AdapterVersion) {
        assert!(self.running.iter().all(|lease| lease.slot() != slot), "{version} is running");
        if let Some((found, _)) = self.memory.remove(&slot) {
            assert_eq!(found, version, "another version lies in {slot:?}");
        }
    }

    fn poll(&mut self, index: usize) {
        let before: HashSet<_> =
            self.pinned.iter().filter(|id| self.device.state(**id) == AdapterState::Resident).copied().collect();
        match self.wants[index].poll() {
            Ok(Acquire::Ready(lease)) => {
                assert_eq!(self.memory[&lease.slot()].0, lease.version());
                self.running.push(lease);
                self.wants.swap_remove(index);
            }
            Ok(Acquire::Load(ticket)) => {
                for id in before {
                    assert_eq!(self.device.state(id), AdapterState::Resident, "pinned {id} was chosen");
                }
                self.tickets.push(ticket);
            }
            Ok(Acquire::Pending) => {}
            Err(AdapterError::TooLargeForDevice { .. } | AdapterError::PinnedFull { .. }) => {
                self.wants.swap_remove(index);
            }
            Err(AdapterError::LoadFailed { .. } | AdapterError::LoadAbandoned { .. }) => {}
            Err(other) => panic!("{other}"),
        }
    }

    fn begin(&mut self, index: usize, grow: u64) {
        let ticket = self.tickets.swap_remove(index);
        let bytes = size(ticket.version().0[0]) + grow;
        match ticket.begin_install(Arc::new(facts(bytes))) {
            Ok(install) => {
                assert!(install.evict().iter().all(|(slot, _)| self.running.iter().all(|run| run.slot() != *slot)));
                self.installs.push((install, bytes));
            }
            Err(AdapterError::Outgrown { .. } | AdapterError::TooLargeForDevice { .. }) => {}
            Err(other) => panic!("{other}"),
        }
    }

    fn evict(&mut self, index: usize) {
        for (slot, version) in self.installs[index].0.evict().to_vec() {
            self.remove(slot, version);
        }
    }

    fn complete(&mut self, index: usize) {
        self.evict(index);
        let (install, bytes) = self.installs.swap_remove(index);
        let before = self.memory.insert(install.slot(), (install.version(), bytes));
        assert_eq!(before, None, "{:?} is owned twice", install.slot());
        install.complete();
    }

    fn take_removal(&mut self, done: bool) {
        if let Some(removal) = self.device.residency.take_removal() {
            self.remove(removal.slot(), removal.version());
            if done {
                removal.done();
            }
        }
    }

    fn apply(&mut self, op: Op) {
        match op {
            Op::Want { id } if self.wants.len() < 6 => self.wants.push(self.device.want(id, size(id))),
            Op::Poll { index } if index < self.wants.len() => self.poll(index),
            Op::Leave { index } if index < self.wants.len() => drop(self.wants.swap_remove(index)),
            Op::Begin { index, grow } if index < self.tickets.len() => self.begin(index, grow),
            Op::GiveUp { index } if index < self.tickets.len() => drop(self.tickets.swap_remove(index)),
            Op::Evicted { index } if index < self.installs.len() => {
                self.evict(index);
                self.installs[index].0.evicted();
            }
            Op::Complete { index } if index < self.installs.len() => self.complete(index),
            Op::Fail { index } if index < self.installs.len() => {
                // The removals were carried out, but the engine did not get to say so.
                self.evict(index);
                self.installs.swap_remove(index).0.fail(Arc::new(std::io::Error::other("no")));
            }
            Op::Release { index } if index < self.running.len() => drop(self.running.swap_remove(index)),
            Op::Pin { id, pinned } => {
                if pinned {
                    self.pinned.insert(id)
                } else {
                    self.pinned.remove(&id)
                };
                self.device.residency.set_pinned(version(id), pinned);
            }
            // The registry unpins what it retires.
            Op::Retire { id, retired } if !self.pinned.contains(&id) => {
                self.device.residency.set_retired(version(id), retired);
            }
            Op::Unload { id } if !self.pinned.contains(&id) => drop(self.device.residency.unload(version(id))),
            Op::Remove { done } => self.take_removal(done),
            _ => {}
        }
    }

    fn check(&self) {
        let stats = self.device.residency.stats();
        let in_memory: u64 = self.memory.values().map(|(_, bytes)| bytes).sum();
        assert!(in_memory <= BYTES && stats.bytes_used <= BYTES, "{in_memory} and {stats:?}");
        assert!(in_memory <= stats.bytes_used, "{in_memory} bytes lie there, {stats:?}");
        assert!(self.memory.len() <= stats.slots_used && stats.slots_used <= SLOTS as usize, "{stats:?}");
        assert_eq!(stats.leases, self.running.len());
        let holders = self.wants.len() + self.tickets.len() + self.installs.len() + self.running.len();
        assert_eq!(self.device.leases.total(), holders);
        for lease in &self.running {
            assert_eq!(self.memory[&lease.slot()].0, lease.version(), "a running version was overwritten");
        }
    }

    /// Work on as a fair hall does until nobody waits; true if that took a bounded number of rounds.
    fn drain(&mut self) -> bool {
        for id in 0..6 {
            self.apply(Op::Pin { id, pinned: false });
        }
        for _ in 0..50 {
            while !self.tickets.is_empty() {
                self.begin(0, 0);
            }
            while !self.installs.is_empty() {
                self.complete(0);
            }
            self.running.clear();
            self.take_removal(true);
            (0..self.wants.len()).rev().for_each(|index| self.poll(index));
            self.check();
        }
        self.wants.is_empty() && self.tickets.is_empty() && self.installs.is_empty()
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn whatever_happens_limits_hold_and_everybody_is_served_in_the_end(ops in prop::collection::vec(op(), 1..120)) {
        let mut world = World::new();
        for op in ops {
            world.apply(op);
            world.check();
        }
        prop_assert!(world.drain(), "someone waits for ever");
        world.running.clear();
        prop_assert_eq!(world.device.leases.total(), 0);
        let stats = world.device.residency.stats();
        prop_assert_eq!((stats.leases, stats.waiting, stats.loading), (0, 0, 0));
    }
}
