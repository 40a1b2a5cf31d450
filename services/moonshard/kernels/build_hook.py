"""Build hook: compiles the CPU kernels into the package, for wheels and editable installs alike.

Without a compiler the install goes on without them and says so; moonshard then runs on torch's operators, slower.
"""

import runpy
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

# Relative to the root, as hatchling wants artifacts.
KERNELS = "services/moonshard/kernels"


class KernelsHook(BuildHookInterface):  # type: ignore[type-arg]
    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if self.target_name != "wheel":
            return
        builder = runpy.run_path(str(Path(self.root) / KERNELS / "build.py"))
        try:
            builder["build"]()
        except builder["BuildError"] as problem:
            self.app.display_warning(f"CPU kernels not built; moonshard will run several times slower: {problem}")
            return
        build_data["artifacts"].append(f"{KERNELS}/{builder['LIBRARY'].name}")
        build_data["pure_python"] = False
        build_data["infer_tag"] = True
