"""`python -m moonshard_cluster.boards`: write helm/moonshard/dashboards/; `--check` fails when a file is stale."""

import argparse
import json
import sys
from pathlib import Path

from moonshard_cluster.boards import attention, cluster, experts, router
from moonshard_cluster.boards.grafana import to_json

BOARDS = (cluster.BOARD, experts.BOARD, router.BOARD, attention.BOARD)
FOLDER = Path(__file__).resolve().parents[3] / "helm" / "moonshard" / "dashboards"


def texts() -> dict[str, str]:
    """File names and contents."""
    names = (board.uid.removeprefix("moonshard-") for board in BOARDS)
    return {
        f"{name}.json": json.dumps(to_json(board), indent=2) + "\n" for name, board in zip(names, BOARDS, strict=True)
    }


def main() -> int:
    parser = argparse.ArgumentParser(prog="moonshard_cluster.boards", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing, fail when a file is stale")
    check = parser.parse_args().check
    FOLDER.mkdir(exist_ok=True)
    stale = [FOLDER / name for name, text in texts().items() if _read(FOLDER / name) != text]
    for path in stale:
        if not check:
            path.write_text(texts()[path.name])
        sys.stderr.write(f"{'stale' if check else 'written'}: {path.relative_to(FOLDER.parents[2])}\n")
    return 1 if check and stale else 0


def _read(path: Path) -> str:
    return path.read_text() if path.exists() else ""


if __name__ == "__main__":
    sys.exit(main())
