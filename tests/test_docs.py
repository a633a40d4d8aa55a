"""What the READMEs say of the tree is what the modules say of themselves."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PACKAGES = ("pipeline", "lmm", "cli")
PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for folder in (".", "docs", *PACKAGES)
    for path in (ROOT / folder).glob("*.md")
)


def first_line(module: Path) -> str:
    docstring = ast.get_docstring(ast.parse(module.read_text()))
    assert docstring, module
    return docstring.splitlines()[0]


def modules_of(package: str) -> dict[str, str]:
    """First lines by path below the package; a folder's is that of its __init__."""
    home = ROOT / package
    found = {}
    for path in home.rglob("*.py"):
        name = path.relative_to(home).as_posix()
        if name != "__init__.py":
            found[name.removesuffix("__init__.py")] = first_line(path)
    return found


def tree_of(package: str) -> dict[str, str]:
    """What the tree in a package's README says, by path below the package."""
    tree = re.search(
        r"^## The tree\n\n```\n(.*?)^```", (ROOT / package / "README.md").read_text(), re.M | re.S
    )
    assert tree, f"{package}/README.md has no tree"
    said, folder = {}, ""
    for line in tree[1].splitlines():
        name, _, words = line.strip().partition(" ")
        folder = name if name.endswith("/") else folder if line.startswith(" ") else ""
        said[folder if name == folder else folder + name] = words.strip()
    return said


@pytest.mark.parametrize("package", PACKAGES)
def test_the_tree_of_a_package_is_what_its_modules_say_of_themselves(package: str) -> None:
    assert tree_of(package) == modules_of(package)


def test_every_command_is_listed_and_every_one_named_exists() -> None:
    from cli.main import COMMANDS

    listed = (ROOT / "docs" / "commands.md").read_text()
    named, every = (
        set(re.findall(r"gms-lmm ([a-z-]+)(?= |`|$)", text)) for text in (README, listed)
    )
    assert named <= {*COMMANDS}, named - {*COMMANDS}
    assert every == {*COMMANDS}


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) <= 150


@pytest.mark.parametrize("page", PAGES)
def test_links_within_the_repository_lead_somewhere(page: str) -> None:
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)\)", (ROOT / page).read_text()):
        assert (ROOT / page).parent.joinpath(target).exists(), target
