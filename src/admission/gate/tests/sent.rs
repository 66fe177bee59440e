//! Requests that bring an adapter.

use super::*;
use crate::adapters::AdapterBytes;
use crate::engine::InstallError;
use crate::types::ToProblem;

fn bringing(config: &str, weights: &str) -> AdmissionRequest {
    let files = AdapterBytes { config: config.into(), weights: weights.into() };
    AdmissionRequest { delta: DeltaChoice::Sent(files.into()), ..request("prompt") }
}

fn house(max: u64) -> House {
    House::with(|parts| parts.limits.max_inline_adapter_bytes = max)
}

#[tokio::test]
async fn what_a_request_brings_is_one_version_with_what_others_bring_and_never_stored() {
    let house = house(10);
    let served = async |config: &str, weights: &str| {
        let generation = house.gate.admit(bringing(config, weights), Arrival::now()).await.unwrap();
        let ServingDelta::Sent { version } = generation.info().delta else { panic!("it was brought") };
        assert_eq!(house.engine.take().request.adapter.unwrap().version, version);
        version
    };
    let first = served("{}", "weights").await;
    assert_eq!(served("{}", "weights").await, first);
    assert_eq!(house.registry.residency().stats().loads, 1);
    assert_ne!(served("{}", "weight").await, first);
    served("{}", "w").await;
    assert_eq!(house.registry.residency().take_forgotten(), [first], "it had to leave");
    assert_eq!((house.registry.len(), house.registry.leases(), house.gate.free_places()), (0, 0, 2));
}

#[tokio::test]
async fn what_a_request_brings_is_refused_where_it_is_off_too_large_or_wrong() {
    let off = refusal(&House::new(), bringing("{}", "w")).await;
    assert!(matches!(off, AdmissionError::NoSentAdapters), "{off:?}");
    assert_eq!(off.to_problem().reason, "INLINE_ADAPTERS_OFF");
    let house = house(4);
    let large = refusal(&house, bringing("{}", "wei")).await;
    assert!(matches!(large, AdmissionError::Invalid(InvalidRequest::TooLong { bytes: 5, max: 4, .. })), "{large:?}");
    for (config, weights) in [("", "w"), ("{}", "")] {
        let empty = refusal(&house, bringing(config, weights)).await;
        assert!(matches!(empty, AdmissionError::Invalid(InvalidRequest::Empty { .. })), "{empty:?}");
    }
    assert_eq!(house.installer.asked.load(SeqCst), 0);
    house.installer.broken.store(true, SeqCst);
    let broken = refusal(&house, bringing("{}", "w")).await;
    let of_installer = crate::admission::testing::broken();
    assert!(matches!(of_installer, InstallError::Step(_)));
    assert!(matches!(&broken, AdmissionError::Sent(source) if source.to_string() == of_installer.to_string()));
    assert_eq!((house.registry.leases(), house.gate.free_places()), (0, 2));
}
