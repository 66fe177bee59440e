//! The verbs that talk to a running server, and `inspect`, which needs none.

use std::time::Duration;

use clap::builder::BoolishValueParser;
use clap::{Args, Subcommand};

use super::source::AdapterSource;
use super::units::parse_duration;
use crate::types::AdapterName;

/// How to reach the server and how to print.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Server")]
pub struct ClientArgs {
    /// Address of the server
    #[arg(long, env = "POLYDELTA_SERVER", value_name = "URL", default_value = "http://127.0.0.1:50051")]
    pub server: String,
    /// Give up after this time, as in `90s` or `5m`; without it there is no limit
    #[arg(long, env = "POLYDELTA_TIMEOUT", value_name = "DURATION", value_parser = parse_duration)]
    pub timeout: Option<Duration>,
    /// Give up connecting after this time
    #[arg(long, env = "POLYDELTA_CONNECT_TIMEOUT", value_name = "DURATION", default_value = "5s", value_parser = parse_duration)]
    pub connect_timeout: Duration,
    /// Print one JSON document instead of text
    #[arg(long, env = "POLYDELTA_JSON", value_parser = BoolishValueParser::new())]
    pub json: bool,
}

/// `polydelta adapter …`.
#[derive(Clone, Debug, Subcommand)]
pub enum AdapterCommand {
    /// Upload an adapter folder as peft saved it
    Upload(UploadArgs),
    /// List the adapters of a server
    List {
        /// Server.
        #[command(flatten)]
        client: ClientArgs,
    },
    /// Show one adapter
    Show(NamedArgs),
    /// Delete an adapter; requests that use it run to their end
    Delete(NamedArgs),
    /// Say what an adapter folder compiles to and what would be refused, without a server
    Inspect(InspectArgs),
    /// Load an adapter onto the device before it is asked for
    Load {
        /// Which.
        #[command(flatten)]
        named: NamedArgs,
        /// Keep it on the device until it is unloaded
        #[arg(long, env = "POLYDELTA_PIN", value_parser = BoolishValueParser::new())]
        pin: bool,
    },
    /// Take an adapter off the device; it stays in the store
    Unload(NamedArgs),
}

/// One adapter of a server.
#[derive(Clone, Debug, Args)]
pub struct NamedArgs {
    /// Name of the adapter
    pub name: AdapterName,
    /// Server.
    #[command(flatten)]
    pub client: ClientArgs,
}

/// `polydelta adapter upload`.
#[derive(Clone, Debug, Args)]
pub struct UploadArgs {
    /// Name to serve it under
    pub name: AdapterName,
    /// Folder as peft saved it, or hf:ORG/REPO to fetch one, at a branch, tag or commit as in hf:ORG/REPO@v1.0; weights
    /// that are pickled (adapter_model.bin) are converted without running them
    #[arg(value_name = "DIR|hf:ORG/REPO[@REV]")]
    pub source: AdapterSource,
    /// Replace only this version; "" means that the name must not exist yet
    #[arg(long, env = "POLYDELTA_EXPECTED_VERSION", value_name = "VERSION")]
    pub expected_version: Option<String>,
    /// Check everything but keep nothing
    #[arg(long, env = "POLYDELTA_VALIDATE_ONLY", value_parser = BoolishValueParser::new())]
    pub validate_only: bool,
    /// Keep it on the device
    #[arg(long, env = "POLYDELTA_PIN", value_parser = BoolishValueParser::new())]
    pub pin: bool,
    /// Resume the upload with this id
    #[arg(long, env = "POLYDELTA_UPLOAD_ID", value_name = "ID")]
    pub upload_id: Option<String>,
    /// Server.
    #[command(flatten)]
    pub client: ClientArgs,
}

/// `polydelta adapter inspect`.
#[derive(Clone, Debug, Args)]
pub struct InspectArgs {
    /// Folder as peft saved it, or hf:ORG/REPO to fetch one, at a branch, tag or commit as in hf:ORG/REPO@v1.0
    #[arg(value_name = "DIR|hf:ORG/REPO[@REV]")]
    pub source: AdapterSource,
    /// Base model it was trained on: a folder or hf:ORG/NAME[@REV]. Where it is not given, the base that the config
    /// names, if that is a folder or in the hub's cache; else the bundled model
    #[arg(long, env = "POLYDELTA_MODEL", value_name = "DIR|hf:ORG/NAME[@REV]")]
    pub model: Option<String>,
    /// Accept fields of adapter_config.json that are not known here, as `serve` does with this flag
    #[arg(long, env = "POLYDELTA_ALLOW_UNKNOWN_ADAPTER_FIELDS", value_parser = BoolishValueParser::new())]
    pub allow_unknown_adapter_fields: bool,
    /// Print one JSON document instead of text
    #[arg(long, env = "POLYDELTA_JSON", value_parser = BoolishValueParser::new())]
    pub json: bool,
}

