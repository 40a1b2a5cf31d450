"""The links' native calls under sanitizers, and their structures as Python sees them."""

import ctypes
import subprocess
from pathlib import Path

import pytest

from moonshard.kernels import build
from moonshard.kernels.links import AnswerPlan, LinkRecord, LinkShape
from tests.unit.kernels import test_kernels_build
from tests.unit.kernels.test_kernels_build import compile_driver


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("sanitizers", ["address,undefined", "thread"], ids=["address", "thread"])
def test_links_are_clean_under_sanitizers(tmp_path: Path, sanitizers: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(test_kernels_build, "DRIVER", Path(__file__).parent / "sanitized_links.cpp")
    program = compile_driver(tmp_path, (f"-fsanitize={sanitizers}", "-fno-sanitize-recover=all", "-O1", "-g"))
    done = subprocess.run([str(program)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.endswith(" calls\n")


def test_structures_have_the_sizes_of_the_native_ones(tmp_path: Path) -> None:
    """A compiler checks what ctypes laid out."""
    compiler = build.find_compiler()
    if compiler is None:
        pytest.skip("no C++ compiler")
    lines = [
        f'#include "{build.SOURCES}/link_answer.h"',
        "#include <stddef.h>",
        "using namespace moonshard;",
    ]
    for name, structure in {"Link": LinkRecord, "LinkShape": LinkShape, "AnswerPlan": AnswerPlan}.items():
        lines.append(f"static_assert(sizeof({name}) == {ctypes.sizeof(structure)});")
        for field, *_ in structure._fields_:
            lines.append(f"static_assert(offsetof({name}, {field}) == {getattr(structure, field).offset});")
    source = tmp_path / "check.cpp"
    source.write_text("\n".join(lines) + "\n")
    done = subprocess.run(
        [compiler, "-std=c++17", "-fsyntax-only", str(source)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
