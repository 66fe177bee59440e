//! Places of which there is a bounded number, and which nobody can have all of.
//!
//! Dynamic thresholds (Choudhury and Hahne, *Dynamic Queue Length Thresholds for Shared-Memory Packet Switches*, IEEE/ACM
//! ToN 6(2), 1998): a client, and an adapter, may hold so many times as many places as are free. One alone has nearly
//! all of them, more together leave the rest to others, and somebody new finds a place.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError};

use crate::types::{AdapterVersion, ClientKey, Party};

/// An adapter may hold this many times the places that are free. Up to 16 places are one adapter's if nobody else asks.
const ADAPTER_THRESHOLD: usize = 16;
/// A client, more: most of what it asks for may be of one adapter, and then it still has places for others.
const CLIENT_THRESHOLD: usize = 64;

/// Why there is no place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoPlace {
    /// All are taken.
    Full,
    /// The client, or the adapter, has as many as it may while so few are free.
    Share {
        /// Whose they are.
        holder: Holder,
        /// How many.
        held: usize,
    },
}

/// Of whom there are too many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Holder {
    /// Requests of one client.
    Client,
    /// Requests for one adapter, or for the base.
    Adapter,
}

impl Holder {
    /// In one word.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Adapter => "adapter",
        }
    }
}

/// Places. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Places {
    limit: usize,
    held: Arc<Mutex<Held>>,
}

#[derive(Debug, Default)]
struct Held {
    total: usize,
    clients: HashMap<ClientKey, usize>,
    adapters: HashMap<Option<AdapterVersion>, usize>,
}

impl Places {
    /// So many, all free.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        Self { limit, held: Arc::default() }
    }

    /// How many there are.
    #[must_use]
    pub fn limit(&self) -> usize {
        self.limit
    }

    /// How many nobody holds.
    #[must_use]
    pub fn free(&self) -> usize {
        self.limit - self.held.lock().unwrap_or_else(PoisonError::into_inner).total
    }

    /// A place, given back on drop.
    ///
    /// # Errors
    /// [`NoPlace`].
    pub fn take(&self, party: Party) -> Result<Place, NoPlace> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let free = self.limit - held.total;
        if free == 0 {
            return Err(NoPlace::Full);
        }
        let of_client = held.clients.get(&party.client).copied().unwrap_or(0);
        let of_adapter = held.adapters.get(&party.adapter).copied().unwrap_or(0);
        if of_adapter >= free.saturating_mul(ADAPTER_THRESHOLD) {
            return Err(NoPlace::Share { holder: Holder::Adapter, held: of_adapter });
        }
        if of_client >= free.saturating_mul(CLIENT_THRESHOLD) {
            return Err(NoPlace::Share { holder: Holder::Client, held: of_client });
        }
        held.total += 1;
        held.clients.insert(party.client, of_client + 1);
        held.adapters.insert(party.adapter, of_adapter + 1);
        Ok(Place { places: self.clone(), party })
    }
}

/// RAII: one place.
#[derive(Debug)]
pub struct Place {
    places: Places,
    party: Party,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut held = self.places.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.total -= 1;
        give_back(&mut held.clients, &self.party.client);
        give_back(&mut held.adapters, &self.party.adapter);
    }
}

/// Those who hold nothing are forgotten.
fn give_back<K: Eq + Hash>(counts: &mut HashMap<K, usize>, key: &K) {
    match counts.get_mut(key) {
        Some(count) if *count > 1 => *count -= 1,
        _ => drop(counts.remove(key)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Adapter 0 is the base.
    fn party(client: u8, adapter: u8) -> Party {
        Party { client: ClientKey([client; 32]), adapter: (adapter > 0).then_some(AdapterVersion([adapter; 32])) }
    }

    fn fill(places: &Places, party: Party) -> (Vec<Place>, NoPlace) {
        let mut taken = Vec::new();
        loop {
            match places.take(party) {
                Ok(place) => taken.push(place),
                Err(refused) => return (taken, refused),
            }
        }
    }

    #[test]
    fn a_few_places_are_all_for_whoever_asks() {
        for limit in 1..=16 {
            let places = Places::new(limit);
            let (taken, refused) = fill(&places, party(1, 1));
            assert_eq!((taken.len(), refused), (limit, NoPlace::Full));
        }
    }

    #[test]
    fn a_flood_of_one_adapter_leaves_places_for_the_clients_other_adapters_and_for_other_clients() {
        let places = Places::new(1024);
        let (flood, refused) = fill(&places, party(1, 1));
        assert_eq!(refused, NoPlace::Share { holder: Holder::Adapter, held: flood.len() });
        assert!((960..1000).contains(&flood.len()), "{}", flood.len());
        let others: Vec<_> = [2, 3, 4].map(|adapter| places.take(party(1, adapter)).unwrap()).into();
        let (rest, refused) = fill(&places, party(1, 0));
        assert!(matches!(refused, NoPlace::Share { holder: Holder::Client, .. }), "{refused:?}");
        assert!(places.take(party(2, 2)).is_ok());
        drop((flood, others, rest));
        assert_eq!(places.free(), 1024);
        let held = places.held.lock().unwrap();
        assert_eq!((held.clients.len(), held.adapters.len()), (0, 0), "who holds nothing is forgotten");
    }

    #[test]
    fn a_flood_of_one_adapter_by_many_clients_leaves_places_too() {
        let places = Places::new(512);
        let mut taken = Vec::new();
        for client in (0..=255u8).cycle().take(2000) {
            taken.extend(places.take(party(client, 1)));
        }
        assert!(places.free() >= 16);
        assert!(places.take(party(1, 2)).is_ok());
    }
}
