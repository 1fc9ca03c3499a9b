"""The page of the settings, docs/settings.md, written from those that the server reads."""

from cunho_server import settings
from cunho_server.settings import Settings

INTRODUCTION = """\
# Settings

Written by `make docs` from `server/cunho_server/settings.py`; change them there.

Every setting of `cunho-server serve` is a flag and a variable of the environment; a flag overrides its variable. A
setting that is wrong, or a variable with the prefix `CUNHO_` that is no setting, stops the start with what is wrong.
Other commands take those that they need.
"""

#: Defaults that depend on the machine or on other settings, in words.
_DEFAULTS = {
    "data_dir": "`/var/lib/cunho`; for users other than root `~/.local/share/cunho`",
    "processes": "one for each core",
    "token_age_max_seconds": "`86400`; with `token_key` or `token_jwks` `900`",
}


def page() -> str:
    """The text of docs/settings.md."""
    return "\n".join([INTRODUCTION, *map(_setting, Settings.model_fields)])


def _setting(name: str) -> str:
    variable, _, meaning = settings.explained(name).partition("\n")
    default = _default(name)
    given = f"`{settings.flag(name)}`, `{variable.partition('=')[0]}`. Default: {default}."
    return f"## {name}\n\n{given}\n\n{' '.join(meaning.split())}\n"


def _default(name: str) -> str:
    """The default in words, the same on every machine."""
    field = Settings.model_fields[name]
    if field.default_factory:
        return _DEFAULTS[name]
    if field.default in (None, ""):
        return "empty"
    return f"`{str(field.default).lower() if isinstance(field.default, bool) else field.default}`"
