"""Settings from a YAML file or the command line (which wins): options made from the settings' attributes."""

from __future__ import annotations

import os
import re
import sys
from argparse import SUPPRESS, ArgumentError
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from difflib import get_close_matches
from functools import cache
from inspect import get_annotations
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeVar, get_args, get_origin, get_type_hints

import docstring_parser
import jsonargparse
import yaml

from .kinds import NonNegativeInt
from .runs import RunFolder, brief
from .settings import FREE, Settings, TrainingSettings

S = TypeVar("S", bound=Settings)
D = TypeVar("D")


@dataclass(frozen=True, kw_only=True)
class Options:
    """How a run is done, which does not change what comes of it.

    Attributes:
        run_dir: Folder of the run (default: a new one under runs/).
        resume: Continue the run in --run-dir: finish what has begun, and do what it lacks.
        dry_run: Print what would be done and what it would cost, and stop.
        scheduler: Address of a running Dask scheduler, whose workers have this checkout; null: processes of our own.
        workers: Processes of our own, each at a cell (a training, a measurement) at a time; 0: none, all is done in this
            one. null: for a study one for each core, for trainings none.
    """

    run_dir: str | None = None
    resume: bool = False
    dry_run: bool = False
    scheduler: str | None = None
    workers: NonNegativeInt | None = None

    def __post_init__(self) -> None:
        if self.scheduler is not None and self.workers is not None:
            raise ValueError(
                f"--workers: got {self.workers} with --scheduler, which has workers of its own; leave it out."
            )

    @property
    def path(self) -> Path | None:
        """The folder that ``--run-dir`` names."""
        return None if self.run_dir is None else Path(self.run_dir)


class Parser(jsonargparse.ArgumentParser):
    """Says in one line what it does not understand, and what may have been meant; abbreviations are not understood."""

    of_today: Callable[[dict[str, Any]], dict[str, Any]] = staticmethod(lambda saved: saved)
    """From what a file of before says to the names of today."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        # jsonargparse makes parsers of this class for what is nested, with options of its own.
        super().__init__(*arguments, **{**options, "allow_abbrev": False})

    def parse_args(self, args: Any = None, *further: Any, **options: Any) -> Any:
        """Parses a command line; of a file of options that holds none, says so."""
        words = list(sys.argv[1:] if args is None else args)
        for place, word in enumerate(words):
            option, equals, value = word.partition("=")
            file = value or "".join(words[place + 1 : place + 2])
            if option not in ("--config", "--noise") or not os.path.isfile(file):  # noqa: PTH113 - or long JSON raises
                continue
            content, why = _options_in(file)
            if why:
                self.error(f"{option}: got {file}, {why}, expected a YAML file of options by their names")
            if option == "--config" and (renamed := self.of_today(content)) != content:
                words[place : place + (1 if equals else 2)] = [option, yaml.safe_dump(renamed)]
                return self.parse_args(words, *further, **options)
        return super().parse_args(words, *further, **options)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Ends the process with exit status 2.

        Raises:
            ArgumentError: In place of that, if the parser is told not to exit.
        """
        if not self.exit_on_error:
            raise ArgumentError(None, message) from ex
        known = [option for action in self._actions for option in action.option_strings]
        said = f"{self.prog}: {_plainly(message)}{_meant(message, known)}"
        print(f"{said}; --help says what there is", file=sys.stderr)
        sys.exit(2)


def named_parser(name: str, description: str | None) -> Parser:
    """The parser of ``python -m experiments NAME``."""
    return Parser(prog=f"python -m experiments {name}", description=description)


