"""Builds the API reference from the docstrings: a folder of HTML pages that need no network."""

from __future__ import annotations

import html
import os
import pkgutil
import re
import warnings
from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import Any

import qiskit_torch_bridge as package

from .common.options import named_parser

_TEMPLATES = {
    # The package's page has what it exports; the page of a module has its guide, and only what is nowhere else.
    "module.html.jinja2": """
        {% extends "default/module.html.jinja2" %}
        {% macro is_public(doc) %}{% if shown_here(doc) %}{{ default_is_public(doc) }}{% endif %}{% endmacro %}
        {% block nav_submodules %}{% endblock %}
        {% block nav_members %}
            {% set names = nav_members(module.members.values()) %}
            {% if "<li>" in names %}<h2>On this page</h2>{{ names }}{% endif %}
            {% for name in all_modules if name.rpartition(".")[0] == module.modulename %}
                {% if loop.first %}<h2>Modules</h2><ul>{% endif %}
                <li>{{ (name, "") | link(text=name.rpartition(".")[2]) }}</li>
                {% if loop.last %}</ul>{% endif %}
            {% endfor %}
        {% endblock %}
        {% block module_contents %}
            {% for name in exported_from(module) %}
                {{ "On the package's page: " if loop.first }}<a href="#{{ name }}">{{ name }}</a>{{ "," if not loop.last }}
            {% endfor %}
            {{ super() }}
        {% endblock %}
    """,
    # Lines of code, and wide tables, end where the page does.
    "custom.css": """
        main.pdoc { max-width: calc(66rem + var(--sidebar-width)); width: 100%; }
        .pdoc pre, .pdoc .param, .pdoc .return-annotation { white-space: pre-wrap; }
        .pdoc pre code, .pdoc .signature, .pdoc .annotation, .pdoc .default_value, .pdoc .base, .pdoc .inherited {
            overflow-wrap: anywhere;
        }
        .pdoc .docstring .pdoc-code { margin-left: 0; margin-right: 0; }
        @media (max-width: 1000px) { .pdoc td, .pdoc td code { overflow-wrap: anywhere; } }
    """,
}
_FORMULA = re.compile(r"\$\$(.+?)\$\$|\\\((.+?)\\\)", re.DOTALL)
_ANCHOR = re.compile(r'id="([^"]+)"')
_LINK = re.compile(r'href="([^"#:]*)#([^"]+)"')
_NAME = re.compile(r"<code>(\w+)(?:\(\))?</code>")
_CODE = re.compile(r"(<pre>.*?</pre>|<code>.*?</code>|<script.*?</script>)", re.DOTALL)


def main(arguments: Sequence[str]) -> int:
    """Builds what the command line asks for; returns the exit status."""
    parser = named_parser("reference", __doc__)
    parser.add_argument("--out", type=str, default="build/reference", help="The folder; made if need be.")
    out = Path(parser.parse_args(list(arguments)).out)
    build(out)
    print(f"The reference begins at {out / (package.__name__ + '.html')}")
    return 0


def build(out: Path) -> None:
    """Writes the pages."""
    import jinja2
    import pdoc

    # Names that are imported on first use are only seen once they are there.
    for name in package.__all__:
        setattr(package, name, getattr(package, name))
    environment = pdoc.render.env
    pdoc.render.configure(docformat="google", math=False, show_source=False)
    environment.loader = jinja2.ChoiceLoader([jinja2.DictLoader(_TEMPLATES), *filter(None, [environment.loader])])
    environment.globals |= {"shown_here": _shown_here, "exported_from": _exported_from}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pdoc.pdoc(*modules(), output_directory=out)
    pages = {page.resolve(): page.read_text(encoding="utf-8") for page in out.rglob("*.html")}
    anchors = {page: set(_ANCHOR.findall(text)) for page, text in pages.items()}
    start = (out / f"{package.__name__}.html").resolve()
    for page, text in pages.items():
        page.write_text(_with_links(page, with_formulas(text), anchors, start), encoding="utf-8")


def modules() -> list[str]:
    """What is documented: the package, and its modules one by one, because ``__all__`` of the package does not name them."""
    from pdoc.extract import walk_specs

    specifications = [package.__name__]
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        if module.name not in walk_specs(specifications) and not module.name.endswith("__main__"):
            specifications.append(module.name)
    return specifications


def with_formulas(page: str) -> str:
    """A page with its formulas in MathML, which browsers draw themselves; code is left alone."""
    parts = _CODE.split(page)
    parts[::2] = [_FORMULA.sub(_in_mathml, part) for part in parts[::2]]
    return "".join(parts)


def _with_links(page: Path, text: str, anchors: Mapping[Path, Set[str]], start: Path) -> str:
    """A page whose links and exported names lead to where the names are, which is the package's page for what it exports."""

    def mended(link: re.Match[str]) -> str:
        target = (page.parent / link[1]).resolve() if link[1] else page
        if link[2] in anchors.get(target, ()):
            return link[0]
        if link[2] in anchors[start]:
            return f'href="{os.path.relpath(start, page.parent)}#{link[2]}"'
        return f'href="{link[1]}"'  # what is inherited from something private, or from PyTorch

    def linked(code: re.Match[str]) -> str:
        return f'<a href="#{code[1]}">{code[0]}</a>' if code[1] in package.__all__ else code[0]

    return _LINK.sub(mended, _NAME.sub(linked, text))


def _in_mathml(formula: re.Match[str]) -> str:
    from latex2mathml.converter import convert

    display, inline = formula.groups()
    return convert(html.unescape(display or inline).strip(), display="block" if display else "inline")


def _shown_here(doc: Any) -> bool:
    """Whether a page documents what its module holds: what the package exports is on the package's own page only."""
    return doc.modulename == package.__name__ or doc.kind == "module" or doc.obj not in _exported()


def _exported() -> list[Any]:
    return [getattr(package, name) for name in package.__all__]


def _exported_from(module: Any) -> list[str]:
    """The names of a module that the package exports too."""
    own = getattr(module.obj, "__all__", ()) if module.fullname != package.__name__ else ()
    return [name for name in package.__all__ if name in own]
