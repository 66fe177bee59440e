//! The loop over whole lines of tiles that arithmetic bounds, in assembly.
//!
//! Twelve sums, the weights and an x fill all sixteen registers, and the compiler's own allocation of such loops moves
//! or spills some of them at every k (a product of 8 rows then takes almost twice as long). Four lines a turn leave
//! little but multiplications to decode: where another thread shares the core, decoding is the floor. Reading ahead is
//! part of the loop, a few bytes at a time, as requests in bursts hold up one another.
//!
//! A *stripe* is half a panel, the eight columns of one register. This file only adds products to sums in registers:
//! it must not know y, ragged columns or an odd last k.
#![allow(unsafe_code)]

use std::arch::asm;
use std::arch::x86_64::__m256;

/// Most sums of a tile: the sum of row r and stripe s is `r * S + s`.
pub(super) const SUMS: usize = 12;

/// Most rows of a tile.
pub(super) const ROWS: usize = 6;

/// Where a tile reads.
pub(super) struct Operands {
    /// First k of each row.
    pub(super) x: [*const u32; ROWS],
    /// First line of each stripe; of two stripes, which are the halves of one panel, only the first counts.
    pub(super) w: [*const u32; 3],
    /// What is asked for meanwhile.
    pub(super) ahead: [*const u8; 2],
    /// Bytes from one request to the next, a line of ours apart.
    pub(super) step: usize,
    /// Lines.
    pub(super) lines: usize,
}

// Registers: ymm0 to ymm11 the sums, ymm12 to ymm14 the stripes of w, ymm15 an x. r8 to r13 rows of x, at byte rcx of
// them; rsi (and with three stripes r12 and r13, as there are no more than four rows) stripes of w, at byte rdi of them;
// r14 and r15 what is asked for, in steps of rax. rdx is where rcx ends.

/// Multiply the number at byte `$k` of a row with all stripes.
macro_rules! row {
    ($x:literal, $k:literal, [$($w:literal => $sum:literal),*]) => {
        concat!(
            "vbroadcastss ymm15, dword ptr [", $x, " + rcx + ", $k, "]\n",
            $("vfmadd231ps ymm", $sum, ", ymm", $w, ", ymm15\n",)*
        )
    };
}

/// Multiply one k of all rows with all stripes: `$rows` rows by `$stripes` stripes, at byte `$k` of each row.
macro_rules! rows {
    (3, 2, $k:literal) => {
        concat!(
            row!("r8", $k, [12 => 0, 13 => 1]),
            row!("r9", $k, [12 => 2, 13 => 3]),
            row!("r10", $k, [12 => 4, 13 => 5])
        )
    };
    (4, 2, $k:literal) => { concat!(rows!(3, 2, $k), row!("r11", $k, [12 => 6, 13 => 7])) };
    (5, 2, $k:literal) => { concat!(rows!(4, 2, $k), row!("r12", $k, [12 => 8, 13 => 9])) };
    (6, 2, $k:literal) => { concat!(rows!(5, 2, $k), row!("r13", $k, [12 => 10, 13 => 11])) };
    (3, 3, $k:literal) => {
        concat!(
            row!("r8", $k, [12 => 0, 13 => 1, 14 => 2]),
            row!("r9", $k, [12 => 3, 13 => 4, 14 => 5]),
            row!("r10", $k, [12 => 6, 13 => 7, 14 => 8])
        )
    };
    (4, 3, $k:literal) => { concat!(rows!(3, 3, $k), row!("r11", $k, [12 => 9, 13 => 10, 14 => 11])) };
}

/// The words of a line `$line` bytes further on: f32.
macro_rules! words {
    (2, $line:literal) => {
        concat!(
            "vmovups ymm12, ymmword ptr [rsi + rdi + ",
            $line,
            "]\n",
            "vmovups ymm13, ymmword ptr [rsi + rdi + 32 + ",
            $line,
            "]\n"
        )
    };
    (3, $line:literal) => {
        concat!(
            "vmovups ymm12, ymmword ptr [rsi + rdi + ",
            $line,
            "]\n",
            "vmovups ymm13, ymmword ptr [r12 + rdi + ",
            $line,
            "]\n",
            "vmovups ymm14, ymmword ptr [r13 + rdi + ",
            $line,
            "]\n"
        )
    };
}

/// The lower halves of the same words, the lower k: bf16 widened by a shift.
macro_rules! lower {
    (2, $line:literal) => {
        concat!(words!(2, $line), "vpslld ymm12, ymm12, 16\n", "vpslld ymm13, ymm13, 16\n")
    };
    (3, $line:literal) => {
        concat!(words!(3, $line), "vpslld ymm12, ymm12, 16\n", "vpslld ymm13, ymm13, 16\n", "vpslld ymm14, ymm14, 16\n")
    };
}

/// The upper halves, the upper k: bf16 widened by zeros in the lower half.
macro_rules! upper {
    (2, $line:literal) => {
        concat!(
            "vpxor xmm15, xmm15, xmm15\n",
            "vpblendw ymm12, ymm15, ymmword ptr [rsi + rdi + ",
            $line,
            "], 0xaa\n",
            "vpblendw ymm13, ymm15, ymmword ptr [rsi + rdi + 32 + ",
            $line,
            "], 0xaa\n"
        )
    };
    (3, $line:literal) => {
        concat!(
            "vpxor xmm15, xmm15, xmm15\n",
            "vpblendw ymm12, ymm15, ymmword ptr [rsi + rdi + ",
            $line,
            "], 0xaa\n",
            "vpblendw ymm13, ymm15, ymmword ptr [r12 + rdi + ",
            $line,
            "], 0xaa\n",
            "vpblendw ymm14, ymm15, ymmword ptr [r13 + rdi + ",
            $line,
            "], 0xaa\n"
        )
    };
}

