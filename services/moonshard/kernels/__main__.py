"""`python -m moonshard.kernels` compiles the kernels unless they are current."""

import sys

from moonshard.kernels.build import LIBRARY, BuildError, build


def main() -> None:
    """Build and say what was done; exits with the compiler's words when that fails."""
    try:
        sys.stdout.write(f"{LIBRARY}: {'built' if build() else 'current'}\n")
    except BuildError as problem:
        sys.exit(str(problem))


if __name__ == "__main__":
    main()
