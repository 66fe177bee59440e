use super::*;
use crate::admission::{PartChoice, ServingPart};

#[test]
fn a_mix_arrives_in_its_order_and_is_said_with_what_its_names_stood_for() {
    let given = |adapter: &str, weight, version: &str| pb::MixPart {
        adapter: adapter.into(),
        weight,
        adapter_version: version.into(),
    };
    let mix = vec![given("b", -0.5, ""), given("a", 2.0, DIGEST)];
    let part = |name: &str, version, weight| PartChoice {
        adapter: AdapterChoice { name: name.parse().unwrap(), version },
        weight,
    };
    let wanted = DeltaChoice::Mix(vec![part("b", None, -0.5), part("a", Some(version()), 2.0)]);
    let request = generate_request(pb::GenerateRequest { mix: mix.clone(), ..prompt("x") }).unwrap();
    assert_eq!(request.delta, wanted);
    let input = Some(pb::tokenize_request::Input::Prompt("x".into()));
    let tokenize = pb::TokenizeRequest { input, mix: mix.clone(), ..Default::default() };
    assert_eq!(tokenize_input(tokenize).unwrap().1, wanted);
    for (bad, field) in [
        (pb::GenerateRequest { adapter: "a".into(), mix: mix.clone(), ..prompt("x") }, "mix"),
        (pb::GenerateRequest { adapter_version: DIGEST.into(), mix: mix.clone(), ..prompt("x") }, "mix"),
        (pb::GenerateRequest { mix: vec![given("", 1.0, "")], ..prompt("x") }, "mix.adapter"),
        (pb::GenerateRequest { mix: vec![given("a", 1.0, "1")], ..prompt("x") }, "mix.adapter_version"),
    ] {
        assert_eq!(generate_request(bad).unwrap_err().field(), field);
    }
    let part = |name: &str, weight| ServingPart { name: name.parse().unwrap(), version: version(), weight };
    let delta = ServingDelta::Mix { version: version(), parts: vec![part("b", -0.5), part("a", 2.0)] };
    let info = GenerationInfo { request_id: "r".into(), delta, active_from: None, choices: 1 };
    let Some(Event::Started(started)) = started(&info).event else { panic!("started") };
    assert_eq!((started.adapter.as_str(), started.adapter_version.as_str()), ("", DIGEST));
    assert_eq!(started.mix, [given("b", -0.5, DIGEST), given("a", 2.0, DIGEST)]);
    let response = Collected::new(&info, false).finish(Usage::default(), Timings::default(), None);
    assert_eq!(response.mix, started.mix);
}
