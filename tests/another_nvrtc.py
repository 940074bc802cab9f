"""Another NVRTC in place of CuPy's, by its shared library: the compile tests run with two compiler versions.

`NVRTC_FOLDER` names a folder with `lib/libnvrtc.so.*` and `include/`, as NVIDIA's wheels lay it out.
"""

import ctypes
from pathlib import Path

from flashmoe_nb.host import compiler


class NVRTCError(RuntimeError):
    pass


class Nvrtc:
    "The functions of `cupy.cuda.nvrtc` that `flashmoe_nb.host.compiler` uses, on a library of our choice."

    NVRTCError = NVRTCError

    def __init__(self, folder: Path):
        for builtins in folder.glob("libnvrtc-builtins.so.*"):  # opened by name later, which finds what is loaded
            ctypes.CDLL(str(builtins), mode=ctypes.RTLD_GLOBAL)
        self.library = ctypes.CDLL(str(next(folder.glob("libnvrtc.so.*"))))

    def call(self, name: str, *arguments):
        if status := getattr(self.library, name)(*arguments):
            raise NVRTCError(f"{name} failed with nvrtcResult {status}")

    def text(self, what: str, program) -> bytes:
        size = ctypes.c_size_t()
        self.call(f"nvrtcGet{what}Size", program, ctypes.byref(size))
        buffer = ctypes.create_string_buffer(size.value)
        self.call(f"nvrtcGet{what}", program, buffer)
        return buffer.raw

    def getVersion(self) -> tuple[int, int]:
        major, minor = ctypes.c_int(), ctypes.c_int()
        self.call("nvrtcVersion", ctypes.byref(major), ctypes.byref(minor))
        return major.value, minor.value

    def createProgram(self, source: str, name: str, headers: list[bytes], include_names: list[bytes]):
        program, texts = ctypes.c_void_p(), ctypes.c_char_p * len(headers)
        self.call("nvrtcCreateProgram", ctypes.byref(program), source.encode(), name.encode(), len(headers),
                  texts(*headers), texts(*include_names))  # fmt: skip
        return program

    def destroyProgram(self, program):
        self.call("nvrtcDestroyProgram", ctypes.byref(program))

    def addNameExpression(self, program, name: str):
        self.call("nvrtcAddNameExpression", program, name.encode())

    def compileProgram(self, program, options: list[str]):
        array = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
        self.call("nvrtcCompileProgram", program, len(options), array)

    def getLoweredName(self, program, name: str) -> str:
        lowered = ctypes.c_char_p()
        self.call("nvrtcGetLoweredName", program, name.encode(), ctypes.byref(lowered))
        return lowered.value.decode()

    def getProgramLog(self, program) -> str:
        return self.text("ProgramLog", program).rstrip(b"\0").decode()

    def getCUBIN(self, program) -> bytes:
        return self.text("CUBIN", program)


def use(folder: Path):
    "Compile with the NVRTC below `folder` from now on."
    nvrtc = Nvrtc(folder / "lib")
    compiler.nvrtc_binding = lambda: nvrtc
    compiler._include_options = lambda: (f"-I{folder / 'include'}",)
