//! `polydelta adapter …`

use std::io::Write;

use serde_json::{Value, json};
use tonic::transport::Channel;

use super::client::{connect, request};
use super::exit::CliError;
use super::interrupt::unless_interrupted;
use super::table::Table;
use super::upload;
use crate::config::client::NamedArgs;
use crate::config::units::format_bytes;
use crate::config::{AdapterCommand, ClientArgs, DriftArgs, Environment, Terminal};
use crate::grpc::pb;
use crate::telemetry::Spinner;
use pb::adapter_service_client::AdapterServiceClient;

type Service = AdapterServiceClient<Channel>;

const PAGE: i32 = 500;

/// Run a verb, writing to `out`. `inspect` compiles an adapter without a server; it is the caller's, who has the room
/// that compiles.
///
/// # Errors
/// The connection, the server's refusal, the output, or whatever `inspect` says.
pub async fn run<E: From<CliError>>(
    command: &AdapterCommand,
    environment: &Environment,
    terminal: Terminal,
    out: &mut impl Write,
    inspect: impl AsyncFnOnce(&DriftArgs) -> Result<(), E>,
) -> Result<(), E> {
    match command {
        AdapterCommand::Inspect(args) => inspect(args).await,
        // It has to say how to go on.
        AdapterCommand::Upload(args) => {
            let uploaded = upload::run(args, environment, terminal).await;
            print(&args.client, uploaded, out).map_err(E::from)
        }
        command => unless_interrupted(with_server(command, terminal, out)).await.map_err(E::from),
    }
}

async fn with_server(command: &AdapterCommand, terminal: Terminal, out: &mut impl Write) -> Result<(), CliError> {
    let waiting = |client: &ClientArgs, what: &str| {
        Spinner::start(&format!("waiting for {} to {what}", client.server), terminal.progress)
    };
    match command {
        AdapterCommand::Inspect(_) | AdapterCommand::Export(_) | AdapterCommand::Upload(_) => Ok(()),
        AdapterCommand::List { client } => {
            let mut spinner = waiting(client, "list its adapters");
            let adapters = list(client).await?;
            spinner.clear();
            print_list(&adapters, client.json, out).map_err(CliError::Output)
        }
        AdapterCommand::Delete(args) => delete(args, out).await,
        AdapterCommand::Show(args) => print(&args.client, show(args).await, out),
        AdapterCommand::Load { named, pin } => {
            let mut spinner = waiting(&named.client, &format!("load {}", named.name));
            let loaded = load(named, *pin).await;
            spinner.clear();
            print(&named.client, loaded, out)
        }
        AdapterCommand::Unload(args) => print(&args.client, unload(args).await, out),
    }
}

fn print(
    client: &ClientArgs,
    adapter: Result<Option<pb::Adapter>, CliError>,
    out: &mut impl Write,
) -> Result<(), CliError> {
    let adapter = adapter?.ok_or(CliError::Incomplete { missing: "adapter" })?;
    print_one(&adapter, client.json, out).map_err(CliError::Output)
}

async fn show(args: &NamedArgs) -> Result<Option<pb::Adapter>, CliError> {
    let message = pb::GetAdapterRequest { name: args.name.to_string() };
    let mut service = Service::new(connect(&args.client).await?);
    Ok(service.get_adapter(request(&args.client, message)).await?.into_inner().adapter)
}

async fn load(args: &NamedArgs, pin: bool) -> Result<Option<pb::Adapter>, CliError> {
    let message = pb::LoadAdapterRequest { name: args.name.to_string(), pin: pin.then_some(true) };
    let mut service = Service::new(connect(&args.client).await?);
    Ok(service.load_adapter(request(&args.client, message)).await?.into_inner().adapter)
}

async fn unload(args: &NamedArgs) -> Result<Option<pb::Adapter>, CliError> {
    let message = pb::UnloadAdapterRequest { name: args.name.to_string() };
    let mut service = Service::new(connect(&args.client).await?);
    Ok(service.unload_adapter(request(&args.client, message)).await?.into_inner().adapter)
}

async fn delete(args: &NamedArgs, out: &mut impl Write) -> Result<(), CliError> {
    let message = pb::DeleteAdapterRequest { name: args.name.to_string(), ..pb::DeleteAdapterRequest::default() };
    let mut service = Service::new(connect(&args.client).await?);
    service.delete_adapter(request(&args.client, message)).await?;
    if args.client.json {
        writeln!(out, "{}", json!({ "deleted": args.name.as_str() })).map_err(CliError::Output)?;
    }
    Ok(())
}

/// All of them, page by page.
async fn list(client: &ClientArgs) -> Result<Vec<pb::Adapter>, CliError> {
    let mut service = Service::new(connect(client).await?);
    let mut adapters = Vec::new();
    let mut page_token = String::new();
    loop {
        let message = pb::ListAdaptersRequest { page_size: PAGE, page_token };
        let page = service.list_adapters(request(client, message)).await?.into_inner();
        adapters.extend(page.adapters);
        if page.next_page_token.is_empty() {
            return Ok(adapters);
        }
        page_token = page.next_page_token;
    }
}

