//! Compiles the protocol without protoc. Generated code and the descriptor set for reflection go to `OUT_DIR` only.

use std::error::Error;
use std::path::PathBuf;
use std::{env, fs};

use prost::Message;

const PROTOS: [&str; 3] = [
    "polydelta/v1/generation_service.proto",
    "polydelta/v1/adapter_service.proto",
    "polydelta/v1/server_service.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    println!("cargo:rerun-if-changed=build.rs");
    let descriptors = protox::compile(PROTOS, ["proto"])?;
    let out_dir = PathBuf::from(env::var_os("OUT_DIR").ok_or("OUT_DIR is not set")?);
    fs::write(out_dir.join("descriptors.bin"), descriptors.encode_to_vec())?;
    tonic_prost_build::configure().bytes(".polydelta.v1.UploadChunk.data").compile_fds(descriptors)?;
    Ok(())
}
