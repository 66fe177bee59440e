"""What a kernel file is made of, and the digest of that. `tests/house/kernels.rs` computes the same in Rust."""

import hashlib
import re
from pathlib import Path

INCLUDE = re.compile(r'^\s*#\s*include\s+"([^"]+)"', re.MULTILINE)


def files_of(kernels: Path, name: str) -> dict[str, bytes]:
    """A source and all it includes, by name. What lies elsewhere is the host's compiler's: NVRTC is not shown it."""
    found: dict[str, bytes] = {}
    wanted = [name]
    while wanted:
        name = wanted.pop()
        if name in found or "/" in name:
            continue
        found[name] = (kernels / name).read_bytes()
        wanted.extend(INCLUDE.findall(found[name].decode()))
    return dict(sorted(found.items()))


def digest_of(files: dict[str, bytes]) -> str:
    """Over names and contents with their lengths, so that no two sets of files are alike."""
    sha = hashlib.sha256()
    for name, content in files.items():
        sha.update(f"{name}\n{len(content)}\n".encode())
        sha.update(content)
    return sha.hexdigest()
