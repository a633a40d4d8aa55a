"""What README says of the tree is what the modules say of themselves."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
MODULES = sorted(
    path.relative_to(ROOT).as_posix()
    for package in ("pipeline", "lmm", "cli")
    for path in (ROOT / package).glob("*.py")
    if path.name != "__init__.py"
)


def first_line(module: str) -> str:
    docstring = ast.get_docstring(ast.parse((ROOT / module).read_text()))
    assert docstring, module
    return docstring.splitlines()[0]


@pytest.mark.parametrize("module", MODULES)
def test_the_tree_in_the_readme_says_what_the_module_says(module: str) -> None:
    package, _, name = module.partition("/")
    tree = re.search(rf"^{package}/ .*?(?=^\S|\Z)", README, re.MULTILINE | re.DOTALL)
    assert tree, f"README has no {package}/ in its tree"
    lines = dict(re.findall(r"^  (\S+\.py) +(.+)$", tree.group(), re.MULTILINE))
    assert lines.get(name) == first_line(module)


def test_the_tree_in_the_readme_names_no_module_that_is_gone() -> None:
    named = re.findall(r"^  (\w+\.py) ", README, re.MULTILINE)
    assert sorted(named) == sorted(module.partition("/")[2] for module in MODULES)


def test_every_command_in_the_readme_exists() -> None:
    from cli.main import COMMANDS

    named = set(re.findall(r"gms-lmm ([a-z-]+)(?= |`|$)", README))
    assert named <= {*COMMANDS}, named - {*COMMANDS}
    assert {*COMMANDS} <= named, {*COMMANDS} - named


def test_links_within_the_repository_lead_somewhere() -> None:
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target
