"""Compile kernels/*.cu to kernels/ptx/*.ptx, and write down of what they were made. See README.md."""

import argparse
import hashlib
import json
import re
import sys
from collections import Counter
from importlib.metadata import version
from pathlib import Path

from nvrtc import WHEEL, Nvrtc, Refused
from sources import digest_of, files_of

KERNELS = Path(__file__).resolve().parents[2] / "kernels"
# Sums are fused where a kernel says so and nowhere else: two kernels that write the same expression have the same bits.
OPTIONS = ["--gpu-architecture=compute_80", "--std=c++17", "--fmad=false"]
# PTX ISA of CUDA 12.2, which drivers from 535 on take.
NEWEST_ISA = (8, 2)


def stripped(ptx: str) -> str:
    """Without comments, empty lines and constants that nothing reads, as the compiler's own of `nv::target`."""
    lines = [line for line in (line.split("//")[0].rstrip() for line in ptx.splitlines()) if line]
    words = Counter(word for line in lines for word in re.findall(r"[\w$]+", line))

    def unread(line: str) -> bool:
        constant = re.match(r"\.global (?:\.align \d+ )?\.\w+ ([\w$]+)[^;]*;$", line)
        return constant is not None and words[constant.group(1)] == 1

    return "".join(f"{line}\n" for line in lines if not unread(line))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kernels", type=Path, default=KERNELS, help="folder of the sources; PTX goes to ptx/ in it")
    kernels = parser.parse_args().kernels
    out = kernels / "ptx"
    out.mkdir(exist_ok=True)
    nvrtc = Nvrtc()
    made = {}
    for source in sorted(kernels.glob("*.cu")):
        files = files_of(kernels, source.name)
        try:
            text = nvrtc.ptx(source.name, files, OPTIONS)
        except Refused as refused:
            sys.exit(f"{source.name}:\n{refused}")
        ptx = stripped(text)
        isa = tuple(map(int, re.search(r"^\.version (\d+)\.(\d+)$", ptx, re.MULTILINE).groups()))
        if isa > NEWEST_ISA:
            sys.exit(f"{source.name}: PTX ISA {isa[0]}.{isa[1]}: use the compiler of requirements.txt")
        (out / f"{source.stem}.ptx").write_text(ptx)
        made[source.stem] = {
            "files": list(files),
            "source": digest_of(files),
            "ptx": hashlib.sha256(ptx.encode()).hexdigest(),
        }
        print(f"{source.name}: {len(ptx)} bytes of PTX {isa[0]}.{isa[1]}")
    for stale in sorted(out.glob("*.ptx")):
        if stale.stem not in made:
            stale.unlink()
            print(f"{stale.name}: removed, it has no source")
    manifest = {"compiler": f"{WHEEL} {version(WHEEL)}", "options": OPTIONS, "kernels": made}
    (out / "digests.json").write_text(json.dumps(manifest, indent=2) + "\n")


if __name__ == "__main__":
    main()
