//! Who has had how much: virtual token counters (VTC; Sheng et al., *Fairness in Serving Large Language Models*,
//! OSDI'24, arXiv 2401.00588), kept for every client and for every adapter.
//!
//! Each computed prompt token and each output token is charged, by its weight, to two accounts: its client's and its
//! adapter's (the base is an adapter like another). The *level* of a [`Party`] is the sum of both, and the lowest level
//! is served first. So one client's requests are shared out among its adapters, one adapter's among its clients, and
//! neither a client with many adapters nor an adapter with many clients crowds out the rest.
//!
//! - Whoever comes back is lifted to the level of the lowest that is being served: idling earns no credit, and leaving
//!   does not forgive a debt.
//! - Work is conserved: who is alone gets everything.
//! - An account with more than its share of the recent steps has at most [`ShareConfig::step_tokens`] rows in a step,
//!   so that the others do not wait long for the step in progress.
//!
//! Decides nothing by itself; counts, and answers who is ahead of whom. Every answer follows from the calls before it.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use crate::types::{AdapterVersion, ClientKey, Party};

/// Steps of an epoch. What an account had in this and the last one is its recent share.
const EPOCH: u64 = 16;

/// Accounts without a request that are remembered for what they have had. The least served are forgotten first.
const MAX_IDLE: usize = 4096;

/// How service is weighed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShareConfig {
    /// Virtual tokens per computed prompt token.
    pub input_weight: u32,
    /// Virtual tokens per output token.
    pub output_weight: u32,
    /// Most rows in a step of a client or an adapter with more than its share, while others are active; at least 1.
    pub step_tokens: usize,
}

impl Default for ShareConfig {
    /// The paper's weights: an output token costs twice as much as one of a prompt.
    fn default() -> Self {
        Self { input_weight: 1, output_weight: 2, step_tokens: 32 }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct AccountId(u32);

/// A party with live sequences; the id means nothing once the last of them has left.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct PartyId {
    client: AccountId,
    adapter: AccountId,
}

impl PartyId {
    fn accounts(self) -> [AccountId; 2] {
        [self.client, self.adapter]
    }

