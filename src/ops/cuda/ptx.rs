//! What a file of PTX says of its kernels.

use std::iter;

/// A kernel of a PTX file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PtxEntry<'a> {
    /// By which the driver finds it.
    pub name: &'a str,
    /// Bytes of each parameter. A struct by value is one parameter.
    pub parameters: Vec<usize>,
    /// Bytes of shared memory that it declares itself. What a launch asks for is not among them.
    pub static_shared: usize,
    /// Most threads of a block, where it says so.
    pub threads: Option<u32>,
}

/// The kernels of a file, in its order.
pub fn entries(text: &str) -> impl Iterator<Item = PtxEntry<'_>> {
    let mut lines = text.lines().map(|line| line.split("//").next().unwrap_or_default().trim());
    iter::from_fn(move || {
        let name = lines.by_ref().find_map(entry_name)?;
        let mut entry = PtxEntry { name, parameters: Vec::new(), static_shared: 0, threads: None };
        let mut depth = 0_usize;
        for line in lines.by_ref() {
            // Within the body parameters are those of calls.
            if depth == 0 && line.starts_with(".param") {
                entry.parameters.push(declared_bytes(line));
            } else if let Some(threads) = line.strip_prefix(".maxntid ").filter(|_| depth == 0) {
                entry.threads = threads.split(',').next().and_then(|threads| threads.trim().parse().ok());
            } else if line.starts_with(".shared") {
                entry.static_shared += declared_bytes(line);
            }
            depth += line.matches('{').count();
            let closed = line.matches('}').count();
            depth = depth.saturating_sub(closed);
            if closed > 0 && depth == 0 {
                break;
            }
        }
        Some(entry)
    })
}

/// The value of a directive of the whole file, as `8.2` of `.version 8.2`.
#[must_use]
pub fn directive<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines().find_map(|line| line.trim().strip_prefix(name)?.strip_prefix(' ').map(str::trim))
}

fn entry_name(line: &str) -> Option<&str> {
    let declared = line.split_once(".entry")?.1.trim();
    Some(declared.split(['(', ' ']).next().unwrap_or_default())
}

/// Bytes of `.param .align 8 .b8 name[88],` or `.param .u64 name,`: a number's size by its type, times how many.
fn declared_bytes(line: &str) -> usize {
    let of_one = line.split_whitespace().find_map(type_bits).unwrap_or_default() / 8;
    let count = line.split_once('[').and_then(|(_, rest)| rest.split(']').next()?.parse().ok());
    of_one * count.unwrap_or(1)
}

/// 32 of `.f32`.
fn type_bits(word: &str) -> Option<usize> {
    let digits = word.strip_prefix('.')?.strip_prefix(['b', 'u', 's', 'f'])?;
    digits.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
.version 8.2
.target sm_80
.address_size 64

.extern .shared .align 16 .b8 dynamic[];
// .visible .entry in_a_comment(
.visible .entry gemm_bf16(
	.param .align 8 .b8 gemm_bf16_param_0[88]
)
.maxntid 256, 1, 1
{
	.reg .f32 	%f<45>;
	.shared .align 4 .b8 sums[128];
	.shared .f64 one;
	ld.global.nc.v4.u32 {%r20, %r21, %r22, %r23}, [%rd8];
	{ .reg .b16 low;
	  mov.b32 {low, _}, %r20;
	}
	call.uni (retval0), helper, (param0);
	{
	.param .b32 param0;
	}
	ret;
}
.visible .entry two(
	.param .u64 two_param_0,
	.param .u32 two_param_1
)
{
	ret;
}
.entry none()
{
	ret;
}
.visible .entry last(
	.param .align 8 .b8 last_param_0[16]
)
{
	ret;
}
";

    #[test]
    fn every_kernel_says_its_parameters_and_its_own_shared_memory() {
        let found: Vec<_> =
            entries(TEXT).map(|entry| (entry.name, entry.parameters, entry.static_shared, entry.threads)).collect();
        let wanted = [
            ("gemm_bf16", vec![88], 136, Some(256)),
            ("two", vec![8, 4], 0, None),
            ("none", vec![], 0, None),
            ("last", vec![16], 0, None),
        ];
        assert_eq!(found, wanted);
    }

    #[test]
    fn directives_are_read_whole() {
        assert_eq!((directive(TEXT, ".version"), directive(TEXT, ".target")), (Some("8.2"), Some("sm_80")));
        assert_eq!(directive(TEXT, ".vers"), None);
    }
}
