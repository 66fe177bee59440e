//! Compiles the emulator and the kernels, once for everything they are made of.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use sha2::{Digest, Sha256};

/// `-ffp-contract=off` and `fused` decide what is fused, as on the device. Kernels give bytes of shared memory several types.
const FLAGS: [&str; 8] = [
    "-std=c++17",
    "-O2",
    "-g1",
    "-fPIC",
    "-ffp-contract=off",
    "-fstack-clash-protection",
    "-fno-strict-aliasing",
    "-fvisibility=hidden",
];
/// What the device refuses, or does otherwise than the host, in kernels.
const KERNEL_FLAGS: [&str; 3] = ["-fsanitize=alignment,bounds,shift-exponent,integer-divide-by-zero", "-x", "c++"];

/// What is made of the sources.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Product {
    /// `libcuda.so` with the kernels of `kernels/`.
    Driver,
    /// The same with the kernels that test the emulator.
    DriverForTests,
    /// `libcublasLt.so.12`, for a process that has one of the drivers.
    CublasLt,
    /// The program of the emulator's own tests.
    SelfTest,
}

impl Product {
    fn name(self) -> &'static str {
        match self {
            Self::Driver | Self::DriverForTests => "libcuda.so",
            Self::CublasLt => "libcublasLt.so.12",
            Self::SelfTest => "selftest",
        }
    }

    fn folders(self) -> &'static [&'static str] {
        match self {
            Self::Driver => &["tests/emulator", "tests/emulator/driver", "kernels"],
            Self::DriverForTests => {
                &["tests/emulator", "tests/emulator/driver", "kernels", "tests/emulator/selftest/kernels"]
            }
            Self::CublasLt => &["tests/emulator/cublaslt"],
            Self::SelfTest => &[
                "tests/emulator",
                "tests/emulator/driver",
                "tests/emulator/selftest",
                "tests/emulator/selftest/kernels",
            ],
        }
    }

    fn link_flags(self) -> &'static [&'static str] {
        match self {
            Self::Driver | Self::DriverForTests => &["-shared", "-Wl,-soname,libcuda.so", "-pthread"],
            Self::CublasLt => &["-shared", "-Wl,-soname,libcublasLt.so.12", "-ldl"],
            Self::SelfTest => &["-pthread"],
        }
    }
}

/// The product's path, made now if nothing of it was made before. Panics with what the compiler said.
pub(crate) fn build(product: Product) -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).join("emulator");
    let objects = target.join("objects");
    fs::create_dir_all(&objects).unwrap();
    // Test processes that run side by side make it once.
    let lock = File::create(target.join("lock")).unwrap();
    lock.lock().unwrap();

    let compiler = Compiler::find();
    let [for_emulator, for_kernels] = digests_of_headers(root, &compiler);
    let sources: Vec<PathBuf> =
        product.folders().iter().flat_map(|folder| files(&root.join(folder), &["cpp", "cu"])).collect();
    let wanted: Vec<(PathBuf, PathBuf)> = sources
        .into_iter()
        .map(|source| {
            let headers = if is_kernel(&source) { &for_kernels } else { &for_emulator };
            let name = digest(&[headers, source.to_str().unwrap().as_bytes(), &fs::read(&source).unwrap()]);
            (source, objects.join(hex::encode(name)).with_extension("o"))
        })
        .collect();
    let names: Vec<&[u8]> = wanted.iter().map(|(_, object)| object.to_str().unwrap().as_bytes()).collect();
    let made = target.join(&hex::encode(digest(&names))[..16]).join(product.name());
    if !made.exists() {
        compiler.compile_all(root, &wanted);
        fs::create_dir_all(made.parent().unwrap()).unwrap();
        compiler.link(product, &wanted, &made);
    }
    made
}

/// The C++ compiler.
struct Compiler {
    command: String,
    version: Vec<u8>,
}