    /// Accounts that only one of the two has.
    fn distance(self, other: Self) -> usize {
        usize::from(self.client != other.client) + usize::from(self.adapter != other.adapter)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum AccountKey {
    Client(ClientKey),
    Adapter(Option<AdapterVersion>),
}

impl AccountKey {
    fn kind(self) -> usize {
        match self {
            Self::Client(_) => 0,
            Self::Adapter(_) => 1,
        }
    }
}

#[derive(Debug)]
struct Account {
    key: AccountKey,
    /// Virtual tokens; grows for ever.
    served: i64,
    /// Live sequences.
    live: usize,
    /// Those with KV.
    running: usize,
    /// Rows of this and the last epoch.
    recent: [u64; 2],
    /// Rows of step `step`.
    rows: usize,
    step: u64,
}

impl Account {
    fn new(key: AccountKey) -> Self {
        Self { key, served: 0, live: 0, running: 0, recent: [0; 2], rows: 0, step: 0 }
    }

    fn is_active(&self) -> bool {
        self.live > 0 || self.recent != [0; 2]
    }
}

/// What all accounts of a kind have together.
#[derive(Clone, Copy, Debug, Default)]
struct Kind {
    recent: [u64; 2],
    active: usize,
    /// Level of the last account to fall idle.
    last_left: i64,
}

/// The counters of everybody who has live sequences, or had some.
#[derive(Debug)]
pub(crate) struct FairShare {
    config: ShareConfig,
    accounts: Vec<Account>,
    free: Vec<AccountId>,
    by_key: HashMap<AccountKey, AccountId>,
    kinds: [Kind; 2],
    /// Live sequences by party.
    parties: BTreeMap<PartyId, usize>,
    idle: BTreeSet<(i64, AccountId)>,
    step: u64,
}

impl FairShare {
    pub(crate) fn new(config: ShareConfig) -> Self {
        Self {
            config,
            accounts: Vec::new(),
            free: Vec::new(),
            by_key: HashMap::new(),
            kinds: [Kind::default(); 2],
            parties: BTreeMap::new(),
            idle: BTreeSet::new(),
            step: 0,
        }
    }

    fn account(&self, id: AccountId) -> &Account {
        &self.accounts[id.0 as usize]
    }

    fn account_mut(&mut self, id: AccountId) -> &mut Account {
        &mut self.accounts[id.0 as usize]
    }

    /// Parties with live sequences.
    pub(crate) fn num_parties(&self) -> usize {
        self.parties.len()
    }

    // --- coming and going -----------------------------------------------------------------------------------------

    /// `count` sequences of a party begin to live.
    pub(crate) fn join(&mut self, party: Party, count: usize) -> PartyId {
        let client = self.find(AccountKey::Client(party.client));
        let adapter = self.find(AccountKey::Adapter(party.adapter));
        let id = PartyId { client, adapter };
        if !self.parties.contains_key(&id) {
            self.lift(id);
        }
        *self.parties.entry(id).or_default() += count;
        for account in id.accounts() {
            let Account { key, served, live, .. } = *self.account(account);
            if live == 0 {
                self.idle.remove(&(served, account));
                self.kinds[key.kind()].active += usize::from(!self.account(account).is_active());
            }
            self.account_mut(account).live += count;
        }
        id
    }

    /// A sequence of a party has ended.
    pub(crate) fn leave(&mut self, id: PartyId) {
        if let Some(live) = self.parties.get_mut(&id) {
            *live -= 1;
            if *live == 0 {
                self.parties.remove(&id);
            }
        }
        for account in id.accounts() {
            self.account_mut(account).live -= 1;
            let Account { key, served, live: 0, .. } = *self.account(account) else { continue };
            self.idle.insert((served, account));
            let active = self.account(account).is_active();
            let kind = &mut self.kinds[key.kind()];
            kind.last_left = kind.last_left.max(served);
            kind.active -= usize::from(!active);
        }
        while self.idle.len() > MAX_IDLE
            && let Some((_, account)) = self.idle.pop_first()
        {
            self.forget(account);
        }
    }

    fn find(&mut self, key: AccountKey) -> AccountId {
        if let Some(id) = self.by_key.get(&key) {
            return *id;
        }
        let account = Account::new(key);
        let id = match self.free.pop() {
            Some(id) => {
                *self.account_mut(id) = account;
                id
            }
            None => {
                self.accounts.push(account);
                AccountId(self.accounts.len() as u32 - 1)
            }
        };
        self.idle.insert((0, id));
        self.by_key.insert(key, id);
        id
    }

    fn forget(&mut self, id: AccountId) {
        let account = self.account_mut(id);
        let (key, recent, active) = (account.key, std::mem::take(&mut account.recent), account.is_active());
        let kind = &mut self.kinds[key.kind()];
        kind.recent.iter_mut().zip(recent).for_each(|(all, own)| *all -= own);
        kind.active -= usize::from(active || recent != [0; 2]);
        self.by_key.remove(&key);
        self.free.push(id);
    }

    /// Raise a party that begins to live to the lowest level that is being served. First account by account, then the
    /// sum: two accounts that are low each may be far below every live party together.
    fn lift(&mut self, id: PartyId) {
        let level = |share: &Self, account| share.account(account).served;
        let lowest =
            |account: fn(&PartyId) -> AccountId| self.parties.keys().map(account).map(|a| level(self, a)).min();
        let floors = [lowest(|party| party.client), lowest(|party| party.adapter)];
        let floor = self.parties.keys().map(|party| self.level(*party)).min();
        for (kind, account) in id.accounts().into_iter().enumerate() {
            if self.account(account).live == 0 {
                let floor = floors[kind].unwrap_or(self.kinds[kind].last_left);
                self.raise(account, floor);
            }
        }
        let short = floor.map_or(0, |floor| floor - self.level(id));
        let idle = id.accounts().into_iter().rev().find(|account| self.account(*account).live == 0);
        if let Some(account) = idle.filter(|_| short > 0) {
            self.raise(account, level(self, account) + short);
        }
    }

    /// Raise an idle account to a level, if it is below.
    fn raise(&mut self, id: AccountId, to: i64) {
        let served = self.account(id).served;
        if served < to {
            self.idle.remove(&(served, id));
            self.idle.insert((to, id));
            self.account_mut(id).served = to;
        }
    }

    // --- service --------------------------------------------------------------------------------------------------

    /// Virtual tokens a party has had; the lowest level is served first.
    pub(crate) fn level(&self, id: PartyId) -> i64 {
        id.accounts().into_iter().map(|account| self.account(account).served).sum()
    }

    /// What rows cost: `inputs` prompt tokens computed for the first time, `outputs` tokens sampled.
    pub(super) fn cost(&self, inputs: usize, outputs: usize) -> i64 {
        inputs as i64 * i64::from(self.config.input_weight) + outputs as i64 * i64::from(self.config.output_weight)
    }

    /// Charge a party.
    pub(crate) fn charge(&mut self, id: PartyId, cost: i64) {
        for account in id.accounts() {
            self.account_mut(account).served += cost;
        }
    }

    /// A sequence of a party has KV now.
    pub(super) fn started(&mut self, id: PartyId) {
        id.accounts().into_iter().for_each(|account| self.account_mut(account).running += 1);
    }

    /// A sequence of a party has given its KV back.
    pub(super) fn stopped(&mut self, id: PartyId) {
        id.accounts().into_iter().for_each(|account| self.account_mut(account).running -= 1);
    }

    /// Running sequences of a party's accounts together.
    pub(super) fn running(&self, id: PartyId) -> usize {
        id.accounts().into_iter().map(|account| self.account(account).running).sum()
    }

    /// Whether a place of `from` should be one of `to`: `to` has had no more, and has no more running sequences than
    /// `from` even then. Never true both ways, so places do not go back and forth.
    pub(super) fn gives_way(&self, from: PartyId, to: PartyId) -> bool {
        let distance = from.distance(to);
        distance > 0 && self.running(from) >= self.running(to) + 2 * distance && self.level(to) <= self.level(from)
    }

    /// What the accounts of these parties hold together.
    pub(super) fn holdings(&self, held: impl Iterator<Item = (PartyId, usize)>) -> Holdings {
        let mut holdings = BTreeMap::new();
        for (party, amount) in held {
            for account in party.accounts() {
                *holdings.entry(account).or_default() += amount;
            }
        }
        Holdings(holdings)
    }

    // --- steps ----------------------------------------------------------------------------------------------------

    /// A new step is put together.
    pub(super) fn begin_step(&mut self) {
        self.step += 1;
        if !self.step.is_multiple_of(EPOCH) {
            return;
        }
        for kind in &mut self.kinds {
            *kind = Kind { recent: [0, kind.recent[0]], active: 0, ..*kind };
        }
        for account in &mut self.accounts {
            account.recent = [0, account.recent[0]];
            self.kinds[account.key.kind()].active += usize::from(account.is_active());
        }
    }

    /// Whether an account had clearly more than an equal part of what its kind had of late.
    fn is_over_served(&self, account: &Account) -> bool {
        let Kind { recent, active, .. } = self.kinds[account.key.kind()];
        let (own, all) = (account.recent[0] + account.recent[1], recent[0] + recent[1]);
        // A quarter more, so that equals do not take turns in being held back.
        active > 1 && 4 * own * active as u64 > 5 * all
    }

    fn rows(&self, account: &Account) -> usize {
        if account.step == self.step { account.rows } else { 0 }
    }

    /// Rows a party may still have in this step.
    pub(super) fn allowance(&self, id: PartyId) -> usize {
        self.account_allowance(id.client).min(self.account_allowance(id.adapter))
    }

    fn account_allowance(&self, id: AccountId) -> usize {
        let account = self.account(id);
        let bounded = self.is_over_served(account);
        if bounded { self.config.step_tokens.saturating_sub(self.rows(account)) } else { usize::MAX }
    }

    /// Allowances of these parties, to be used up one row at a time.
    pub(super) fn draft(&self, parties: impl Iterator<Item = PartyId>) -> RowDraft {
        let accounts = parties.flat_map(PartyId::accounts);
        RowDraft(accounts.map(|account| (account, self.account_allowance(account))).collect())
    }

    /// Whether any of these parties is held back in this step.
    pub(super) fn holds_back(&self, mut parties: impl Iterator<Item = PartyId>) -> bool {
        let crowded = self.kinds.iter().any(|kind| kind.active > 1);
        crowded && parties.any(|id| self.allowance(id) != usize::MAX)
    }

    /// A party gets rows in this step.
    pub(super) fn take_rows(&mut self, id: PartyId, rows: usize) {
        let step = self.step;
        for account in id.accounts() {
            let had = self.rows(self.account(account));
            let account = self.account_mut(account);
            (account.rows, account.step) = (had + rows, step);
            account.recent[0] += rows as u64;
            let kind = account.key.kind();
            self.kinds[kind].recent[0] += rows as u64;
        }
    }
}

/// What accounts hold, of something that moves between parties.
pub(super) struct Holdings(BTreeMap<AccountId, usize>);

impl Holdings {
    fn of(&self, id: AccountId) -> usize {
        self.0.get(&id).copied().unwrap_or(0)
    }

    /// Take `amount` from one party for another that comes to hold `total`, if the first still holds no less in the
    /// accounts that only one of the two has. False where it would hold less, and where they are the same.
    pub(super) fn moves(&mut self, from: PartyId, amount: usize, to: PartyId, total: usize) -> bool {
        let pairs = [(from.client, to.client), (from.adapter, to.adapter)];
        let differing: Vec<_> = pairs.into_iter().filter(|(from, to)| from != to).collect();
        let left: usize = differing.iter().map(|(from, _)| self.of(*from).saturating_sub(amount)).sum();
        let then: usize = differing.iter().map(|(_, to)| self.of(*to) + total).sum();
        let moves = !differing.is_empty() && left >= then;
        if moves {
            for (from, _) in differing {
                self.0.entry(from).and_modify(|held| *held = held.saturating_sub(amount));
            }
        }
        moves
    }
}

/// Rows that accounts may still have in a step that is being thought out.
pub(super) struct RowDraft(BTreeMap<AccountId, usize>);

impl RowDraft {
    /// One more row for a party; false where one of its accounts has none left.
    pub(super) fn take(&mut self, id: PartyId) -> bool {
        let left = |account| self.0.get(&account).copied().unwrap_or(0);
        if id.accounts().into_iter().any(|account| left(account) == 0) {
            return false;
        }
        for account in id.accounts() {
            if let Some(left) = self.0.get_mut(&account) {
                *left -= 1;
            }
        }
        true
    }
}

#[cfg(test)]
mod tests;
