"""The documents say what the code says: generated pages are current, links lead somewhere, tests named exist."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from docs import generate
from google.protobuf.descriptor_pool import Default as default_pool

from cunho import v1 as pb
from cunho_rules.actions import ACTIONS
from cunho_rules.checks import Check

ROOT = Path(__file__).parents[1]
PAGES = generate.pages()
DOCUMENTS = [*sorted(ROOT.glob("*.md")), ROOT / "client/README.md", *sorted(ROOT.glob("docs/**/*.md"))]
CHECKS = sorted({check for action in ACTIONS for check in action.checks}, key=lambda check: (check.rule, check.demand))


@pytest.mark.parametrize("name", PAGES)
def test_a_generated_page_is_what_make_docs_writes(name: str) -> None:
    assert (ROOT / "docs" / name).read_text() == PAGES[name], "run make docs"


def test_every_page_of_the_calls_is_written_by_make_docs() -> None:
    assert {path.name for path in ROOT.glob("docs/api/*.md")} == {
        name.removeprefix("api/") for name in PAGES if name.startswith("api/")
    }


@pytest.mark.parametrize("type_", pb.Image.DESCRIPTOR.file.message_types_by_name)
def test_every_message_has_a_section_with_its_fields(type_: str) -> None:
    message = pb.Image.DESCRIPTOR.file.message_types_by_name[type_]
    (section,) = re.findall(rf"^## {type_}\n(.*?)(?=^## |\Z)", PAGES["api/types.md"], re.DOTALL | re.MULTILINE)
    assert [name for name in message.fields_by_name if f"| `{name}` |" not in section] == []


def test_every_call_has_a_section_and_a_line() -> None:
    for service in ("Account", "Image", "Instance", "Quota", "Region"):
        for method in default_pool().FindServiceByName(f"cunho.v1.{service}Service").methods:
            assert f"\n## {method.name}\n" in PAGES[f"api/{service.lower()}s.md"]
            assert f"| [{method.name}](" in PAGES["api/index.md"]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: f"{check.rule} {check.demand}")
def test_the_page_of_the_rules_says_how_a_check_refuses(check: Check) -> None:
    (section,) = re.findall(rf"^### {check.rule}\n(.*?)(?=^##)", generate.rules_page(), re.DOTALL | re.MULTILINE)
    assert check.demand in section
    assert any(f"[{reason}]" in section for reason in generate.reasons(check))


def links(document: Path) -> Iterator[tuple[Path, str]]:
    """File and anchor that each link of the document to a file of this project names."""
    for target in re.findall(r"\]\(([^)\s]+)\)", document.read_text()):
        if "://" not in target:
            path, _, anchor = target.partition("#")
            yield (document.parent / path if path else document), anchor


def anchors(document: Path) -> set[str]:
    """The anchors of the document's headings."""
    headings = re.findall(r"^#+ (.+)$", document.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_leads_somewhere(document: Path) -> None:
    broken = [
        f"{path.name}#{anchor}"
        for path, anchor in links(document)
        if not path.exists() or (anchor and anchor not in anchors(path))
    ]
    assert broken == []


@pytest.mark.parametrize("folder", ["server/cunho_rules", "server/cunho_server", "storage/cunho_storage", "bench"])
def test_the_map_of_a_package_names_every_module_and_no_other(folder: str) -> None:
    package = ROOT / folder
    map_ = ast.get_docstring(ast.parse((package / "__init__.py").read_text())) or ""
    named = re.findall(r"^(\w+)/? {2,}", map_, re.MULTILINE) or re.findall(r"`(\w+)`", map_)
    modules = {path.stem for path in package.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert {*named} - {"__main__"} == modules - {"__init__", "__main__"}


def test_every_decision_is_listed_in_the_architecture() -> None:
    listed = {path.name for path, _ in links(ROOT / "docs/architecture.md") if path.parent.name == "decisions"}
    assert listed == {path.name for path in ROOT.glob("docs/decisions/*.md")}


def test_every_test_of_a_bug_found_exists() -> None:
    named = set(re.findall(r"\btest_\w+", (ROOT / "docs/found-bugs.md").read_text()))
    tests = "\n".join(path.read_text() for path in ROOT.glob("tests/**/test_*.py"))
    assert {name for name in named if f"def {name}(" not in tests} == set()
