"""Compiling: the sanitizers' verdict, caching by source, and life without a compiler."""

import logging
import subprocess
from pathlib import Path

import pytest

from moonshard.kernels import build, library

DRIVERS = [Path(__file__).parent / name for name in ("sanitized.cpp", "sanitized_attention.cpp")]


def compile_driver(folder: Path, flags: tuple[str, ...]) -> Path:
    """The driver linked to a library of the same flags; skips where compiler or sanitizer is missing."""
    compiler = build.find_compiler()
    if compiler is None:
        pytest.skip("no C++ compiler")
    native, program = folder / "libnative.so", folder / "driver"
    command = [
        compiler,
        "-std=c++17",
        *flags,
        f"-I{build.SOURCES}",
        *map(str, DRIVERS),
        str(native),
        "-pthread",
        "-Wl,-rpath," + str(folder),
        "-o",
        str(program),
    ]
    probe = folder / "probe.cpp"
    probe.write_text("int main() {}")
    if subprocess.run(
        [compiler, *flags, str(probe), "-o", str(folder / "probe")], capture_output=True, timeout=60
    ).returncode:
        pytest.skip(f"{compiler} has no {flags[0]}")
    build.compile_library(native, flags)
    subprocess.run(command, check=True, timeout=120)
    return program


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("sanitizers", "rows"), [("address,undefined", "all"), ("thread", "sparse")], ids=["address", "thread"]
)
def test_every_path_is_clean_under_sanitizers(tmp_path: Path, sanitizers: str, rows: str) -> None:
    flags = (f"-fsanitize={sanitizers}", "-fno-sanitize-recover=all", "-O1", "-g")
    program = compile_driver(tmp_path, flags)
    done = subprocess.run([str(program), rows], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.endswith(" calls\n")


def test_an_unchanged_library_is_not_compiled_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "native.so"
    compiled: list[Path] = []

    def compile_library(path: Path, extra_flags: tuple[str, ...] = ()) -> None:
        compiled.append(path)
        path.write_bytes(b"code " + build.source_stamp().encode() + b" more code")

    monkeypatch.setattr(build, "compile_library", compile_library)
    assert build.build(target)
    assert not build.build(target)
    target.write_bytes(b"moonshard-kernels-of-yesterday")
    assert build.build(target)
    assert compiled == [target, target]


def test_without_a_compiler_the_build_says_what_it_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(build.BuildError, match=r"no C\+\+ compiler found"):
        build.build(tmp_path / "native.so")
    assert list(tmp_path.iterdir()) == []


def test_a_failing_compiler_is_quoted_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = tmp_path / "c++"
    compiler.write_text("#!/bin/sh\necho out of luck >&2\nexit 3\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    with pytest.raises(build.BuildError, match="out of luck"):
        build.build(tmp_path / "native.so")
    assert not (tmp_path / "native.so").exists()


def test_a_missing_library_is_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(build, "LIBRARY", tmp_path / "absent.so")
    monkeypatch.setattr(build, "is_current", lambda: False)
    library._installed.cache_clear()
    try:
        with caplog.at_level(logging.WARNING):
            assert not library.available()
            assert not library.available()
            with pytest.raises(RuntimeError, match="not built"):
                library.native()
    finally:
        library._installed.cache_clear()
    assert [record.message.split(":")[0] for record in caplog.records] == ["native kernels are not built"]
