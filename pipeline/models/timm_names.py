"""Names of timm's models, known without timm, which takes seconds to import.

`python -m pipeline.models.timm_names > pipeline/models/timm_names.txt` lists those of the timm that is installed.
"""

from __future__ import annotations

import functools
import importlib.metadata
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from pathlib import Path

from pipeline.errors import require_one_of

LIST = Path(__file__).with_suffix(".txt")
"""A line for each architecture, with its tags; the first line is the version of timm that it is of."""
DEPRECATED = "~"
"""The sign before names that timm still knows and no longer lists."""


def check_timm_name(name: str) -> None:
    """Raise ConfigError, with near names, unless timm has a model of this name and, after a dot, this tag.

    A name that is not in the list is left to timm itself, unless the list is of the timm that is installed.
    """
    architecture, dot, tag = name.partition(".")
    known = _listed()
    if architecture in known and (not dot or tag in known[architecture]):
        return
    if importlib.metadata.version("timm") != version():
        from pipeline.models.timm_models import check_model_name  # noqa: PLC0415 - takes seconds

        check_model_name(name)
    elif architecture in known:
        tagged = [f"{architecture}.{each}" for each in known[architecture]]
        require_one_of(name, [architecture, *tagged], "timm model")
    else:
        require_one_of(name, near_names(name), "timm model")


def near_names(name: str) -> list[str]:
    """Return the listed models of a name's family, else timm's ResNets."""
    patterns = (f"*{name.partition('_')[0]}*", "resnet*")
    current = [each for each in _listed() if not is_deprecated(each)]
    families = ([each for each in current if fnmatchcase(each, pattern)] for pattern in patterns)
    return next(family for family in families if family)


def version() -> str:
    """Return the version of timm that the list is of."""
    return _lines()[0].split()[-1]


def is_deprecated(name: str) -> bool:
    """Return True for a listed name that timm no longer lists."""
    return f"{DEPRECATED}{name}" in _lines()


@functools.cache
def _lines() -> tuple[str, ...]:
    return tuple(LIST.read_text(encoding="utf-8").splitlines())


@functools.cache
def _listed() -> Mapping[str, tuple[str, ...]]:
    """Return the tags of all architectures by name."""
    rows = (line.removeprefix(DEPRECATED).split() for line in _lines()[1:])
    return {name: tuple(tags) for name, *tags in rows}


def lines_of_timm() -> Iterator[str]:
    """Yield the lines of the list for the timm that is installed."""
    import timm  # noqa: PLC0415 - takes seconds

    yield f"timm {timm.__version__}"
    tags: dict[str, list[str]] = {name: [] for name in timm.list_models()}
    for name in timm.list_models(include_tags=True):
        architecture, _, tag = name.partition(".")
        tags[architecture] += [tag] if tag else []
    yield from (" ".join([name, *found]) for name, found in tags.items())
    yield from (f"{DEPRECATED}{name}" for name in sorted(dir(timm.models)) if name not in tags and timm.is_model(name))


if __name__ == "__main__":
    print("\n".join(lines_of_timm()))
