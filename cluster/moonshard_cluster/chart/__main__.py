"""`python -m moonshard_cluster.chart`: write the chart's generated texts; `--check` fails when one is stale."""

import argparse
import json
import sys
from pathlib import Path

from moonshard_cluster.chart.documents import known_keys, values_schema, values_yaml, with_table

CHART = Path(__file__).resolve().parents[3] / "helm" / "moonshard"


def texts(chart: Path) -> dict[Path, str]:
    """The generated files of the chart and what they should hold."""
    readme = chart / "README.md"
    return {
        chart / "values.yaml": values_yaml(),
        chart / "values.schema.json": json.dumps(values_schema(), indent=2) + "\n",
        chart / "keys.json": json.dumps(known_keys(), indent=1) + "\n",
        readme: with_table(readme.read_text()),
    }


def main() -> int:
    parser = argparse.ArgumentParser(prog="moonshard_cluster.chart", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing, fail when a file is stale")
    check = parser.parse_args().check
    stale = [path for path, text in texts(CHART).items() if not path.exists() or path.read_text() != text]
    for path in stale:
        if not check:
            path.write_text(texts(CHART)[path])
        sys.stderr.write(f"{'stale' if check else 'written'}: {path.relative_to(CHART.parent.parent)}\n")
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