/// Ask, into the second-level cache, for what belongs to four lines. A tile shares its panels with another at least, so
/// two requests reach all of its share.
macro_rules! ask {
    (2) => {
        "prefetcht1 byte ptr [r14]\n prefetcht1 byte ptr [r14 + 2*rax]\n lea r14, [r14 + 4*rax]\n"
    };
    (3) => {
        concat!(ask!(2), "prefetcht1 byte ptr [r15]\n prefetcht1 byte ptr [r15 + 2*rax]\n lea r15, [r15 + 4*rax]\n")
    };
}

/// A line `$line` bytes further on, whose first k is at byte `$low` (and whose second is at byte `$high`) of the rows.
macro_rules! line {
    (f32, $rows:tt, $stripes:tt, $line:literal, $low:literal, $high:literal) => {
        concat!(words!($stripes, $line), rows!($rows, $stripes, $low))
    };
    (bf16, $rows:tt, $stripes:tt, $line:literal, $low:literal, $high:literal) => {
        concat!(
            lower!($stripes, $line),
            rows!($rows, $stripes, $low),
            upper!($stripes, $line),
            rows!($rows, $stripes, $high)
        )
    };
}

/// Lines four by four up to rdx, then one by one up to `{end}`. `$x` are the bytes of x that belong to a line, `$at` the
/// places of the k of four lines.
macro_rules! lines {
    ($kind:tt, $rows:tt, $stripes:tt, $x:literal, [$($line:literal: $low:literal, $high:literal);*]) => {
        concat!(
            "cmp rcx, rdx\n je 3f\n .p2align 5\n",
            "2:\n",
            ask!($stripes),
            $(line!($kind, $rows, $stripes, $line, $low, $high),)*
            "add rdi, 256\n add rcx, 4*", $x, "\n cmp rcx, rdx\n jne 2b\n",
            "3:\n cmp rcx, {end}\n je 5f\n",
            "4:\n",
            line!($kind, $rows, $stripes, 0, 0, 4),
            "add rdi, 64\n add rcx, ", $x, "\n cmp rcx, {end}\n jne 4b\n",
            "5:\n"
        )
    };
}

/// Run a loop with the registers as listed above.
macro_rules! run {
    ($loop:expr, $operands:ident, $sums:ident, $x:literal) => {{
        let Operands { x, w, ahead, step, lines } = $operands;
        let (r12, r13) = if S == 3 { (w[1], w[2]) } else { (x[4], x[5]) };
        asm!(
            $loop,
            end = in(reg) lines * $x,
            inout("rcx") 0_usize => _, inout("rdi") 0_usize => _, in("rdx") lines / 4 * 4 * $x,
            in("r8") x[0], in("r9") x[1], in("r10") x[2], in("r11") x[3], in("r12") r12, in("r13") r13,
            in("rsi") w[0], inout("r14") ahead[0] => _, inout("r15") ahead[1] => _, in("rax") *step,
            inout("ymm0") $sums[0], inout("ymm1") $sums[1], inout("ymm2") $sums[2], inout("ymm3") $sums[3],
            inout("ymm4") $sums[4], inout("ymm5") $sums[5], inout("ymm6") $sums[6], inout("ymm7") $sums[7],
            inout("ymm8") $sums[8], inout("ymm9") $sums[9], inout("ymm10") $sums[10], inout("ymm11") $sums[11],
            out("ymm12") _, out("ymm13") _, out("ymm14") _, out("ymm15") _,
            options(nostack, readonly)
        );
    }};
}

/// Add the products of whole lines to the sums.
///
/// Semantics: `sums[r * S + s] += x[r, k] * w[k, stripe s]` with one rounding each, for every k of the lines, ascending.
///
/// # Safety
/// The machine has AVX2 and FMA. `(R, S)` is one of the shapes below; the first R rows of x and the first S stripes of
/// w (with S = 2: both halves of the first's panel) are readable for `lines` lines. `ahead` may point anywhere.
#[target_feature(enable = "avx2,fma")]
pub(super) unsafe fn add_lines<const BF16: bool, const R: usize, const S: usize>(
    operands: &Operands,
    sums: &mut [__m256; SUMS],
) {
    macro_rules! by_shape {
        ($(($r:tt, $s:tt)),*) => {
            match (BF16, R, S) {
                $(
                    (false, $r, $s) => {
                        run!(lines!(f32, $r, $s, 4, [0: 0, 0; 64: 4, 0; 128: 8, 0; 192: 12, 0]), operands, sums, 4)
                    }
                    (true, $r, $s) => {
                        run!(lines!(bf16, $r, $s, 8, [0: 0, 4; 64: 8, 12; 128: 16, 20; 192: 24, 28]), operands, sums, 8)
                    }
                )*
                _ => unreachable!("no tile of {R} rows and {S} stripes"),
            }
        };
    }
    // SAFETY: the contract of this function. The loops write registers alone, each of which is listed.
    unsafe { by_shape!((3, 2), (4, 2), (5, 2), (6, 2), (3, 3), (4, 3)) }
}
