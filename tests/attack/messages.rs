//! Messages that are never finished.

use polydelta::grpc::pb;
use polydelta::grpc::pb::generation_service_client::GenerationServiceClient;
use tonic::Code;

use super::harness::{ATTACKER, Victim, within};
use super::raw::{DATA, Frame, GOAWAY, Raw, frame};

const GENERATE: &str = "/polydelta.v1.GenerationService/Generate";

/// The beginning of a message that declares `declared` bytes, with `data` of them.
fn unfinished(stream: u32, declared: u32, data: usize) -> Vec<u8> {
    let mut body = vec![0];
    body.extend(declared.to_be_bytes());
    body.extend(std::iter::repeat_n(10, data));
    Frame::encode(DATA, 0, stream, &body)
}

/// Streams that the server has ended before it answers a ping.
async fn refused_until_pong(raw: &mut Raw) -> usize {
    raw.send(&frame::ping(*b"the end.")).await;
    let mut ended = 0;
    loop {
        let frame = raw.next().await.unwrap();
        assert!(frame.kind != GOAWAY, "{:?}", frame.go_away());
        ended += usize::from(frame.ends_stream());
        if frame.payload == b"the end." {
            return ended;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn unfinished_messages_take_what_they_are_given_and_no_more() {
    let victim = Victim::start("", &["--message-memory", "64MiB"]);
    victim.serves().await;
    let before = victim.resident();
    let mut attackers = Vec::new();
    for _ in 0..2 {
        let (mut raw, _) = Raw::open_from(ATTACKER, victim.grpc).await;
        // Its window is open once it has answered.
        assert!(raw.answers().await);
        for stream in (0..250).map(|call| 2 * call + 1) {
            raw.send(&[frame::call(stream, GENERATE), unfinished(stream, 4 << 20, 8000)].concat()).await;
        }
        attackers.push(raw);
    }
    // One address has 32 MiB: 8 messages; the answer to a ping may overtake refusals.
    let (mut refused, mut rounds) = (0, 0);
    while refused < 492 {
        rounds += 1;
        assert!(rounds < 10_000, "{refused} of 500 were refused");
        for raw in &mut attackers {
            refused += refused_until_pong(raw).await;
        }
    }
    assert_eq!(refused, 492);
    victim.serves().await;
    let grown = victim.resident().saturating_sub(before);
    assert!(grown < 128 << 20, "{} MiB more", grown >> 20);
    drop(attackers);
    victim.terminate().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_drips_ends_and_its_neighbours_do_not() {
    let victim = Victim::start("", &["--message-timeout", "300ms"]);
    let (mut raw, _) = Raw::open_from(ATTACKER, victim.grpc).await;
    raw.send(&[frame::call(1, GENERATE), unfinished(1, 1000, 1)].concat()).await;
    let mut sent = 1;
    // A byte whenever the server has shown that it is alive, until it has had enough.
    let ended = loop {
        assert!(sent < 1000, "it was never late");
        tokio::select! {
            frame = raw.next() => {
                let frame = frame.unwrap();
                if frame.stream == 1 && frame.ends_stream() {
                    break frame;
                }
            }
            () = tokio::time::sleep(std::time::Duration::from_millis(20)) => {
                raw.send(&Frame::encode(DATA, 0, 1, &[10])).await;
                sent += 1;
            }
        }
    };
    assert_eq!(ended.stream, 1);
    assert!(raw.answers().await, "the connection stays");
    victim.serves().await;
    victim.terminate().await;
}

/// A chat with so many messages, and a variable that is nested so deep.
fn chat(messages: usize, depth: usize) -> pb::TokenizeRequest {
    let message = |index| pb::ChatMessage { role: "user".into(), content: format!("hello {index}") };
    let kind = |kind| Some(prost_types::Value { kind: Some(kind) });
    let mut value = prost_types::Value { kind: Some(prost_types::value::Kind::NumberValue(1.0)) };
    for _ in 0..depth {
        let list = prost_types::ListValue { values: vec![value] };
        value = kind(prost_types::value::Kind::ListValue(list)).unwrap();
    }
    let kwargs = prost_types::Struct { fields: [("x".to_owned(), value)].into() };
    let chat = pb::Chat {
        messages: (0..messages).map(message).collect(),
        template_kwargs: Some(kwargs),
        ..pb::Chat::default()
    };
    pb::TokenizeRequest { input: Some(pb::tokenize_request::Input::Chat(chat)), ..pb::TokenizeRequest::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn chats_of_any_size_and_depth_are_answered_and_take_nothing_from_others() {
    let victim = Victim::start("", &[]);
    victim.serves().await;
    let before = victim.resident();
    let channel = victim.channel_from(ATTACKER).await;
    let ask = |request: pb::TokenizeRequest| {
        let mut client = GenerationServiceClient::new(channel.clone());
        tokio::spawn(async move { within(client.tokenize(request)).await.map_err(|refused| refused.code()).err() })
    };
    // The largest that a message holds, and all that is close to a limit.
    let sizes = [(100_000, 0), (4096, 0), (4097, 0), (1, 16), (1, 31), (1, 48), (1, 2000), (4096, 31)];
    let asked: Vec<_> =
        sizes.into_iter().cycle().take(80).map(|(messages, depth)| ask(chat(messages, depth))).collect();
    for answer in asked {
        let code = answer.await.unwrap().unwrap_or(Code::Ok);
        let fine =
            [Code::Ok, Code::InvalidArgument, Code::FailedPrecondition, Code::ResourceExhausted, Code::OutOfRange];
        assert!(fine.contains(&code), "{code:?}");
    }
    victim.serves().await;
    let grown = victim.resident().saturating_sub(before);
    assert!(grown < 256 << 20, "{} MiB more", grown >> 20);
    victim.terminate().await;
}
