"""nvJitLink by ctypes: the driver's assembler of PTX, without a driver or a GPU."""

import ctypes
import re
from dataclasses import dataclass

from wheels import file_of

PTX = 2


class Refused(Exception):
    """What the assembler says."""


@dataclass
class Usage:
    """What one kernel takes."""

    registers: int
    stack: int
    spills: int
    shared: int


class Assembler:
    def __init__(self, wheel: str, soname: str, suffix: str) -> None:
        self.lib = ctypes.CDLL(str(file_of(wheel, soname)))
        self.suffix = suffix

    def _call(self, name: str, *args: object) -> int:
        return getattr(self.lib, f"__nvJitLink{name}_{self.suffix}")(*args)

    def _log(self, handle: ctypes.c_void_p, kind: str) -> str:
        size = ctypes.c_size_t()
        self._call(f"Get{kind}LogSize", handle, ctypes.byref(size))
        text = ctypes.create_string_buffer(size.value + 1)
        self._call(f"Get{kind}Log", handle, text)
        return text.value.decode()

    def assemble(self, ptx: bytes, arch: str) -> tuple[bytes, dict[str, Usage]]:
        """The machine code, and what each kernel takes by the assembler's own account."""
        options = (ctypes.c_char_p * 2)(f"-arch={arch}".encode(), b"-Xptxas=-v")
        handle = ctypes.c_void_p()
        if self._call("Create", ctypes.byref(handle), 2, options):
            raise Refused(f"no assembler for {arch}")
        try:
            text = ctypes.create_string_buffer(ptx)
            failed = self._call("AddData", handle, PTX, text, ctypes.c_size_t(len(ptx) + 1), b"ptx")
            if failed or self._call("Complete", handle):
                raise Refused(self._log(handle, "Error"))
            size = ctypes.c_size_t()
            self._call("GetLinkedCubinSize", handle, ctypes.byref(size))
            cubin = ctypes.create_string_buffer(size.value)
            self._call("GetLinkedCubin", handle, cubin)
            return cubin.raw, usage(self._log(handle, "Info"))
        finally:
            self._call("Destroy", ctypes.byref(handle))


def usage(log: str) -> dict[str, Usage]:
    found = {}
    parts = re.split(r"Compiling entry function '([^']+)'[^\n]*\n", log)
    for name, text in zip(parts[1::2], parts[2::2]):
        memory = re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", text)
        stack, stores, loads = map(int, memory.groups())
        shared = re.search(r"(\d+) bytes smem", text.split("Used", 1)[1].split("\n")[0])
        found[name] = Usage(
            registers=int(re.search(r"Used (\d+) registers", text).group(1)),
            stack=stack,
            spills=stores + loads,
            shared=int(shared.group(1)) if shared else 0,
        )
    return found
