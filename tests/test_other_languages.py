"""What the page about other languages says is so: its templates name packages, its excerpts are from what is run."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/how-to/other-languages.md").read_text()
TEMPLATES = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
# Stands in for a plugin, which would need its language: it writes down the options that a plugin is given.
PLUGIN = """
import sys
from google.protobuf.compiler.plugin_pb2 import CodeGeneratorRequest, CodeGeneratorResponse
request = CodeGeneratorRequest.FromString(sys.stdin.buffer.read())
lines = [f"{file.name} {file.options.go_package} {file.options.java_package}\\n" for file in request.proto_file]
answer = CodeGeneratorResponse(file=[CodeGeneratorResponse.File(name="packages", content="".join(lines))])
sys.stdout.buffer.write(answer.SerializeToString())
"""


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The protos as they lie in the repository, and google's beside them."""
    folder = tmp_path_factory.mktemp("protos")
    shutil.copytree(ROOT / "protos/cunho", folder / "protos/cunho")
    shutil.copy(ROOT / "buf.yaml", folder)
    subprocess.run([sys.executable, ROOT / "protos/googleapis.py", folder / ".build/googleapis"], check=True)
    folder.joinpath("plugin.py").write_text(PLUGIN)
    return folder


def packages(template: str, workspace: Path) -> dict[str, list[str]]:
    """Packages in Go and Java of each file, as a plugin of the template is told."""
    managed = template.partition("plugins:")[0]
    stand_in = f"plugins: [{{local: ['{sys.executable}', plugin.py], strategy: all, out: told}}]"
    workspace.joinpath("buf.gen.yaml").write_text(managed + stand_in)
    subprocess.run([Path(sys.executable).with_name("buf"), "generate"], cwd=workspace, check=True)
    lines = workspace.joinpath("told/packages").read_text().splitlines()
    return {file: told for file, *told in map(str.split, lines)}


@pytest.mark.parametrize(
    ("template", "package"),
    [(TEMPLATES[0], "example.com/yours/gen/cunho/v1;cunhov1"), (TEMPLATES[1], "com.cunho.v1")],
    ids=["Go", "Java"],
)
def test_a_template_names_the_package_and_leaves_those_of_google(template: str, package: str, workspace: Path) -> None:
    told = packages(template, workspace)
    assert package in told["cunho/v1/image_service.proto"]
    assert told["google/longrunning/operations.proto"] == [
        "cloud.google.com/go/longrunning/autogen/longrunningpb;longrunningpb",
        "com.google.longrunning",
    ]


def test_every_excerpt_in_typescript_is_from_the_program_that_is_run() -> None:
    program = (ROOT / "tests/typescript/cunho.test.ts").read_text()
    excerpts = re.findall(r"```ts\n(.*?)```", PAGE, re.DOTALL)
    assert [excerpt for excerpt in excerpts if excerpt not in program] == []
    assert excerpts


def test_the_lines_of_the_readme_are_those_of_the_page() -> None:
    generating = re.compile(r"\.venv/bin/buf generate .*")
    shown = generating.findall((ROOT / "README.md").read_text())
    assert shown == generating.findall(PAGE)
    assert len(shown) == 3


def test_every_file_that_is_named_exists() -> None:
    named = re.findall(r"\b(?:tests|protos)/[\w./]*\w", PAGE)
    assert [name for name in named if not (ROOT / name).exists()] == []
