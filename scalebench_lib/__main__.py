"""``python -m scalebench_lib``, and the command: Ctrl-C ends it in a line while it is imported."""

import sys
from typing import NoReturn


def main() -> NoReturn:
    """Run the command."""
    try:
        from scalebench_lib.cli import main as run
    except KeyboardInterrupt:
        print("scalebench: interrupted", file=sys.stderr)
        sys.exit(130)
    run()


if __name__ == "__main__":
    main()
