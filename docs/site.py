"""A hook of mkdocs: brings documents from outside of docs/ into the site, and turns links that cross that border.

A link to a document that is on the site leads there. Of a link to any other file, the words stay.
"""

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

#: Path on the site, by path in the project.
BROUGHT = {
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "client/README.md": "client.md",
}


def on_files(files: Files, *, config: MkDocsConfig) -> None:
    """Adds what is brought to the files of the site."""
    for path, place in BROUGHT.items():
        text = (Path(config.config_file_path).parent / path).read_text()
        files.append(File.generated(config, place, content=text))


def on_page_markdown(text: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """The text of a page with its links as they are on the site."""
    place = page.file.src_uri
    path = {place: path for path, place in BROUGHT.items()}.get(place, f"docs/{place}")
    places = {f"docs/{file.src_uri}": file.src_uri for file in files} | BROUGHT

    def turned(link: re.Match[str]) -> str:
        words, target, anchor = link.groups("")
        there = posixpath.normpath(posixpath.join(posixpath.dirname(path), target))
        if there.startswith("docs/") and path.startswith("docs/"):
            return link[0]  # which mkdocs itself verifies
        if there not in places:
            return words
        return f"[{words}]({posixpath.relpath(places[there], posixpath.dirname(place) or '.')}{anchor})"

    return re.sub(r"\[([^\]]*)\]\((?![a-z]+:)([^)#\s]+)(#[^)]*)?\)", turned, text)
