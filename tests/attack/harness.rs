//! A server in a process of its own, and polite clients of it.

use std::fs;
use std::future::Future;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, ChildStderr, Command, Stdio};
use std::time::Duration;

use polydelta::grpc::pb;
use polydelta::grpc::pb::adapter_service_client::AdapterServiceClient;
use polydelta::grpc::pb::generation_service_client::GenerationServiceClient;
use rustix::process::{Pid, Resource, Rlimit, prlimit};
use serde_json::Value;
use tempfile::TempDir;
use tonic::Status;
use tonic::transport::{Channel, Endpoint};

/// A test whose event never comes fails instead of hanging.
pub(crate) async fn within<F: Future>(future: F) -> F::Output {
    match tokio::time::timeout(Duration::from_secs(120), future).await {
        Ok(output) => output,
        Err(_) => panic!("what the test waits for does not happen"),
    }
}

/// The address of the attacker.
pub(crate) const ATTACKER: Ipv4Addr = Ipv4Addr::LOCALHOST;
/// The address of a client that does no harm.
pub(crate) const POLITE: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 77);

pub(crate) fn command(limits: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", &format!("{limits}\nexec \"$0\" \"$@\""), env!("CARGO_BIN_EXE_polydelta")]);
    command.args(arguments).stdin(Stdio::null()).env("NO_COLOR", "1");
    command
}

/// `polydelta serve` with the demo's model.
pub(crate) struct Victim {
    process: Process,
    pub(crate) grpc: SocketAddr,
    pub(crate) metrics: SocketAddr,
    pub(crate) log: BufReader<ChildStderr>,
    _store: TempDir,
}

/// A test that fails leaves no server behind.
pub(crate) struct Process(pub(crate) Child);

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Process {
    /// SIGTERM, and the end: a clean one.
    pub(crate) async fn terminate(mut self) {
        let kill = Command::new("kill").args(["-TERM", &self.0.id().to_string()]).status().unwrap();
        assert!(kill.success());
        let status = within(async {
            loop {
                if let Some(status) = self.0.try_wait().unwrap() {
                    break status;
                }
                tokio::task::yield_now().await;
            }
        });
        assert!(status.await.success(), "SIGTERM is a clean end");
    }
}

impl Victim {
    /// Started after the shell commands `limits`, with further flags; returns when it is ready.
    pub(crate) fn start(limits: &str, flags: &[&str]) -> Self {
        let store = tempfile::tempdir().unwrap();
        let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/demo");
        let mut command = command(limits, &["serve", "--listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0"]);
        command.args(["--log-format", "json", "--drain-timeout", "1s"]).args(flags);
        command.arg("--model").arg(model).arg("--store").arg(store.path());
        let mut process = Process(command.stderr(Stdio::piped()).spawn().unwrap());
        let mut log = BufReader::new(process.0.stderr.take().unwrap());
        let ready = log.by_ref().lines().find_map(|line| {
            let line = line.unwrap();
            let entry: Value = serde_json::from_str(&line).unwrap_or_else(|_| panic!("not ready: {line}"));
            entry["grpc"].is_string().then_some(entry)
        });
        let ready = ready.expect("the server ended before it was ready");
        let grpc = ready["grpc"].as_str().unwrap().parse().unwrap();
        let metrics = ready["metrics"].as_str().unwrap();
        let metrics = metrics.trim_start_matches("http://").trim_end_matches("/metrics").parse().unwrap();
        Self { process, grpc, metrics, log, _store: store }
    }

    /// End it; what it logged since it was ready.
    pub(crate) async fn terminate(self) -> Vec<String> {
        let Self { process, log, .. } = self;
        let lines = std::thread::spawn(move || log.lines().map(Result::unwrap).collect());
        process.terminate().await;
        lines.join().unwrap()
    }

    /// End it while nobody reads its log.
    pub(crate) async fn end_unread(self) {
        let Self { process, log, .. } = self;
        process.terminate().await;
        drop(log);
    }

    /// A client from an address of this machine.
    pub(crate) async fn channel_from(&self, source: Ipv4Addr) -> Channel {
        let endpoint = Endpoint::from_shared(format!("http://{}", self.grpc)).unwrap();
        within(endpoint.local_address(Some(IpAddr::V4(source))).connect()).await.unwrap()
    }

    pub(crate) async fn adapters_from(&self, source: Ipv4Addr) -> AdapterServiceClient<Channel> {
        AdapterServiceClient::new(self.channel_from(source).await)
    }

    /// A polite client gets its text.
    pub(crate) async fn serves(&self) {
        within(generate(self.channel_from(POLITE).await, "Rosa Vega wants lamps.")).await.unwrap();
    }

    /// Memory in use, in bytes.
    pub(crate) fn resident(&self) -> u64 {
        self.memory("VmRSS:")
    }

    /// The most memory that was ever in use, in bytes.
    pub(crate) fn peak(&self) -> u64 {
        self.memory("VmHWM:")
    }

    fn memory(&self, label: &str) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.process.0.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix(label)).unwrap();
        line.trim().strip_suffix("kB").unwrap().trim().parse::<u64>().unwrap() * 1024
    }

    /// From now on it has `more` descriptors beside those that are open, and no further ones.
    pub(crate) fn limit_files(&self, more: usize) {
        let pid = self.process.0.id();
        let open = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count();
        let limit = Rlimit { current: Some((open + more) as u64), maximum: Some((open + more) as u64) };
        prlimit(Pid::from_raw(pid as i32), Resource::Nofile, limit).unwrap();
    }

    /// The page of metrics, asked for by a polite client.
    pub(crate) fn scrape(&self) -> String {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind((POLITE, 0).into()).unwrap();
        let metrics = self.metrics;
        let connected = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async move { socket.connect(metrics).await.unwrap().into_std().unwrap() })
        });
        let mut stream: TcpStream = connected.join().unwrap();
        stream.set_nonblocking(false).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
        let mut page = String::new();
        stream.read_to_string(&mut page).unwrap();
        assert!(page.starts_with("HTTP/1.1 200"), "{page}");
        page
    }

    /// The sum of a metric over the series that have all of `labels`.
    pub(crate) fn metric(&self, name: &str, labels: &[&str]) -> f64 {
        let page = self.scrape();
        let series = page.lines().filter(|line| line.split(['{', ' ']).next() == Some(name));
        let series = series.filter(|line| labels.iter().all(|label| line.contains(label)));
        series.map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()).sum()
    }
}

pub(crate) async fn generate(channel: Channel, prompt: &str) -> Result<String, Status> {
    let request = pb::GenerateRequest {
        input: Some(pb::generate_request::Input::Prompt(prompt.to_owned())),
        stopping: Some(pb::StoppingParams { max_tokens: Some(8), ..pb::StoppingParams::default() }),
        ..pb::GenerateRequest::default()
    };
    let response = GenerationServiceClient::new(channel).generate(request).await?;
    Ok(response.into_inner().choices.remove(0).text)
}