impl Compiler {
    fn find() -> Self {
        let command = std::env::var("CXX").unwrap_or_else(|_| "c++".to_owned());
        match Command::new(&command).arg("--version").output() {
            Ok(Output { status, stdout, .. }) if status.success() => Self { command, version: stdout },
            _ => panic!(
                "no C++ compiler: `{command}` cannot be run. Install one (on Debian `apt install g++`), or name it in CXX"
            ),
        }
    }

    fn compile_all(&self, root: &Path, wanted: &[(PathBuf, PathBuf)]) {
        let next = AtomicUsize::new(0);
        let failures = Mutex::new(Vec::new());
        thread::scope(|scope| {
            for _ in 0..thread::available_parallelism().map_or(1, usize::from) {
                scope.spawn(|| {
                    while let Some((source, object)) = wanted.get(next.fetch_add(1, Ordering::Relaxed)) {
                        if !object.exists()
                            && let Err(said) = self.compile(root, source, object)
                        {
                            failures.lock().unwrap().push(said);
                        }
                    }
                });
            }
        });
        let failures = failures.into_inner().unwrap();
        assert!(failures.is_empty(), "{}", failures.join("\n"));
    }

    fn compile(&self, root: &Path, source: &Path, object: &Path) -> Result<(), String> {
        let mut command = Command::new(&self.command);
        command.args(FLAGS).arg("-I").arg(root.join("kernels"));
        if is_kernel(source) {
            command.args(KERNEL_FLAGS);
        }
        let unfinished = object.with_extension("unfinished");
        run(command.arg("-c").arg(source).arg("-o").arg(&unfinished))?;
        fs::rename(&unfinished, object).map_err(|error| error.to_string())
    }

    fn link(&self, product: Product, wanted: &[(PathBuf, PathBuf)], made: &Path) {
        let unfinished = made.with_extension("unfinished");
        let objects = wanted.iter().map(|(_, object)| object);
        let mut command = Command::new(&self.command);
        run(command.args(product.link_flags()).args(objects).arg("-o").arg(&unfinished)).unwrap();
        fs::rename(&unfinished, made).unwrap();
    }
}

fn run(command: &mut Command) -> Result<(), String> {
    let output = command.output().map_err(|error| format!("{command:?}: {error}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    if output.status.success() { Ok(()) } else { Err(format!("{command:?}: {}\n{said}", output.status)) }
}

fn is_kernel(source: &Path) -> bool {
    source.extension().is_some_and(|ending| ending == "cu")
}

/// All headers count for all kernels, and those of the emulator with `abi.cuh` for its sources: what includes what beyond that is not
/// worth knowing.
fn digests_of_headers(root: &Path, compiler: &Compiler) -> [Vec<u8>; 2] {
    let mut parts: Vec<Vec<u8>> = vec![compiler.command.clone().into_bytes(), compiler.version.clone()];
    parts.extend(FLAGS.iter().chain(&KERNEL_FLAGS).map(|flag| flag.as_bytes().to_vec()));
    let mut add = |headers: Vec<PathBuf>| {
        for header in headers {
            parts.push(fs::read(&header).unwrap());
            parts.push(header.into_os_string().into_encoded_bytes());
        }
        digest(&parts.iter().map(Vec::as_slice).collect::<Vec<_>>())
    };
    let folders = ["tests/emulator", "tests/emulator/driver", "tests/emulator/selftest"];
    let mut own: Vec<PathBuf> = folders.iter().flat_map(|folder| files(&root.join(folder), &["h"])).collect();
    own.push(root.join("kernels/abi.cuh"));
    [add(own), add(files(&root.join("kernels"), &["cuh"]))]
}

fn digest(parts: &[&[u8]]) -> Vec<u8> {
    let mut sha = Sha256::new();
    for part in parts {
        sha.update((part.len() as u64).to_le_bytes());
        sha.update(part);
    }
    sha.finalize().to_vec()
}

/// Files of a folder with one of these endings, by name.
fn files(folder: &Path, endings: &[&str]) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|ending| endings.iter().any(|wanted| *wanted == ending)))
        .collect();
    found.sort();
    found
}
