//! aLoRA: clients see what activates an adapter and where it was, and what comes before is the base's.

use polydelta::grpc::pb;

use super::generation::{check, collect, events, unary, without_times};
use super::golden::{GoldenServer, case};

fn cached(response: &pb::GenerateResponse) -> u32 {
    response.usage.unwrap().cached_tokens
}

#[tokio::test]
async fn a_request_finds_what_the_base_computed_before_its_adapter_is_activated() {
    let server = GoldenServer::start().await;
    server.upload_golden(&["alora", "alora_head"]).await;
    let case = case("alora/long");
    let of_base = pb::GenerateRequest { adapter: String::new(), ..case.request() };
    // Under a salt of its own nothing is found.
    let alone = unary(&server, pb::GenerateRequest { cache_salt: "alone".into(), ..case.request() }).await;
    assert_eq!((cached(&alone), alone.active_from), (0, Some(14)));
    let base = unary(&server, of_base.clone()).await;
    assert_eq!((cached(&base), base.active_from), (0, None));
    // Blocks of 4: three end before the invocation begins.
    let activated = unary(&server, case.request()).await;
    assert_eq!((cached(&activated), activated.active_from), (12, Some(14)));
    check(&case, &activated.choices[0]);
    assert_eq!(without_times(activated), without_times(alone));
    // To another adapter that the prompt does not activate, all of it is the base's.
    let other = unary(&server, pb::GenerateRequest { adapter: "alora_head".into(), ..case.request() }).await;
    assert_eq!((cached(&other), other.active_from), (28, None));
    assert_eq!(other.choices, base.choices);
    // The other way round, in a stream.
    let salted = |request| pb::GenerateRequest { cache_salt: "salt".into(), ..request };
    unary(&server, salted(case.request())).await;
    let again = collect(&events(&server, salted(of_base)).await.unwrap());
    assert_eq!((cached(&again), again.active_from), (12, None));
    assert_eq!(again.choices, base.choices);
}

#[tokio::test]
async fn choices_echo_and_scores_keep_to_where_an_adapter_is_activated() {
    let server = GoldenServer::start().await;
    server.upload_golden(&["alora"]).await;
    let case = case("alora/twice");
    let of = |n, echo, prompt_logprobs| {
        let options = pb::OutputOptions { echo, prompt_logprobs, ..case.request().options.unwrap() };
        pb::GenerateRequest { n, options: Some(options), ..case.request() }
    };
    let response = unary(&server, of(3, false, None)).await;
    assert_eq!((response.choices.len(), response.active_from), (3, Some(11)));
    response.choices.iter().for_each(|choice| check(&case, choice));
    let echoed = unary(&server, of(1, true, Some(0))).await;
    assert_eq!(echoed.choices[0].token_ids, [&case.prompt[..], &case.ids].concat());
    assert_eq!(echoed.prompt_logprobs.len(), case.prompt.len() - 1);
    // Rows before the first row that the adapter works on say what the base's say.
    let base = unary(&server, pb::GenerateRequest { adapter: String::new(), ..of(1, false, Some(0)) }).await;
    let same = base.prompt_logprobs.iter().zip(&echoed.prompt_logprobs).take_while(|(base, own)| base == own).count();
    assert_eq!(same, 11);
}

#[tokio::test]
async fn an_adapter_says_what_activates_it_and_whose_kv_it_has() {
    let server = GoldenServer::start().await;
    for (name, tokens, keeps) in [("alora", &[17, 42, 8][..], false), ("behind_kv", &[], true), ("lora_r4", &[], false)]
    {
        server.upload_golden(&[name]).await;
        let request = pb::GetAdapterRequest { name: name.into() };
        let adapter = server.adapters().await.get_adapter(request).await.unwrap().into_inner().adapter.unwrap();
        assert_eq!((&adapter.invocation_tokens[..], adapter.keeps_base_kv), (tokens, keeps), "{name}");
    }
}
