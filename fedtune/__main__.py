"""`python -m fedtune`, and `accelerate launch -m fedtune train ...` for several GPUs."""

import sys

from fedtune.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
