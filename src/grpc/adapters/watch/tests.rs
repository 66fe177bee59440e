use std::net::IpAddr;

use tokio_stream::StreamExt;

use super::*;
use crate::adapters::AdapterEventKind as Kind;
use crate::admission::testing::House;
use crate::types::{AdapterVersion, ClientKey};

fn peer(last: u8) -> Peer {
    IpAddr::from([127, 0, 0, last]).into()
}

fn name(text: &str) -> AdapterName {
    text.parse().unwrap()
}

async fn next(watch: &mut Watch) -> (EventType, String) {
    let response = watch.next().await.unwrap().unwrap();
    (response.r#type(), response.adapter.map(|adapter| adapter.name).unwrap_or_default())
}

/// What is there, up to the word that that was all.
async fn synced(watch: &mut Watch) -> usize {
    let mut existing = 0;
    while next(watch).await.0 != EventType::Synced {
        existing += 1;
    }
    existing
}

#[tokio::test(start_paused = true)]
async fn many_changes_of_one_state_are_told_once_to_each_of_many_watchers() {
    let house = House::new();
    house.adapter("a", 1);
    house.adapter("b", 2);
    let feed = Feed::of(&house.registry);
    let mut watchers = Vec::new();
    for _ in 0..3 * GROUP {
        let mut watch = feed.watch(Arc::clone(&house.registry), peer(1)).unwrap();
        assert_eq!(synced(&mut watch).await, 2);
        watchers.push(watch);
    }
    assert_eq!(feed.groups.all().len(), 3);
    for round in 0..10 {
        match round % 2 {
            0 => house.registry.pin(&name("b"), ClientKey::LOCAL).unwrap(),
            _ => house.registry.unpin(&name("b")).unwrap(),
        };
    }
    house.registry.delete(&name("a"), crate::adapters::Expected::Any).unwrap();
    let began = tokio::time::Instant::now();
    for watch in &mut watchers {
        assert_eq!(next(watch).await, (EventType::Updated, "b".to_owned()));
        assert_eq!(next(watch).await, (EventType::Deleted, "a".to_owned()));
    }
    assert_eq!(began.elapsed(), GROUP_PAUSE * 2, "group after group");
    // The next batch waits for what this one has cost.
    house.registry.pin(&name("b"), ClientKey::LOCAL).unwrap();
    assert_eq!(next(&mut watchers[0]).await, (EventType::Updated, "b".to_owned()));
    assert!(began.elapsed() >= MESSAGE_PAUSE * 2 * 3 * GROUP as u32, "{:?}", began.elapsed());
}

#[tokio::test]
async fn who_comes_and_goes_keeps_the_order_of_what_cannot_be_left_out() {
    let house = House::new();
    let version = house.adapter("a", 1);
    let other = house.adapter("b", 2);
    let event = |name: Option<&str>, version: AdapterVersion, kind| AdapterEvent {
        revision: 1,
        name: name.map(|name| name.parse().unwrap()),
        version,
        kind,
    };
    let events = vec![
        event(None, version, Kind::Loading),
        event(Some("a"), version, Kind::Created),
        event(None, version, Kind::Loading),
        event(None, other, Kind::Loading),
        event(None, version, Kind::Resident),
        event(Some("a"), version, Kind::Replaced { previous: other }),
        event(None, version, Kind::Evicted),
        event(Some("a"), version, Kind::Deleted),
        event(Some("a"), version, Kind::Created),
        // Of a version without a name.
        event(None, AdapterVersion([9; 32]), Kind::Evicted),
    ];
    let told: Vec<_> = changes(&house.registry, events).into_iter().map(|change| (change.kind, change.name)).collect();
    let expected = [
        (EventType::Updated, "a"),
        (EventType::Created, "a"),
        (EventType::Updated, "a"),
        (EventType::Updated, "b"),
        (EventType::Replaced, "a"),
        (EventType::Updated, "a"),
        (EventType::Deleted, "a"),
        (EventType::Created, "a"),
    ];
    assert_eq!(told, expected.map(|(kind, text)| (kind, name(text))));
}

#[tokio::test]
async fn watchers_have_a_limit_for_each_peer_and_give_their_place_back() {
    let house = House::new();
    let feed = Feed::of(&house.registry);
    let mut watchers: Vec<Watch> =
        (0..MAX_WATCHERS_PER_PEER).map(|_| feed.watch(Arc::clone(&house.registry), peer(1)).unwrap()).collect();
    let refused = feed.watch(Arc::clone(&house.registry), peer(1)).err();
    assert_eq!(refused, Some(Exhausted::Peer { peer: peer(1), limit: MAX_WATCHERS_PER_PEER }));
    synced(&mut feed.watch(Arc::clone(&house.registry), peer(2)).unwrap()).await;
    assert_eq!(synced(&mut watchers[7]).await, 0);
    watchers.clear();
    loop {
        // Those who left are noticed by their tasks.
        if feed.watch(Arc::clone(&house.registry), peer(1)).is_ok() {
            break;
        }
        tokio::task::yield_now().await;
    }
}
