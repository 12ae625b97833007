"""Builds the API reference from the docstrings: a folder of HTML pages."""

from __future__ import annotations

import pkgutil
import warnings
from collections.abc import Sequence
from pathlib import Path

import qiskit_torch_bridge as package

from .common.options import Parser


def main(arguments: Sequence[str]) -> int:
    """Builds what the command line asks for; returns the exit status."""
    parser = Parser("reference", __doc__ or "")
    parser.add_argument("--out", type=str, default="build/reference", help="The folder; made if need be.")
    out = Path(parser.parse_args(list(arguments)).out)
    import pdoc

    # Names that are imported on first use are only seen once they are there.
    for name in package.__all__:
        setattr(package, name, getattr(package, name))
    pdoc.render.configure(docformat="google", math=True, show_source=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pdoc.pdoc(*modules(), output_directory=out)
    print(f"The reference begins at {out / (package.__name__ + '.html')}")
    return 0


def modules() -> list[str]:
    """What is documented: the package, and its modules one by one, because ``__all__`` of the package does not name them."""
    from pdoc.extract import walk_specs

    specifications = [package.__name__]
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        if module.name not in walk_specs(specifications):
            specifications.append(module.name)
    return specifications
