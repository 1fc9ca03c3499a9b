"""Flags that choose, as one filter in the language of the API. What a person gives can only ever be a value in it."""

from collections.abc import Iterable, Iterator

PAGE_SIZE = 1000
"""Asked for where everything is listed: as few calls as may be."""

_FAMILIES = ("linux", "windows", "other")


def page_size(limit: int | None) -> int:
    """How many to ask for at once where so many are to be shown, or all."""
    return min(limit or PAGE_SIZE, PAGE_SIZE)


def comparison(field: str, value: str, *, prefix: bool = False) -> str:
    """The comparison of a field with a text; with `prefix`, of what the field begins with."""
    return f'{field} = "{_escaped(value)}{"*" * prefix}"'


def os_comparison(word: str) -> str:
    """The comparison for an operating system: a family, as linux, or a platform, as ubuntu."""
    if word.lower() in _FAMILIES:
        return f"os.family = {word.upper()}"
    return comparison("os.platform", word.lower())


def label_comparisons(labels: Iterable[str]) -> Iterator[str]:
    """The comparisons for labels given as KEY, which must be there, or KEY=VALUE."""
    for label in labels:
        key, equals, value = label.partition("=")
        yield comparison(f"labels.{key}", value) if equals else f'labels:"{key}"'


def all_of(given: str, comparisons: Iterable[str]) -> str:
    """The filter that selects what `given` and every comparison select.

    The given one stays in front, so that positions in a refusal are those of what was typed. It needs no parentheses:
    nothing binds weaker than AND.
    """
    return " AND ".join([*([given] if given.strip() else []), *comparisons])


def _escaped(value: str) -> str:
    return "".join(f"\\{character}" if character in '"\\*' else character for character in value)