fn print_list(adapters: &[pb::Adapter], json: bool, out: &mut impl Write) -> std::io::Result<()> {
    if json {
        let adapters: Vec<_> = adapters.iter().map(adapter_json).collect();
        return writeln!(out, "{:#}", json!({ "adapters": adapters }));
    }
    let mut table =
        Table::new(["NAME", "KIND", "GROUP", "TASK", "RANK", "STATE", "PIN", "ACTIVE", "DEVICE", "STORED", "VERSION"]);
    for adapter in adapters {
        table.row([
            adapter.name.clone(),
            or_dash(&adapter.kind),
            or_dash(&adapter.group),
            or_dash(&adapter.task),
            rank(adapter),
            state(adapter).to_owned(),
            if adapter.pinned { "yes" } else { "" }.to_owned(),
            adapter.active_requests.to_string(),
            if adapter.device_bytes == 0 { "-".to_owned() } else { format_bytes(adapter.device_bytes) },
            format_bytes(adapter.stored_bytes),
            adapter.version.chars().take(12).collect(),
        ]);
    }
    table.write(out)
}

/// Its rank, or the smallest and the largest.
fn rank(adapter: &pb::Adapter) -> String {
    match (adapter.min_rank, adapter.max_rank) {
        (_, 0) => "-".to_owned(),
        (min, max) if min == 0 || min == max => max.to_string(),
        (min, max) => format!("{min}-{max}"),
    }
}

fn or_dash(text: &str) -> String {
    if text.is_empty() { "-".to_owned() } else { text.to_owned() }
}

fn state(adapter: &pb::Adapter) -> &'static str {
    if adapter.base_mismatch {
        return "other base";
    }
    match adapter.state() {
        pb::AdapterState::Unspecified => "-",
        pb::AdapterState::Stored => "stored",
        pb::AdapterState::Loading => "loading",
        pb::AdapterState::Resident => "resident",
        pb::AdapterState::Evicting => "evicting",
    }
}

fn print_one(adapter: &pb::Adapter, json: bool, out: &mut impl Write) -> std::io::Result<()> {
    if json {
        return writeln!(out, "{:#}", adapter_json(adapter));
    }
    let ops: Vec<_> = adapter.ops.iter().map(|op| format!("{} × {}", op.count, op.op_class)).collect();
    let rows = [
        ("name", adapter.name.clone()),
        ("version", adapter.version.clone()),
        ("kind", or_dash(&adapter.kind)),
        ("group", or_dash(&adapter.group)),
        ("task", task(adapter)),
        ("state", state(adapter).to_owned()),
        ("pinned", if adapter.pinned { "yes" } else { "no" }.to_owned()),
        ("rank", rank(adapter)),
        ("ops", or_dash(&ops.join(", "))),
        ("targets", or_dash(&adapter.targets.join(", "))),
        ("chat template", if adapter.has_chat_template { "its own" } else { "the model's" }.to_owned()),
        ("vocabulary", vocabulary(adapter)),
        ("tokens", if adapter.has_own_tokens { "its own beside the base's" } else { "the base's" }.to_owned()),
        ("parameters", adapter.parameters.to_string()),
        ("virtual tokens", adapter.virtual_tokens.to_string()),
        ("invocation", or_dash(&ids(&adapter.invocation_tokens))),
        ("KV", if adapter.keeps_base_kv { "the base's" } else { "its own" }.to_owned()),
        ("base layers", adapter.base_layers.to_string()),
        ("on the device", format_bytes(adapter.device_bytes)),
        ("in the store", format_bytes(adapter.stored_bytes)),
        ("active requests", adapter.active_requests.to_string()),
        ("unknown fields", or_dash(&adapter.unknown_fields.join(", "))),
        ("base", or_dash(&adapter.base_digest)),
        ("last error", or_dash(&adapter.last_error)),
    ];
    rows.iter().try_for_each(|(label, value)| writeln!(out, "{label:<16}{value}"))
}

/// Token ids as people read them.
fn ids(ids: &[u32]) -> String {
    ids.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
}

fn vocabulary(adapter: &pb::Adapter) -> String {
    if adapter.vocab_size == 0 { "the base's".to_owned() } else { format!("{} tokens", adapter.vocab_size) }
}

/// As peft spells it, with the labels of a head.
fn task(adapter: &pb::Adapter) -> String {
    let task = or_dash(&adapter.task);
    if adapter.labels > 0 { format!("{task}, labels: {}", adapter.labels) } else { task }
}

fn adapter_json(adapter: &pb::Adapter) -> Value {
    let ops: serde_json::Map<_, _> = adapter.ops.iter().map(|op| (op.op_class.clone(), json!(op.count))).collect();
    json!({
        "name": adapter.name,
        "version": adapter.version,
        "kind": adapter.kind,
        "group": adapter.group,
        "task": adapter.task,
        "labels": adapter.labels,
        "state": adapter.state().as_str_name(),
        "pinned": adapter.pinned,
        "min_rank": adapter.min_rank,
        "max_rank": adapter.max_rank,
        "targets": adapter.targets,
        "unknown_fields": adapter.unknown_fields,
        "has_chat_template": adapter.has_chat_template,
        "has_own_tokens": adapter.has_own_tokens,
        "ops": ops,
        "parameters": adapter.parameters,
        "device_bytes": adapter.device_bytes,
        "stored_bytes": adapter.stored_bytes,
        "virtual_tokens": adapter.virtual_tokens,
        "invocation_tokens": adapter.invocation_tokens,
        "keeps_base_kv": adapter.keeps_base_kv,
        "base_layers": adapter.base_layers,
        "vocab_size": adapter.vocab_size,
        "active_requests": adapter.active_requests,
        "create_time": adapter.create_time.as_ref().map(ToString::to_string),
        "last_error": adapter.last_error,
        "base_digest": adapter.base_digest,
        "base_mismatch": adapter.base_mismatch,
    })
}
