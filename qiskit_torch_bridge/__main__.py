"""``python -m qiskit_torch_bridge``: the command ``qtb``, see :mod:`qiskit_torch_bridge.commands`."""

import sys

from .commands import main

if __name__ == "__main__":
    sys.exit(main())
