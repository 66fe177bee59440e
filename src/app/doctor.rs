//! `polydelta doctor`: what this machine computes with. It changes nothing, and a machine without a GPU is in order.

mod cpu;
mod gpu;
mod kernel_cache;

use std::io::{self, Write};

use serde::Serialize;

use super::error::AppError;
use crate::cli::CliError;
use crate::config::units::format_bytes;
use crate::config::{DoctorArgs, Environment};
use crate::ops::cuda::folders::library_folders;
use cpu::{Bandwidth, CpuReport};
use gpu::{ChosenDevice, CudaReport, DeviceReport, LibraryReport};
use kernel_cache::KernelCacheReport;

#[derive(Clone, Debug, PartialEq, Serialize)]
struct Report {
    version: &'static str,
    cpu: CpuReport,
    cuda: CudaReport,
    kernel_cache: KernelCacheReport,
    device_auto: ChosenDevice,
}

/// Look, measure, and say. Blocks for a second or two.
///
/// # Errors
/// Threads or memory that the system refuses, the writer's.
pub(super) fn run(args: &DoctorArgs, environment: &Environment, out: &mut impl Write) -> Result<(), AppError> {
    let (cuda, device_auto) = gpu::report(&library_folders(environment));
    let kernel_cache = kernel_cache::report(&args.resolve(environment)?);
    let cpu = cpu::report(!args.no_measure)?;
    let report = Report { version: env!("CARGO_PKG_VERSION"), cpu, cuda, kernel_cache, device_auto };
    let written = if args.json { write_json(&report, out) } else { write_text(&report, out) };
    Ok(written.map_err(CliError::Output)?)
}

fn write_json(report: &Report, out: &mut impl Write) -> io::Result<()> {
    serde_json::to_writer_pretty(&mut *out, report)?;
    writeln!(out)
}

fn row(out: &mut impl Write, label: &str, text: &str) -> io::Result<()> {
    writeln!(out, "{label:<16}{text}")
}

fn write_text(report: &Report, out: &mut impl Write) -> io::Result<()> {
    let Report { version, cpu, cuda, kernel_cache, device_auto } = report;
    row(out, "polydelta", version)?;
    row(out, "cpu", &format!("{} in bf16, {} in f32", cpu.isa.bf16, cpu.isa.f32))?;
    row(out, "threads", &cpu.threads.to_string())?;
    if let Some(bytes) = cpu.available_bytes {
        row(out, "memory", &format!("{} available", format_bytes(bytes)))?;
    }
    if let Some(memory) = &cpu.memory {
        row(out, "bandwidth", &bandwidth_line(memory, cpu.threads))?;
    }
    for library in &cuda.libraries {
        row(out, library.name, &library_line(library))?;
    }
    if let Some(line) = driver_line(cuda) {
        row(out, "driver", &line)?;
    }
    for device in &cuda.devices {
        row(out, &device.device, &device_line(device))?;
    }
    row(out, "kernel cache", &kernel_cache.line())?;
    row(out, "--device auto", &format!("{}: {}", device_auto.device, device_auto.reason))?;
    if let Some(remedy) = &device_auto.remedy {
        row(out, "for a GPU", remedy)?;
    }
    Ok(())
}

fn bandwidth_line(memory: &Bandwidth, threads: usize) -> String {
    let Bandwidth { bytes_per_second, read_bytes, reads } = memory;
    let (rate, read) = (bytes_per_second / 1e9, format_bytes(*read_bytes));
    format!("{rate:.1} GB/s, the median of {reads} reads of {read} on all {threads} threads")
}

fn library_line(library: &LibraryReport) -> String {
    let what = if library.needed { "" } else { "; not needed" };
    match (&library.path, &library.version, &library.problem) {
        (Some(path), Some(version), _) => format!("{}, version {version}{what}", path.display()),
        (Some(path), None, _) => format!("{}{what}", path.display()),
        (None, _, problem) => format!("{}{what}", problem.as_deref().unwrap_or("none")),
    }
}

fn driver_line(cuda: &CudaReport) -> Option<String> {
    let driver = &cuda.driver;
    let parts = [
        driver.version.as_deref().map(str::to_owned),
        driver.cuda.as_deref().map(|cuda| format!("takes CUDA {cuda}")),
        driver.module.as_deref().map(|module| format!("{module} in the kernel")),
    ];
    let parts: Vec<_> = parts.into_iter().flatten().collect();
    (!parts.is_empty()).then(|| parts.join(", "))
}

fn device_line(device: &DeviceReport) -> String {
    let DeviceReport { name, compute, multiprocessors, memory_bytes, dtypes, problem, .. } = device;
    let memory = format_bytes(*memory_bytes);
    let problem = problem.as_deref().map(|problem| format!("; cannot be used: {problem}")).unwrap_or_default();
    let dtypes = dtypes.join(", ");
    format!("{name}, compute capability {compute}, {multiprocessors} multiprocessors, {memory}, {dtypes}{problem}")
}
