//! A log that cannot be written.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::process::{ChildStdout, Stdio};

use tonic::transport::Endpoint;

use super::harness::{Process, Victim, command, generate, within};

/// Enough calls, logged in every detail, to fill a pipe several times.
const CALLS: usize = 40;

#[tokio::test(flavor = "multi_thread")]
async fn a_log_whose_reader_has_stopped_holds_up_neither_calls_nor_the_end() {
    let mut victim = Victim::start("", &["--log", "trace"]);
    for _ in 0..CALLS {
        victim.serves().await;
    }
    assert!(victim.metric("polydelta_log_dropped_lines_total", &[]) > 0.0, "the pipe was never full");
    // The reader goes on: what was lost is told.
    let told = tokio::task::spawn_blocking(move || {
        let told =
            victim.log.by_ref().lines().map(Result::unwrap).find(|line| line.contains("lines of the log were lost"));
        (victim, told)
    });
    // Once the queue has come to its end; further calls fill it again, but slower than it is read.
    let (victim, told) = within(told).await.unwrap();
    assert!(told.is_some());
    // And stops again.
    for _ in 0..CALLS {
        victim.serves().await;
    }
    victim.end_unread().await;
}

/// A demo, and where it serves: it says so on its standard output.
fn demo(stderr: Stdio) -> (Process, String, BufReader<ChildStdout>) {
    let mut command = command("", &["demo", "--log", "debug"]);
    let mut process = Process(command.stderr(stderr).stdout(Stdio::piped()).spawn().unwrap());
    let mut stdout = BufReader::new(process.0.stdout.take().unwrap());
    let address = stdout.by_ref().lines().find_map(|line| {
        let line = line.unwrap();
        let from = line.find("127.0.0.1:")?;
        let address: String = line[from..].chars().take_while(|c| c.is_ascii_digit() || ".:".contains(*c)).collect();
        Some(address)
    });
    (process, format!("http://{}", address.expect("the demo says where it serves")), stdout)
}

async fn is_served_to_the_end(stderr: Stdio) {
    // Its output stays open: a demo that nobody listens to ends.
    let (process, url, _output) = tokio::task::spawn_blocking(|| demo(stderr)).await.unwrap();
    for _ in 0..CALLS {
        let channel = Endpoint::from_shared(url.clone()).unwrap().connect().await.unwrap();
        within(generate(channel, "x")).await.unwrap();
    }
    process.terminate().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_under_the_log_changes_nothing_else() {
    is_served_to_the_end(File::options().write(true).open("/dev/full").unwrap().into()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_whose_reader_has_gone_changes_nothing_else() {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    is_served_to_the_end(writer.into()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_error_that_cannot_be_told_is_still_an_exit_code() {
    let mut command = command("", &["serve", "--model", "/does/not/exist", "--store", "/"]);
    let status = command.stderr(File::options().write(true).open("/dev/full").unwrap()).status().unwrap();
    assert_eq!(status.code(), Some(3), "what does not exist");
}
