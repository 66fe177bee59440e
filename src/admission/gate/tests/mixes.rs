//! Requests for a mix of adapters.

use super::*;
use crate::adapters::AdapterState;
use crate::adapters::testing::contents;
use crate::admission::{PartChoice, ServingPart};
use crate::types::OpClass;

fn part(name: &str, weight: f32) -> PartChoice {
    PartChoice { adapter: AdapterChoice { name: name.parse().unwrap(), version: None }, weight }
}

fn mix(parts: Vec<PartChoice>) -> AdmissionRequest {
    AdmissionRequest { delta: DeltaChoice::Mix(parts), ..request("prompt") }
}

#[tokio::test]
async fn a_mix_is_one_version_whoever_asks_for_it_in_whatever_order() {
    let house = House::new();
    let (a, b) = (house.adapter("a", 1), house.adapter("b", 3));
    let first = house.gate.admit(mix(vec![part("a", 0.5), part("b", -2.0)]), Arrival::now()).await.unwrap();
    let ServingDelta::Mix { version, parts } = first.info().delta.clone() else { panic!("a mix") };
    let named = |name: &str, version, weight| ServingPart { name: name.parse().unwrap(), version, weight };
    assert_eq!(parts, [named("a", a, 0.5), named("b", b, -2.0)]);
    assert!(version != a && version != b);
    drop(first);
    let submitted = house.engine.take();
    assert_eq!(submitted.request.adapter.unwrap().version, version);
    drop(submitted);
    let again = house.gate.admit(mix(vec![part("b", -2.0), part("a", 0.5)]), Arrival::now()).await.unwrap();
    assert!(matches!(&again.info().delta, ServingDelta::Mix { version: same, .. } if same == &version));
    let stats = house.registry.residency().stats();
    assert_eq!((stats.loads, stats.resident, stats.hits), (1, 1, 2), "it was there");
    // It is not stored, and its parts are not held on the device for it.
    assert_eq!(house.registry.len(), 2);
    assert!(!house.registry.unload(&"a".parse().unwrap()).unwrap());
    // A part of another version is another mix; what runs goes on.
    let replaced = house.adapter("a", 5);
    let other = house.gate.admit(mix(vec![part("a", 0.5), part("b", -2.0)]), Arrival::now()).await.unwrap();
    let ServingDelta::Mix { version: other_version, parts } = &other.info().delta else { panic!("a mix") };
    assert_ne!(other_version, &version);
    assert_eq!(parts[0].version, replaced);
    assert_eq!(house.registry.residency().status(version).leases, 1);
    drop((again, other));
    drop((house.engine.take(), house.engine.take()));
    assert_eq!((house.gate.free_places(), house.registry.leases()), (2, 0));
    let state = house.registry.residency().status(version).state;
    assert_eq!(state, AdapterState::Evicting, "its part has no name any more");
}

#[tokio::test]
async fn what_cannot_be_a_mix_is_refused_before_anything_is_loaded() {
    let house = House::new();
    let version = house.adapter("a", 1);
    house.installer.scales.store(true, SeqCst);
    house.adapter("scales", 3);
    for count in [0, 1, 9] {
        let refused = refusal(&house, mix(vec![part("a", 1.0); count])).await;
        assert!(
            matches!(refused, AdmissionError::Invalid(InvalidRequest::MixParts { min: 2, max: 8, .. })),
            "{refused:?}"
        );
    }
    for weight in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let refused = refusal(&house, mix(vec![part("a", 1.0), part("a", weight)])).await;
        let of_weight = InvalidRequest::NotFinite { field: "mix.weight", value: weight }.to_string();
        assert_eq!(refused.to_string(), of_weight);
    }
    let refused = refusal(&house, mix(vec![part("a", 1.0), part("none", 1.0)])).await;
    assert!(matches!(refused, AdmissionError::Adapter(AdapterError::NotFound { .. })), "{refused:?}");
    let mut pinned = part("a", 1.0);
    pinned.adapter.version = Some(AdapterVersion([9; 32]));
    let refused = refusal(&house, mix(vec![part("a", 1.0), pinned.clone()])).await;
    assert!(matches!(refused, AdmissionError::Adapter(AdapterError::VersionMismatch { .. })), "{refused:?}");
    let refused = refusal(&house, mix(vec![part("a", 1.0), part("scales", 0.0)])).await;
    assert!(matches!(refused, AdmissionError::NotLinear { class: OpClass::OutputScale, .. }), "{refused:?}");
    let words = "adapter scales cannot be part of a mix: its OutputScale multiplies what others add";
    assert_eq!(refused.to_string(), words);
    assert_eq!((house.installer.asked.load(SeqCst), house.registry.leases()), (0, 0));
    pinned.adapter.version = Some(version);
    assert!(house.gate.admit(mix(vec![part("a", 1.0), pinned]), Arrival::now()).await.is_ok());
}

#[tokio::test]
async fn a_chat_for_a_mix_needs_one_template() {
    let house = House::with(|parts| parts.chat_template = Some(Arc::new(template("base:{{ messages[0].content }}"))));
    for (name, seed) in [("plain", 1), ("same", 3), ("own", 2)] {
        house.adapter(name, seed);
    }
    // The same template, other weights.
    let mut files = contents(2);
    files[1].1.push(7);
    house.adapter_of("own2", &files);
    let user = ChatMessage { role: "user".into(), content: "hi".into() };
    let text = async |names: [&str; 2]| {
        let delta = DeltaChoice::Mix(names.map(|name| part(name, 1.0)).into());
        let chat = PromptInput::Chat(vec![user.clone()].into());
        house.gate.tokenize(chat, &delta, ClientKey::LOCAL).await.map(|prompt| prompt.text)
    };
    assert_eq!(text(["plain", "same"]).await.unwrap(), "base:hi");
    assert_eq!(text(["own", "own2"]).await.unwrap(), "2hi");
    for names in [["plain", "own"], ["own2", "same"]] {
        let refused = text(names).await.unwrap_err();
        assert!(matches!(refused, AdmissionError::ChatTemplates { .. }), "{refused:?}");
    }
}

#[tokio::test]
async fn every_adapter_of_a_mix_has_a_request_in_the_metrics() {
    let metrics = crate::telemetry::Metrics::disabled();
    let house = House::with(|parts| parts.metrics = metrics.clone());
    house.adapter("a", 1);
    house.adapter("b", 3);
    let found = || metrics.lora_requests().render(2, std::time::UNIX_EPOCH);
    let generation = house.gate.admit(mix(vec![part("b", 1.0), part("a", 1.0)]), Arrival::now()).await.unwrap();
    assert!(found().contains("waiting_lora_adapters=\"a,b\""), "{}", found());
    drop(generation);
    assert!(found().contains("waiting_lora_adapters=\"\""), "{}", found());
}
