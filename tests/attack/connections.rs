//! Connections that come in floods, say nothing, or take every file descriptor.

use std::io::{BufRead, Read};
use std::net::{Ipv4Addr, SocketAddr};

use polydelta::grpc::pb;
use tokio::net::{TcpSocket, TcpStream};
use tonic::Code;

use super::harness::{ATTACKER, POLITE, Victim, within};
use super::raw::{GOAWAY, PREFACE, Raw, frame};

async fn connect(source: Ipv4Addr, address: SocketAddr) -> Option<TcpStream> {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind((source, 0).into()).unwrap();
    within(socket.connect(address)).await.ok()
}

/// Connections that stay open and say nothing.
async fn flood(source: Ipv4Addr, address: SocketAddr, count: usize) -> Vec<TcpStream> {
    let mut open = Vec::new();
    for _ in 0..count {
        open.extend(connect(source, address).await);
    }
    open
}

#[tokio::test(flavor = "multi_thread")]
async fn silent_connections_of_one_address_leave_room_for_others() {
    let victim = Victim::start("", &["--max-connections", "64"]);
    let _silent = flood(ATTACKER, victim.grpc, 100).await;
    let mut half = Raw::connect_from(Ipv4Addr::new(127, 0, 0, 2), victim.grpc).await;
    half.send(&PREFACE[..10]).await;
    victim.serves().await;
    assert!(victim.metric("polydelta_connections_refused_total", &["grpc", "peer"]) >= 68.0);
    victim.terminate().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_metrics_port_cannot_be_held_and_does_not_starve_grpc() {
    let victim = Victim::start("", &[]);
    let _silent = flood(ATTACKER, victim.metrics, 400).await;
    let _half: Vec<_> = flood(Ipv4Addr::new(127, 0, 0, 2), victim.metrics, 10).await;
    victim.serves().await;
    assert!(victim.scrape().contains("vllm:num_requests_running"));
    assert!(victim.metric("polydelta_connections_refused_total", &["metrics", "peer"]) >= 380.0);
    let log = victim.terminate().await;
    assert!(log.len() < 20, "{} lines: {log:#?}", log.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_with_few_descriptors_keeps_some_for_everybody() {
    let victim = Victim::start("ulimit -n 128", &[]);
    let _grpc = flood(ATTACKER, victim.grpc, 200).await;
    let _metrics = flood(ATTACKER, victim.metrics, 200).await;
    victim.serves().await;
    let mut client = victim.adapters_from(POLITE).await;
    let missing = client.get_adapter(pb::GetAdapterRequest { name: "nobody".into() }).await.unwrap_err();
    assert_eq!(missing.code(), Code::NotFound);
    super::uploads::upload_severity(&victim, "after-the-flood").await.unwrap();
    assert!(victim.metric("polydelta_connections_refused_total", &[]) > 300.0);
    let log = victim.terminate().await;
    assert!(log.len() < 60, "{} lines: {log:#?}", log.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_listener_without_descriptors_says_so_now_and_then_and_goes_on_when_there_are_some() {
    let mut victim = Victim::start("", &[]);
    victim.serves().await;
    victim.limit_files(8);
    let silent = flood(ATTACKER, victim.grpc, 100).await;
    let told = tokio::task::spawn_blocking(move || {
        let told = victim.log.by_ref().lines().map(Result::unwrap).find(|line| line.contains("cannot accept"));
        (victim, told)
    });
    let (victim, told) = within(told).await.unwrap();
    assert!(told.is_some());
    drop(silent);
    victim.serves().await;
    // It ends as it should while there are none, too.
    let _silent = flood(ATTACKER, victim.grpc, 100).await;
    let log = victim.terminate().await;
    assert!(log.len() < 20, "{} lines: {log:#?}", log.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn resets_and_streams_without_end_hit_their_own_connection_alone() {
    let victim = Victim::start("", &[]);
    let (mut raw, _) = Raw::open_from(ATTACKER, victim.grpc).await;
    const GENERATE: &str = "/polydelta.v1.GenerationService/Generate";
    let attack: Vec<u8> = (0..500)
        .map(|call| 2 * call + 1)
        .flat_map(|id| [frame::call(id, GENERATE), frame::reset(id)].concat())
        .collect();
    raw.send(&attack).await;
    assert!(within(raw.rest()).await.iter().any(|frame| frame.kind == GOAWAY));
    let mut flooded = Vec::new();
    for _ in 0..8 {
        let (mut raw, _) = Raw::open_from(ATTACKER, victim.grpc).await;
        let calls: Vec<u8> = (0..300).flat_map(|call| frame::call(2 * call + 1, GENERATE)).collect();
        raw.send(&calls).await;
        assert!(raw.answers().await);
        flooded.push(raw);
    }
    victim.serves().await;
    victim.terminate().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn watchers_have_a_limit_and_cost_others_nothing() {
    let victim = Victim::start("", &[]);
    let mut client = victim.adapters_from(ATTACKER).await;
    let mut other = victim.adapters_from(ATTACKER).await;
    let mut watching = Vec::new();
    for index in 0..256 {
        // As many streams as one connection has.
        let client = if index % 2 == 0 { &mut client } else { &mut other };
        watching.push(within(client.watch_adapters(pb::WatchAdaptersRequest {})).await.unwrap().into_inner());
    }
    let refused = client.watch_adapters(pb::WatchAdaptersRequest {}).await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted);
    let mut polite = victim.adapters_from(POLITE).await;
    let mut polite = polite.watch_adapters(pb::WatchAdaptersRequest {}).await.unwrap().into_inner();
    assert_eq!(within(polite.message()).await.unwrap().unwrap().r#type(), pb::AdapterEventType::Synced);
    super::uploads::upload_severity(&victim, "seen-by-all").await.unwrap();
    for watch in watching.iter_mut().chain([&mut polite]) {
        loop {
            let event = within(watch.message()).await.unwrap().unwrap();
            if event.r#type() == pb::AdapterEventType::Created {
                break;
            }
        }
    }
    victim.serves().await;
    victim.terminate().await;
}