/// `polydelta generate`.
#[derive(Clone, Debug, Args)]
pub struct GenerateArgs {
    /// The prompt; `-` or nothing reads it from standard input
    pub prompt: Option<String>,
    /// Adapter to use; the base model where it is not given
    #[arg(long, env = "POLYDELTA_ADAPTER", value_name = "NAME")]
    pub adapter: Option<AdapterName>,
    /// Send the prompt as the user's message of a chat
    #[arg(long, env = "POLYDELTA_CHAT", value_parser = BoolishValueParser::new())]
    pub chat: bool,
    /// System message in front of it
    #[arg(long, env = "POLYDELTA_SYSTEM", value_name = "TEXT", requires = "chat")]
    pub system: Option<String>,
    /// Wait for the whole text instead of printing it as it comes
    #[arg(long, env = "POLYDELTA_NO_STREAM", value_parser = BoolishValueParser::new())]
    pub no_stream: bool,
    /// Sampling.
    #[command(flatten)]
    pub sampling: SamplingArgs,
    /// Stopping.
    #[command(flatten)]
    pub stopping: StoppingArgs,
    /// Number of choices
    #[arg(short, long, env = "POLYDELTA_N", value_name = "COUNT", help_heading = "Output")]
    pub n: Option<u32>,
    /// Report log-probabilities with this many alternatives
    #[arg(long, env = "POLYDELTA_LOGPROBS", value_name = "COUNT", help_heading = "Output")]
    pub logprobs: Option<u32>,
    /// Print the prompt too
    #[arg(long, env = "POLYDELTA_ECHO", value_parser = BoolishValueParser::new(), help_heading = "Output")]
    pub echo: bool,
    /// Larger goes first
    #[arg(long, env = "POLYDELTA_PRIORITY", value_name = "N", allow_negative_numbers = true, help_heading = "Output")]
    pub priority: Option<i32>,
    /// Server.
    #[command(flatten)]
    pub client: ClientArgs,
}

/// What is not given comes from the model's generation config. The server checks the ranges.
#[derive(Clone, Copy, Debug, Default, PartialEq, Args)]
#[command(next_help_heading = "Sampling")]
pub struct SamplingArgs {
    /// 0 is greedy
    #[arg(long, env = "POLYDELTA_TEMPERATURE", value_name = "T")]
    pub temperature: Option<f32>,
    /// Keep the K most likely tokens; 0 keeps all
    #[arg(long, env = "POLYDELTA_TOP_K", value_name = "K")]
    pub top_k: Option<u32>,
    /// Keep the smallest set of tokens with this probability
    #[arg(long, env = "POLYDELTA_TOP_P", value_name = "P")]
    pub top_p: Option<f32>,
    /// Drop tokens less likely than this fraction of the most likely one
    #[arg(long, env = "POLYDELTA_MIN_P", value_name = "P")]
    pub min_p: Option<f32>,
    /// Same seed, same text
    #[arg(long, env = "POLYDELTA_SEED", value_name = "N")]
    pub seed: Option<u64>,
    /// Divides the logits of tokens seen before; 1 is neutral
    #[arg(long, env = "POLYDELTA_REPETITION_PENALTY", value_name = "X")]
    pub repetition_penalty: Option<f32>,
    /// Subtracted once from the logits of tokens generated before
    #[arg(long, env = "POLYDELTA_PRESENCE_PENALTY", value_name = "X", allow_negative_numbers = true)]
    pub presence_penalty: Option<f32>,
    /// Subtracted for each time a token was generated before
    #[arg(long, env = "POLYDELTA_FREQUENCY_PENALTY", value_name = "X", allow_negative_numbers = true)]
    pub frequency_penalty: Option<f32>,
}

/// When to stop.
#[derive(Clone, Debug, Default, PartialEq, Eq, Args)]
#[command(next_help_heading = "Stopping")]
pub struct StoppingArgs {
    /// Most tokens to generate
    #[arg(long, env = "POLYDELTA_MAX_TOKENS", value_name = "N")]
    pub max_tokens: Option<u32>,
    /// Least tokens to generate
    #[arg(long, env = "POLYDELTA_MIN_TOKENS", value_name = "N")]
    pub min_tokens: Option<u32>,
    /// Text that ends the output; may be given several times
    #[arg(long, env = "POLYDELTA_STOP", value_name = "TEXT")]
    pub stop: Vec<String>,
    /// Do not stop at the model's end-of-sequence token
    #[arg(long, env = "POLYDELTA_IGNORE_EOS", value_parser = BoolishValueParser::new())]
    pub ignore_eos: bool,
}
