//! Any order of wants, loads, failures and removals keeps what is promised.

use std::collections::{HashMap, HashSet};

use proptest::prelude::*;

use super::*;

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
    wants: Vec<(Want, Arc<Alarm>)>,
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
        let (want, alarm) = &self.wants[index];
        // Whatever comes but a pending one, it polls again at once.
        alarm.rang();
        let polled = want.poll(&Waker::from(alarm.clone()));
        let again = !matches!(polled, Ok(Acquire::Pending));
        alarm.0.fetch_or(again, Ordering::SeqCst);
        match polled {
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
            Op::Want { id } if self.wants.len() < 6 => {
                let alarm = Arc::new(Alarm(AtomicBool::new(true)));
                self.wants.push((self.device.want(id, size(id)), alarm));
            }
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
                self.installs.swap_remove(index).0.fail(Arc::new(broken("no")));
            }
            Op::Release { index } if index < self.running.len() => drop(self.running.swap_remove(index)),
            Op::Pin { id, pinned } => {
                if pinned {
                    self.pinned.insert(id)
                } else {
                    self.pinned.remove(&id)
                };
                let signals = self.device.residency.set_pinned(version(id), pinned);
                self.device.events.ring(signals);
            }
            // The registry unpins what it retires.
            Op::Retire { id, retired } if !self.pinned.contains(&id) => {
                let signals = self.device.residency.set_retired(version(id), retired);
                self.device.events.ring(signals);
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

    /// Work on as a fair hall does until nobody waits, polling only who was woken; true if that took a bounded number of
    /// rounds.
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
            for index in (0..self.wants.len()).rev() {
                if self.wants[index].1.rang() {
                    self.poll(index);
                }
            }
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
