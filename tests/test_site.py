"""The site of the documentation: it builds without a warning, its links lead somewhere, and it asks no other host."""

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

ROOT = Path(__file__).parents[1]
#: What a browser fetches by itself.
FETCHED = {"script": "src", "img": "src", "iframe": "src", "source": "src", "link": "href"}


class Page(HTMLParser):
    """The ids of a page, its links, and what it has a browser fetch."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: set[str] = set()
        self.fetched: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.ids |= {given[name] for name in ("id", "name") if name in given}
        if tag == "a" and "href" in given:
            self.links.add(given["href"])
        if given.get(FETCHED.get(tag, ""), "") and given.get("rel") not in ("canonical", "next", "prev"):
            self.fetched.add(given[FETCHED[tag]])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> dict[Path, Page]:
    """Every page of the site, built strictly."""
    folder = tmp_path_factory.mktemp("site").resolve()
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", folder],
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stderr
    return {path: Page(path.read_text()) for path in folder.rglob("*.html")}


def test_every_link_of_the_site_leads_somewhere(site: dict[Path, Page]) -> None:
    broken = set()
    for path, page in site.items():
        if path.name == "404.html":  # its links begin at the root of the host
            continue
        for link in page.links | page.fetched:
            parts = urlsplit(link)
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            anchored = not parts.fragment or target not in site or unquote(parts.fragment) in site[target].ids
            if not parts.scheme and not (target.exists() and anchored):
                broken.add(f"{path.name}: {link}")
    assert broken == set()


def test_the_site_has_a_page_of_every_document(site: dict[Path, Page]) -> None:
    titles = {path.stem for path in site}
    assert titles >= {path.stem for path in ROOT.glob("docs/**/*.md")} | {"changelog", "client", "contributing"}


def test_the_site_asks_no_other_host_for_anything(site: dict[Path, Page]) -> None:
    assert {each for page in site.values() for each in page.fetched if urlsplit(each).netloc} == set()
    styles = [path.read_text() for path in next(iter(site)).parent.rglob("*.css")]
    assert not [url for text in styles for url in re.findall(r"url\((https?:[^)]*)\)", text)]


def test_the_python_reference_has_every_method_of_the_client(site: dict[Path, Page]) -> None:
    from cunho import Client

    (reference,) = [page for path, page in site.items() if path.name == "python.html"]
    methods = {f"cunho.Client.{name}" for name in dir(Client) if not name.startswith("_")}
    assert methods <= reference.ids
