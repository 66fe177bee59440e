//! Compiles the protocol without protoc, and lists the files of the bundled model. Everything made goes to `OUT_DIR`.

use std::error::Error;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs, io};

use prost::Message;
use tonic_prost_build::{Config, FileDescriptorSet};

const PROTOS: [&str; 4] = [
    "polydelta/v1/generation_service.proto",
    "polydelta/v1/pooling_service.proto",
    "polydelta/v1/adapter_service.proto",
    "polydelta/v1/server_service.proto",
];

const MODEL: &str = "models/demo";
/// Figures and prompts for tests and readers, not needed to serve.
const NOT_BUNDLED: [&str; 2] = ["README.md", "eval"];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    println!("cargo:rerun-if-changed={MODEL}");
    println!("cargo:rerun-if-changed=build.rs");
    for (name, value) in [("TARGET", env::var("TARGET")?), ("PROFILE", env::var("PROFILE")?), ("RUSTC", rustc()?)] {
        println!("cargo:rustc-env=BUILD_{name}={value}");
    }
    let out_dir = PathBuf::from(env::var_os("OUT_DIR").ok_or("OUT_DIR is not set")?);
    let descriptors = protox::compile(PROTOS, ["proto"])?;
    fs::write(out_dir.join("descriptors.bin"), descriptors.encode_to_vec())?;
    generate(&out_dir, descriptors)?;

    let root = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").ok_or("CARGO_MANIFEST_DIR is not set")?).join(MODEL);
    let mut files = Vec::new();
    list(&root, &root, &mut files)?;
    files.sort();
    fs::write(out_dir.join("bundled.rs"), bundle(&root, &files)?)?;
    Ok(())
}

/// Messages and the server's side, whose codec names the field of what is no message; the clients' side into a folder of its
/// own, with tonic's codec.
fn generate(out_dir: &Path, descriptors: FileDescriptorSet) -> io::Result<()> {
    let mut named = Config::new();
    named.enable_type_names();
    tonic_prost_build::configure()
        .bytes(".polydelta.v1.UploadChunk.data")
        .build_client(false)
        .codec_path("crate::grpc::codec::Codec")
        .compile_fds_with_config(descriptors.clone(), named)?;
    let clients = out_dir.join("clients");
    fs::create_dir_all(&clients)?;
    tonic_prost_build::configure()
        .build_server(false)
        .extern_path(".polydelta.v1", "crate::grpc::pb")
        .out_dir(clients)
        .compile_fds(descriptors)
}

/// Name and version of the compiler.
fn rustc() -> Result<String, Box<dyn Error>> {
    let rustc = env::var_os("RUSTC").ok_or("RUSTC is not set")?;
    let output = Command::new(rustc).arg("--version").output()?;
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}

/// Paths of all files below `folder`, relative to `root`, with `/`.
fn list(root: &Path, folder: &Path, files: &mut Vec<String>) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let name = path.strip_prefix(root).map_err(io::Error::other)?.to_string_lossy().replace('\\', "/");
        if NOT_BUNDLED.contains(&name.as_str()) {
            continue;
        }
        if path.is_dir() {
            list(root, &path, files)?;
        } else {
            files.push(name);
        }
    }
    Ok(())
}

/// An expression of type `&[(&str, &[u8])]`.
fn bundle(root: &Path, files: &[String]) -> Result<String, Box<dyn Error>> {
    let mut code = String::from("&[\n");
    for file in files {
        let path = root.join(file);
        let path = path.to_str().ok_or("the path of the checkout is not UTF-8")?;
        writeln!(code, "    ({file:?}, include_bytes!({path:?})),")?;
    }
    code.push(']');
    Ok(code)
}
