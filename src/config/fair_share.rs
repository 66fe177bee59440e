//! How the server is shared out between clients and between adapters.

use clap::Args;

use super::checks::Checks;
use super::problem::ConfigProblem;

/// Fair share.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Fair share")]
pub struct FairShareArgs {
    /// Header that names the client of a request, as in `x-client-id`. Only for a server that nobody but a trusted
    /// gateway reaches: whoever writes the header chooses whose share is used. Without it a client is its address
    #[arg(long, value_name = "NAME")]
    pub client_header: Option<String>,
    /// What a prompt token weighs in the share of a client or an adapter
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub fair_input_weight: u32,
    /// What a generated token weighs
    #[arg(long, value_name = "N", default_value_t = 2)]
    pub fair_output_weight: u32,
    /// Most tokens in a step for a client or an adapter that has had more than its share, while others are active; half
    /// of --max-num-seqs where it is not given. Less makes others wait less for the step in progress
    #[arg(long, value_name = "TOKENS")]
    pub fair_step_tokens: Option<u32>,
    /// Most adapters that may be pinned to the device, with the same share of --adapter-memory, one client at most three
    /// quarters of them; half of --max-resident-adapters where it is not given, at least 1
    #[arg(long, value_name = "N")]
    pub max_pinned_adapters: Option<u32>,
    /// Most uploads of one client that may be open at a time
    #[arg(long, value_name = "N", default_value_t = 32)]
    pub max_uploads_per_client: u32,
    /// Largest priority of a request, up and down; beyond is refused. A priority is a head start over a bounded number
    /// of requests and tokens, never an absolute order
    #[arg(long, value_name = "N", default_value_t = 10)]
    pub max_priority: u32,
}

/// How the server is shared out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FairShareConfig {
    /// Header that names the client, in lower case; `None` takes the address.
    pub client_header: Option<String>,
    /// Weight of a prompt token.
    pub input_weight: u32,
    /// Weight of a generated token.
    pub output_weight: u32,
    /// Most rows of a step for who has had more than its share, while others are active.
    pub step_tokens: u32,
    /// Adapters that may be pinned; no more than are resident.
    pub max_pinned_adapters: u32,
    /// Open uploads of one client.
    pub max_uploads_per_client: u32,
}

/// Check the flags. `max_num_seqs` is that of the scheduler, `max_resident` that of the adapters.
pub(super) fn fair_share(
    checks: &mut Checks,
    args: &FairShareArgs,
    max_num_seqs: u32,
    max_resident: u32,
) -> FairShareConfig {
    let max_pinned_adapters = match args.max_pinned_adapters {
        Some(pinned) => checks.count("--max-pinned-adapters", pinned, 0, max_resident),
        None => (max_resident / 2).max(1),
    };
    let step_tokens = match args.fair_step_tokens {
        Some(tokens) => checks.count("--fair-step-tokens", tokens, 1, 1 << 20),
        None => (max_num_seqs / 2).max(1),
    };
    FairShareConfig {
        client_header: args.client_header.as_deref().and_then(|name| header(checks, name)),
        input_weight: checks.count("--fair-input-weight", args.fair_input_weight, 1, 1 << 16),
        output_weight: checks.count("--fair-output-weight", args.fair_output_weight, 1, 1 << 16),
        step_tokens,
        max_pinned_adapters,
        max_uploads_per_client: checks.count("--max-uploads-per-client", args.max_uploads_per_client, 1, 1 << 16),
    }
}

/// A name as RFC 9110 has it: a token. Binary headers of gRPC end in `-bin`, and are no names.
fn header(checks: &mut Checks, name: &str) -> Option<String> {
    let token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    let name = name.to_ascii_lowercase();
    if name.is_empty() || name.len() > 256 || !name.bytes().all(token) || name.ends_with("-bin") {
        let expected = "the name of a header, as in x-client-id";
        checks.report(ConfigProblem::Invalid { flag: "--client-header", value: name, expected });
        return None;
    }
    Some(name)
}