def _options_in(file: str) -> tuple[dict[str, Any], str]:
    """What a YAML file says; and why it is none of options, empty if it is one."""
    try:
        content = yaml.safe_load(Path(file).read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        return {}, f"which cannot be read ({brief(error)})"
    if isinstance(content, dict):
        return content, ""
    return {}, f"which holds {'nothing' if content is None else repr(content)}"


_PLAINER = {
    r": - Expected a path but (\S+) either not accessible or invalid - .*": r": there is no file \1",
    r"(- )?Does not validate against any of the Union subtypes Subtypes: .*? Errors: - ": "",
    r"Problem with given class_path '[^']*': ": "",
    r"( - )?Expected a <class 'NoneType'>( - )?": "",  # before or after the others, by its version
    r" Given value type: .* Given value: (.*)": r"; got \1",
    r"Not of type \w+: (got .*?)(; got .*|$)": r"\1",
    r"Expected a <class '(\w+)'> - Expected a typing\.Literal\[(.*)\]; got (.*)": r"got \3, expected a \1 or \2",
    r"Expected a <class '(\w+)'>(?:\. Got value:|; got) (.*)": r"got \2, expected a value of type \1",
    r"Expected a typing\.Literal\[(.*)\]\. Got value: (.*)": r"got \2, expected one of \1",
    r'^Parser key "([\w.]+)"': r"\1",
    r"Not a valid subclass of \w+ Subclass types expect.*?(; got|$)": r"expected options by their names\1",
    r"^'\w+' object is not iterable": "got a single value for an option that takes a list, expected [VALUE]",
}
"""What jsonargparse says of unions, classes and numbers, by how it is said here."""


def _plainly(message: str) -> str:
    """A message on one line, without the words of the parser that nobody has written."""
    said = " ".join(message.split())
    for pattern, plainer in _PLAINER.items():
        said = re.sub(pattern, plainer, said)
    return said


def _meant(message: str, known: Sequence[str]) -> str:
    """What may have been meant where a message names an option, or a key of a file, that there is not."""
    if option := re.search(r"unrecognized arguments: (-[^\s=]+)", message):
        return did_you_mean(option[1], known)
    if key := re.search(r"'([\w.]+)' is not accepted", message):
        return did_you_mean(key[1], [option.removeprefix("--").replace("-", "_") for option in known])
    return ""


def did_you_mean(word: str, known: Collection[str]) -> str:
    """The end of a message about a word that is none of those that are known."""
    begun = [name for name in known if name.startswith(word)]
    near = begun[:1] or get_close_matches(word, known, n=1)
    return f"; did you mean {near[0]}?" if near else ""


def parser_of(name: str, settings: type[Settings], defaults: Settings | None = None) -> Parser:
    """A parser of the options that settings have, and of those that say how to run.

    Args:
        name: The experiment's.
        settings: The class; its docstring describes the command.
        defaults: In place of the class's own.
    """
    parser = named_parser(name, docstring_parser.parse(settings.__doc__ or "").description)
    parser.of_today = settings.of_today
    parser.add_argument("--experiment", choices=[name], default=name, help=SUPPRESS)  # so that config.yaml says it
    parser.add_argument(
        "--config", action="config", help="YAML file with options by their names; options after it win."
    )
    add_options(parser, settings, defaults)
    add_options(parser, Options, without=settings.without)
    return parser


def add_options(parser: Parser, of: type[Any], defaults: Any = None, *, without: Collection[str] = ()) -> None:
    """Adds an option for each attribute of a dataclass (but for some), with its default and its description.

    Its own attributes come before those of the classes that it extends.

    Raises:
        TypeError: If it has attributes that would be no options, because a dataclass does not see them.
    """
    _require_seen(of)
    places = {name: place for place, each in enumerate(of.__mro__) for name in get_annotations(each)}
    hints, texts = get_type_hints(of), _descriptions(of)
    defaults = of() if defaults is None else defaults
    for field in sorted(fields(of), key=lambda field: places[field.name]):
        if field.name in without:
            continue
        default, kind = getattr(defaults, field.name), hints[field.name]
        flag = "--" + field.name.replace("_", "-")
        if kind is bool:
            parser.add_argument(flag, nargs="?", const=True, type=bool, default=default, help=texts.get(field.name))
        elif get_origin(kind) is tuple:
            several = _accepted(get_args(kind)[0])
            parser.add_argument(flag, nargs="+", default=list(default), help=texts.get(field.name), **several)
        elif is_dataclass(kind):
            for part in fields(kind):
                option = {"type": get_type_hints(kind)[part.name], "default": getattr(default, part.name)}
                parser.add_argument(f"{flag}.{part.name}", help=_descriptions(kind)[part.name], **option)
        else:
            of_a_file = {"sub_configs": True} if any(map(is_dataclass, get_args(kind))) else {}
            parser.add_argument(flag, default=default, help=texts.get(field.name), **_accepted(kind), **of_a_file)


def _require_seen(of: type[Any]) -> None:
    for each in of.__mro__:
        typed = get_annotations(each)
        for name, value in vars(each).items():
            if not (name in typed or name.startswith("_") or callable(value) or hasattr(value, "__get__")):
                raise TypeError(
                    f"{each.__name__}.{name}: got {value!r} without a type, expected an attribute with one; write "
                    f"{name}: {type(value).__name__} = {value!r}."
                )
        if typed and "__dataclass_fields__" not in vars(each):
            raise TypeError(
                f"{each.__name__}: got a plain class, expected a dataclass; put @dataclass(frozen=True, kw_only=True) "
                "above it."
            )


def _accepted(kind: Any) -> dict[str, Any]:
    are_words = get_origin(kind) is Literal and all(isinstance(choice, str) for choice in get_args(kind))
    return {"choices": get_args(kind)} if are_words else {"type": kind}


def _descriptions(of: Any) -> dict[str, str]:
    """What the docstrings of a dataclass, and of those that it extends, say of its attributes."""
    texts: dict[str, str] = {}
    for each in reversed(of.__mro__):
        texts |= _attributes(each.__doc__ or "")
    return texts


@cache
def _attributes(docstring: str) -> Mapping[str, str]:
    params = docstring_parser.parse(docstring).params
    return {each.arg_name: " ".join((each.description or "").split()) for each in params}


def parse(
    name: str, settings: type[S], arguments: Sequence[str], *, extendable: Collection[str] = ()
) -> tuple[Options, S]:
    """Parses the command line; for a run to be continued, on top of that run's own settings.

    Args:
        name: The experiment's.
        settings: The class of its settings.
        arguments: The command line.
        extendable: The settings that may grow when a run is continued.

    Raises:
        ValueError: If options contradict each other, or the run that is to be continued.
        FileNotFoundError: If there is no run to be continued.
    """
    parser = parser_of(name, settings)
    parsed = parser.parse_args(list(arguments))
    options = _built(Options, parsed)
    if not options.resume:
        return options, _built(settings, parsed)
    folder = RunFolder.existing(options.path)
    saved = saved_settings(name, settings, folder)
    parsed = parser_of(name, settings, saved).parse_args(list(arguments))
    given = _built(settings, parsed)
    refuse_other_settings(folder, saved, given, extendable)
    return _built(Options, parsed), given


def refuse_other_settings(folder: RunFolder, saved: Settings, given: Settings, extendable: Collection[str]) -> None:
    """Refuses to continue a run with other settings than its own, but for those that are free or may grow.

    Raises:
        ValueError: If it comes to that.
    """
    before, now = flat(saved), flat(given)
    differing = [key for key in {**before, **now} if before.get(key) != now.get(key) and key not in FREE]
    changed = [key for key in differing if key not in extendable]
    if changed:
        differences = ", ".join(f"{key}: got {now.get(key)!r}, expected {before.get(key)!r}" for key in sorted(changed))
        raise ValueError(
            f"--resume: the run in {folder.path} has other settings ({differences}); leave them out or start anew."
        )
    for key in differing:
        if now[key] < before[key]:
            raise ValueError(f"--{key}: got {now[key]}, expected at least {before[key]}: the run goes that far.")


def saved_settings(name: str, settings: type[S], folder: RunFolder) -> S:
    """The settings of a run; what its ``config.yaml`` does not name is as the defaults say.

    Raises:
        ValueError: If the file cannot be read, or does not hold such settings.
    """
    parser = parser_of(name, settings)
    parser.exit_on_error = False
    values = folder.read_settings()
    try:
        if "experiment" not in values:
            raise ValueError("it names no experiment")
        return _built(settings, parser.parse_object(settings.of_today(values)))
    except (ArgumentError, ValueError) as error:
        raise ValueError(
            f"{folder.file('config.yaml')} does not hold the settings of a run ({brief(error)}); put them right, or start "
            "the run anew in another folder."
        ) from error


def flat(settings: Settings) -> dict[str, Any]:
    """The settings by the names of the command line: ``ibm.mode`` for ``mode`` within ``ibm``."""
    values: dict[str, Any] = {}
    for name, value in vars(settings).items():
        values |= {f"{name}.{key}": part for key, part in vars(value).items()} if is_dataclass(value) else {name: value}
    return values


def yaml_of(name: str, settings: Settings) -> dict[str, Any]:
    """The settings as YAML knows them, for ``config.yaml``; without those of hardware where there is none."""
    values = {"experiment": name} | {key: _plain(value) for key, value in vars(settings).items()}
    if isinstance(settings, TrainingSettings) and not settings.is_for_hardware:
        del values["ibm"]
    return values


def _built(of: type[D], parsed: Any) -> D:
    """An instance of a dataclass from parsed options."""
    hints = get_type_hints(of)
    values: dict[str, Any] = {}
    for field in fields(of):  # type: ignore[arg-type]
        kind, value = hints[field.name], parsed.get(field.name, field.default)
        nested: Any = next((each for each in (kind, *get_args(kind)) if is_dataclass(each)), None)
        if value is None and get_origin(kind) is tuple:
            value = ()  # as runs of before have it
        if value is None and kind is not None and type(None) not in get_args(kind):
            raise ValueError(f"{field.name}: got null, expected a value; leave it out for the default.")
        if nested is not None and isinstance(value, (str, int, float, list)):
            raise ValueError(f"{field.name}: got {value!r}, expected its options by their names.")
        if nested is not None and value is not None and not is_dataclass(value):
            values[field.name] = _built(nested, value)
        else:
            values[field.name] = tuple(map(_plain, value)) if get_origin(kind) is tuple else _plain(value)
    return of(**values)


def _plain(value: Any) -> Any:
    """Without the parser's own types, which YAML does not know."""
    if isinstance(value, jsonargparse.Namespace) or is_dataclass(value):
        return {key: _plain(part) for key, part in vars(value).items()}
    if isinstance(value, Mapping):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    if isinstance(value, float):
        return float(value)
    return int(value) if isinstance(value, int) and not isinstance(value, bool) else value
