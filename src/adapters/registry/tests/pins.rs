//! Pins: they last, and nobody has all of them.

use super::*;

#[test]
fn pins_last_and_unload_takes_them_off() {
    let root = tempfile::tempdir().unwrap();
    let registry = open(&root);
    upload_with(&registry, "a", 1, |head| head.pin = true).unwrap();
    drop(registry);
    let registry = open(&root);
    assert!(registry.get(&name("a")).unwrap().stored.pinned);
    assert!(!registry.unload(&name("a")).unwrap(), "not on the device");
    let want = registry.want(&name("a"), None, ClientKey::LOCAL).unwrap();
    let running = load(&want);
    drop(want);
    registry.pin(&name("a"), ClientKey::LOCAL).unwrap();
    assert!(matches!(registry.unload(&name("a")), Err(AdapterError::InUse { leases: 1, .. })));
    assert!(registry.get(&name("a")).unwrap().stored.pinned, "what is refused changes nothing");
    drop(running);
    assert!(registry.unload(&name("a")).unwrap());
    assert_eq!(registry.get(&name("a")).unwrap().status.state, AdapterState::Evicting);
    registry.residency().take_removal().unwrap().done();
    let info = registry.get(&name("a")).unwrap();
    assert_eq!((info.status.state, info.stored.pinned), (AdapterState::Stored, false));
}

#[test]
fn no_more_than_its_share_of_the_device_can_be_pinned() {
    let root = tempfile::tempdir().unwrap();
    let registry = open(&root).with_pin_limits(PinLimits { max_adapters: 2, max_bytes: 250 });
    for (seed, text) in ["a", "b", "c"].into_iter().enumerate() {
        upload(&registry, text, seed as u8);
    }
    upload(&registry, "alias", 0);
    registry.pin(&name("a"), ClientKey::LOCAL).unwrap();
    registry.pin(&name("b"), ClientKey::LOCAL).unwrap();
    registry.pin(&name("a"), ClientKey::LOCAL).unwrap();
    registry.pin(&name("alias"), ClientKey::LOCAL).unwrap();
    let refused = registry.pin(&name("c"), ClientKey::LOCAL).unwrap_err();
    assert!(matches!(refused, AdapterError::PinLimit { pinned: 2, max: 2, bytes: 100, pinned_bytes: 200, .. }));
    assert!(!registry.get(&name("c")).unwrap().stored.pinned);
    let pin = |header: &mut UploadHeader| header.pin = true;
    let refused = upload_with(&registry, "d", 9, pin).unwrap_err();
    assert!(matches!(refused, AdapterError::PinLimit { .. }), "{refused}, before a byte of it is sent");
    assert_eq!(registry.uploads().open().0, 0);
    registry.unpin(&name("a")).unwrap();
    registry.unpin(&name("alias")).unwrap();
    registry.pin(&name("c"), ClientKey::LOCAL).unwrap();
    upload_with(&registry, "c", 9, pin).unwrap();
    assert!(registry.get(&name("c")).unwrap().stored.pinned, "one pinned version in place of another");
}

#[test]
fn one_client_cannot_hold_all_pins() {
    let root = tempfile::tempdir().unwrap();
    let registry = open(&root).with_pin_limits(PinLimits { max_adapters: 4, max_bytes: 1000 });
    for (seed, text) in ["a", "b", "c", "d", "e"].into_iter().enumerate() {
        upload(&registry, text, seed as u8);
    }
    let (greedy, other) = (ClientKey([1; 32]), ClientKey([2; 32]));
    for text in ["a", "b", "c"] {
        registry.pin(&name(text), greedy).unwrap();
    }
    registry.pin(&name("a"), greedy).unwrap();
    let refused = registry.pin(&name("d"), greedy).unwrap_err();
    assert!(matches!(refused, AdapterError::PinsOfClient { pinned: 3, max: 3, .. }), "{refused}");
    let pin = |header: &mut UploadHeader| (header.pin, header.client) = (true, greedy);
    let refused = upload_with(&registry, "new", 9, pin).unwrap_err();
    assert!(matches!(refused, AdapterError::PinsOfClient { .. }), "{refused}");
    registry.pin(&name("d"), other).unwrap();
    registry.delete(&name("a"), Expected::Any).unwrap();
    registry.unpin(&name("d")).unwrap();
    upload_with(&registry, "new", 9, pin).unwrap();
    assert!(registry.pin(&name("e"), greedy).is_err(), "the upload's pin is its client's");
    assert_eq!([1, 2, 32].map(|max_adapters| PinLimits { max_adapters, max_bytes: 0 }.max_per_client()), [1, 1, 24]);
}

#[test]
fn pinned_bytes_are_bounded_by_what_versions_take_on_the_device() {
    let root = tempfile::tempdir().unwrap();
    let registry = open(&root).with_pin_limits(PinLimits { max_adapters: 9, max_bytes: 199 });
    upload(&registry, "a", 1);
    registry.pin(&name("a"), ClientKey::LOCAL).unwrap();
    let refused = upload_with(&registry, "b", 2, |header| header.pin = true).unwrap_err();
    assert!(matches!(refused, AdapterError::PinLimit { bytes: 100, pinned_bytes: 100, max_bytes: 199, .. }));
    assert!(registry.get(&name("b")).is_err(), "nothing of it is kept");
    assert_eq!(objects(&root), 1);
}
