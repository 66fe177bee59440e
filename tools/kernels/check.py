"""Assemble kernels/ptx/*.ptx for every kind of device and say what came out. See README.md."""

import argparse
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from nvjitlink import Assembler, Refused, Usage
from wheels import file_of

KERNELS = Path(__file__).resolve().parents[2] / "kernels"
OLD, NEW, DISASSEMBLER = "nvidia-nvjitlink-cu12", "nvidia-nvjitlink", "nvidia-cuda-nvdisasm"
# What the oldest driver has, and what those of today have.
ASSEMBLERS = [
    (OLD, "libnvJitLink.so.12", "12_2", ["sm_80", "sm_90a"]),
    (NEW, "libnvJitLink.so.13", "13_0", ["sm_80", "sm_90a", "sm_100", "sm_120"]),
]
# Most of a step is spent in these, so nothing of them may lie in local memory.
HOT = re.compile(r"(^|_)(gemm|shrink|expand|attention)")
# Of those, these have products of matrices in 16 bits.
TENSOR = re.compile(r"^(?!combine_).*_(bf16|f16)$")
BEGIN, END = "<!-- tools/kernels/check.sh --write -->", "<!-- end -->"


@dataclass
class Code:
    """Instructions of one kernel."""

    wide: int  # loads of 16 bytes from global memory, to registers or to shared memory
    narrow: int  # loads of fewer
    mma: int

    def expected(self) -> list[tuple[str, int]]:
        """What a product of matrices in 16 bits has."""
        return [("load of 16 bytes", self.wide), ("mma", self.mma)]


def codes(cubin: bytes) -> dict[str, Code]:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [file_of(DISASSEMBLER, "nvdisasm"), "-c", file.name]
        text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    parts = re.split(r"^\.text\.(\w+):$", text, flags=re.MULTILINE)
    found = {}
    for name, body in zip(parts[1::2], parts[2::2]):
        loads = re.findall(r"\b((?:LDG|LDGSTS)(?:\.\w+)*)\b", body)
        wide = sum(".128" in load for load in loads)
        mma = len(re.findall(r"\bHMMA\.16816\.F32", body))
        found[name] = Code(wide=wide, narrow=len(loads) - wide, mma=mma)
    return found


@dataclass
class Kernel:
    file: str
    threads: int
    usage: dict[str, Usage]
    code: dict[str, Code]
    old_usage: dict[str, Usage]  # by the oldest assembler

    def row(self, name: str) -> str:
        used = self.usage.values()
        registers = " / ".join(str(usage.registers) for usage in used)
        local = f"{max(usage.stack for usage in used)} / {max(usage.spills for usage in used)}"
        code = self.code["sm_90a"]
        cells = [f"`{name}`", self.threads, registers, local, f"{code.wide} / {code.narrow}", code.mma]
        return f"| {' | '.join(map(str, cells))} |"

    def problems(self, name: str) -> list[str]:
        found = []
        old = {f"{arch} with {version(OLD)}": usage for arch, usage in self.old_usage.items()}
        for arch, usage in (self.usage | old).items():
            if HOT.search(name) and usage.spills + usage.stack:
                found.append(f"{usage.spills} bytes of spills and {usage.stack} of stack on {arch}")
            if usage.shared > 1024:
                found.append(f"{usage.shared} bytes of shared memory that no launch asked for on {arch}")
        for arch, code in self.code.items():
            if HOT.search(name) and TENSOR.search(name):
                found += [f"no {what} on {arch}" for what, count in code.expected() if not count]
        return [f"{name}: {problem}" for problem in found]


def kernels_of(path: Path) -> dict[str, Kernel]:
    ptx = path.read_bytes()
    threads = re.findall(r"\.entry (\w+)\([^)]*\)\s*\.maxntid (\d+)", ptx.decode())
    found = {name: Kernel(path.stem, int(count), {}, {}, {}) for name, count in threads}
    for wheel, soname, suffix, archs in ASSEMBLERS:
        assembler = Assembler(wheel, soname, suffix)
        for arch in archs:
            try:
                cubin, usages = assembler.assemble(ptx, arch)
            except Refused as refused:
                sys.exit(f"{path.name}: {wheel} refuses it for {arch}:\n{refused}")
            code = codes(cubin) if wheel == NEW else {}
            for name, kernel in found.items():
                if wheel == NEW:
                    kernel.usage[arch], kernel.code[arch] = usages[name], code[name]
                else:
                    kernel.old_usage[arch] = usages[name]
    return found


def table(kernels: dict[str, Kernel]) -> str:
    archs = " / ".join(ASSEMBLERS[-1][-1])
    versions = f"nvJitLink {version(NEW)}; {version(OLD)}, as driver 535 has it, takes the same PTX"
    head = ["kernel", "threads", f"registers on {archs}", "bytes of stack / spilled", "loads of 16 bytes / fewer", "mma"]
    lines = [f"Assembled by {versions}. Instructions are counted in the code for sm_90a.", ""]
    lines += [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    lines += [kernel.row(name) for name, kernel in sorted(kernels.items(), key=lambda item: (item[1].file, item[0]))]
    return "\n".join(lines)


def around_table(readme: str) -> tuple[str, str, str]:
    """What stands before, in and after the place of the table, which is the end where there is none yet."""
    if BEGIN not in readme:
        return f"{readme}\n## What they take\n\n", "", "\n"
    before, rest = readme.split(BEGIN)
    old, after = rest.split(END)
    return before, old, after


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kernels", type=Path, default=KERNELS, help="folder of the sources; their PTX is in ptx/")
    parser.add_argument("--write", action="store_true", help="put the table into README.md of the folder")
    args = parser.parse_args()
    kernels: dict[str, Kernel] = {}
    for path in sorted((args.kernels / "ptx").glob("*.ptx")):
        kernels.update(kernels_of(path))
    text = table(kernels)
    print(text)
    readme = args.kernels / "README.md"
    before, old, after = around_table(readme.read_text())
    if args.write:
        readme.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}")
    problems = [problem for name, kernel in kernels.items() for problem in kernel.problems(name)]
    if not args.write and old.strip() != text:
        problems.append("the table in README.md is another one: run this with --write")
    if problems:
        sys.exit("\n" + "\n".join(problems))


if __name__ == "__main__":
    main()
