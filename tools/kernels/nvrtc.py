"""NVRTC by ctypes: CUDA C++ to PTX, without a toolkit or a GPU."""

import ctypes

from wheels import file_of

WHEEL = "nvidia-cuda-nvrtc-cu12"


class Refused(Exception):
    """What the compiler says."""


class Nvrtc:
    def __init__(self) -> None:
        self.lib = ctypes.CDLL(str(file_of(WHEEL, "libnvrtc.so.12")))
        self.lib.nvrtcGetErrorString.restype = ctypes.c_char_p

    def _check(self, result: int) -> None:
        if result:
            raise Refused(self.lib.nvrtcGetErrorString(result).decode())

    def _text(self, program: ctypes.c_void_p, what: str) -> str:
        size = ctypes.c_size_t()
        self._check(getattr(self.lib, f"nvrtcGet{what}Size")(program, ctypes.byref(size)))
        buffer = ctypes.create_string_buffer(size.value)
        self._check(getattr(self.lib, f"nvrtcGet{what}")(program, buffer))
        return buffer.value.decode()

    def ptx(self, name: str, files: dict[str, bytes], options: list[str]) -> str:
        """Compile one file. The compiler sees these files and none on the disk."""
        headers = {header: content for header, content in files.items() if header != name}
        texts = (ctypes.c_char_p * len(headers))(*headers.values())
        names = (ctypes.c_char_p * len(headers))(*(header.encode() for header in headers))
        program = ctypes.c_void_p()
        create = self.lib.nvrtcCreateProgram
        self._check(create(ctypes.byref(program), files[name], name.encode(), len(headers), texts, names))
        try:
            flags = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
            if self.lib.nvrtcCompileProgram(program, len(options), flags):
                raise Refused(self._text(program, "ProgramLog"))
            return self._text(program, "PTX")
        finally:
            self.lib.nvrtcDestroyProgram(ctypes.byref(program))
