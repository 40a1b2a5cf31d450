"""Compiles the kernels into the package: `python -m moonshard.kernels`, and from the install's build hook.

Standard library only, and no import from moonshard: the build hook runs this file before anything is installed.
The library carries the hash of its sources, so an unchanged one is not compiled again and a stale one is not loaded.
"""

import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

SOURCES = Path(__file__).parent / "native"
LIBRARY = Path(__file__).parent / "_native.so"

_TIMEOUT_S = 300
# No contraction: each fused multiply-add is written out, so that every instruction set computes the same bits.
_FLAGS = ("-std=c++17", "-O3", "-fPIC", "-pthread", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-w")
_AVX2 = ("-mavx2", "-mfma")
_AVX512 = (*_AVX2, "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx512vnni", "-mprefer-vector-width=512")
ISA_FLAGS = {
    "isa_avx2": _AVX2,
    "isa_avx_vnni": (*_AVX2, "-mavxvnni"),
    "isa_avx512_vnni": _AVX512,
    "isa_avx512": (*_AVX512, "-mavx512bf16"),
}


class BuildError(Exception):
    """No compiler, or it failed; the message ends with what it said."""


def source_stamp() -> str:
    """What a current library carries: a word and the hash of all sources and of this file."""
    digest = hashlib.sha256()
    for path in (Path(__file__), *sorted(SOURCES.iterdir())):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return f"moonshard-kernels-{digest.hexdigest()[:32]}"


def is_current(library: Path = LIBRARY) -> bool:
    """Whether `library` exists and was compiled from the sources beside this file."""
    return library.is_file() and source_stamp().encode() in library.read_bytes()


def find_compiler() -> str | None:
    """Path of the C++ compiler: $CXX, else the first usual name."""
    names = [os.environ.get("CXX", ""), "c++", "g++", "clang++"]
    return next((path for name in names if name and (path := shutil.which(name))), None)


def _run(command: list[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BuildError(f"{command[0]}: {error}") from error
    if done.returncode != 0:
        raise BuildError(f"{' '.join(command)}\n{done.stderr[-2000:]}")


def _compile(compiler: str, source: Path, folder: Path, flags: tuple[str, ...]) -> Path | None:
    """The object file; None for an instruction set that this compiler does not know."""
    target = folder / f"{source.stem}.o"
    isa = ISA_FLAGS.get(source.stem, ())
    try:
        _run([compiler, *flags, *isa, "-c", str(source), "-o", str(target)])
    except BuildError:
        if isa:
            return None
        raise
    return target


def _sources() -> list[Path]:
    x86 = platform.machine().lower() in ("x86_64", "amd64")
    return [path for path in sorted(SOURCES.glob("*.cpp")) if x86 or path.stem not in ISA_FLAGS]


def compile_library(library: Path, extra_flags: tuple[str, ...] = ()) -> None:
    """Compile all sources into `library`; raises BuildError. Appears whole or not at all."""
    compiler = find_compiler()
    if compiler is None:
        raise BuildError("no C++ compiler found (looked for $CXX, c++, g++, clang++)")
    flags = (*_FLAGS, f'-DMOONSHARD_STAMP="{source_stamp()}"', *extra_flags)
    with tempfile.TemporaryDirectory() as name, ThreadPoolExecutor(os.cpu_count()) as threads:
        folder = Path(name)
        objects = [*threads.map(lambda source: _compile(compiler, source, folder, flags), _sources())]
        linked = library.with_name(f"{library.name}.{os.getpid()}")
        _run([compiler, *flags, "-shared", *(str(path) for path in objects if path), "-o", str(linked)])
        linked.replace(library)


def build(library: Path = LIBRARY) -> bool:
    """Compile unless current. True when the sources were compiled."""
    if is_current(library):
        return False
    compile_library(library)
    return True
