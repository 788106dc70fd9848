from __future__ import annotations

import ast
import graphlib
import itertools
import os
import re
import subprocess
import sys
import tomllib
from collections import Counter
from pathlib import Path

import pytest

import configuration_page
from balancer.config.load import load_config
from balancer.config.schema import Config
from balancer.scaffold.text import _HOW_TO_GO_ON

TEXT_SUFFIXES = {
    "",
    ".cfg",
    ".css",
    ".html",
    ".j2",
    ".js",
    ".json",
    ".md",
    ".py",
    ".sh",
    ".svg",
    ".toml",
    ".txt",
    ".yaml",
    ".yml",
}


@pytest.fixture(scope="module")
def pyproject(project):
    return tomllib.loads((project / "pyproject.toml").read_text())


@pytest.fixture(scope="module")
def readme(project):
    return (project / "README.md").read_text()


@pytest.fixture(scope="module")
def sources(project):
    """Path -> text of every file the project keeps."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=project, capture_output=True, check=True, text=True,
    ).stdout  # fmt: skip
    paths = [project / name for name in listed.split("\0") if name]
    return {path: path.read_text() for path in paths if path.suffix in TEXT_SUFFIXES and path.is_file()}


def test_the_readme_opens_with_exactly_two_commands(readme, project):
    quick_start = readme.split("## Quick start")[1].split("\n## ")[0]
    blocks = re.findall(r"```sh\n(.*?)```", quick_start, re.DOTALL)
    commands = [line.split("#")[0].strip() for block in blocks for line in block.splitlines()]
    assert commands == ["scripts/demo", "scripts/test"]
    assert all((project / command).stat().st_mode & 0o111 for command in commands)


def test_every_path_the_readme_names_is_there(readme, project):
    links = re.findall(r"\]\((?!http)([^)#]+)\)", readme)
    configs = re.findall(r"\bconfigs/[\w.-]+", readme)
    assert len(links) > 5
    assert [path for path in [*links, *configs] if not (project / path).exists()] == []


def test_every_balancer_command_of_the_readme_exists(readme):
    from balancer.cli import COMMANDS

    named = set(re.findall(r"(?:^|`|-m )balancer (\w+)", readme, re.MULTILINE))
    assert {"run", "report", "query"} <= named
    assert named <= set(COMMANDS)


def test_constraints_are_plain_pins(project):
    lines = (project / "constraints.txt").read_text().splitlines()
    assert len(lines) > 50
    assert [line for line in lines if not re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][A-Za-z0-9.]*", line)] == []


def test_every_dependency_is_pinned(pyproject, project):
    pinned = {_normal(line.split("==")[0]) for line in (project / "constraints.txt").read_text().splitlines()}
    extras = pyproject["project"]["optional-dependencies"].values()
    asked = [*pyproject["project"]["dependencies"], *itertools.chain.from_iterable(extras)]
    assert {_normal(re.split(r"[\[<>=]", requirement)[0]) for requirement in asked} <= pinned


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_every_shipped_config_loads(project):
    configs = sorted((project / "configs").glob("*.yaml"))
    assert {"demo.yaml", "pizza.yaml"} <= {path.name for path in configs}
    assert all(load_config(path).classes for path in configs)


def test_the_licence_is_apache_2(pyproject, project):
    text = (project / "LICENSE").read_text()
    assert pyproject["project"]["license"] == "Apache-2.0"
    assert "Apache License" in text
    assert "END OF TERMS AND CONDITIONS" in text


def test_the_console_script_leads_to_the_command_line(pyproject):
    from balancer import cli

    assert pyproject["project"]["scripts"] == {"balancer": "balancer.cli:main"}
    assert callable(cli.main)


def test_python_dash_m_balancer_is_the_same_command(project):
    shown = subprocess.run(
        [sys.executable, "-m", "balancer", "--help"], cwd=project, capture_output=True, text=True, check=False
    )
    assert shown.returncode == 0
    assert "Usage: balancer" in shown.stdout


def test_templates_and_models_are_packaged(pyproject, project):
    patterns = pyproject["tool"]["setuptools"]["package-data"]["balancer"]
    packaged = {path for pattern in patterns for path in (project / "balancer").glob(pattern)}
    data = {
        path
        for path in (project / "balancer").rglob("*")
        if path.suffix in {".css", ".j2", ".js", ".safetensors", ".svg", ".typed"}
    }
    assert data
    assert data <= packaged


@pytest.mark.parametrize("page", ["SECURITY.md", "docs/reliability.md"])
def test_the_tests_that_a_page_names_are_there(page, project):
    named = list(_named_tests((project / page).read_text()))
    assert len(named) > 20
    tests_of = {path.stem: path for path in (project / "tests").rglob("test_*.py")}
    for file, beginning in named:
        assert f"\ndef test_{beginning}" in tests_of[file].read_text(), f"{file}: {beginning}"


def _named_tests(text):
    """(file, beginning of a name, "" for all) of each test in the last cell of a table's rows; a name without
    a file is of the file before. Tables that name no file of tests are about other things."""
    file = ""
    for line in text.splitlines():
        if not line.startswith("| "):
            file = ""
        for quoted in re.findall(r"`([^`]+)`", line.rpartition(" | ")[2] if line.startswith("| ") else ""):
            first, colon, second = quoted.rstrip("…").partition(": ")
            if first.startswith("test_"):
                file = first
                yield file, second
            elif file:
                assert not colon
                yield file, first


def test_no_file_names_a_package_index_or_a_place_on_one_machine(sources, project):
    places = [re.escape(f"{place}/") for place in (project, Path.home()) if len(place.parts) > 1]
    pattern = re.compile("|".join([*places, "--(?:extra-)?index-url", "--find-links", "--trusted-host"]))
    found = {str(path): match[0] for path, text in sources.items() if (match := pattern.search(text))}
    found.pop(__file__)  # the options above
    assert found == {}


def test_no_text_of_the_packages_names_a_file_that_only_the_repository_has(project):
    named = re.compile(r"\b(?:configs|scripts|docs|tests|benchmarks)/\w")
    found = [
        f"{path.relative_to(project)}:{node.lineno}: {node.value}"
        for package in ("balancer", "actors")
        for path in (project / package).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and named.search(node.value)
    ]
    assert found == []


def test_the_way_to_the_settings_that_init_names_works():
    command = "inspect balancer.config.schema"
    assert f"python -m {command}" in _HOW_TO_GO_ON
    shown = subprocess.run(
        [sys.executable, "-m", *command.split()], capture_output=True, text=True, check=True
    )
    assert "max_image_megapixels" in shown.stdout


def test_init_names_every_module_that_has_settings():
    modules = {model.__module__ for model in configuration_page.models(Config)}
    assert {name.rpartition(".")[0] for name in modules} == {"balancer.config"}
    assert not [name for name in modules if f"`{name.rpartition('.')[2]}`" not in _HOW_TO_GO_ON]


@pytest.mark.parametrize(
    ("shell", "words", "expected"),
    [("bash", "balancer repo", "plain,report"), ("bash", "balancer report --o", "plain,--out")],
)
def test_a_shell_completes_commands_and_options(project, shell, words, expected):
    assert f"_BALANCER_COMPLETE={shell}_source balancer" in (project / "docs" / "commands.md").read_text()
    asked = {
        "_BALANCER_COMPLETE": f"{shell}_complete",
        "COMP_WORDS": words,
        "COMP_CWORD": str(words.count(" ")),
    }
    code = "import sys; from balancer.cli import main; main(prog_name='balancer')"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env={**os.environ, **asked}, capture_output=True, text=True, check=False)
    assert done.stdout.splitlines() == [expected]


def test_the_page_of_settings_shows_the_config_as_it_is():
    assert configuration_page.PAGE.read_text() == configuration_page.page()


def test_every_setting_is_explained():
    rows = [line for line in configuration_page.page().splitlines() if line.startswith("| `")]
    assert len(rows) > 80
    assert not [row for row in rows if row.endswith("|  |")]


@pytest.mark.parametrize(
    "section", ["facets.NAME", "verification.safety", "attempts.rungs[]", "attempts.fallback"]
)
def test_the_configuration_page_says_of_a_section_that_is_not_there_by_default_that_it_is_not(section):
    [text] = [part for part in configuration_page.page().split("\n## ") if part.startswith(f"`{section}`")]
    assert "By default there is none." in text


PAGES = sorted(f"docs/{path.name}" for path in (Path(__file__).parents[2] / "docs").glob("*.md"))


@pytest.mark.parametrize("page", ["README.md", "SECURITY.md", "CONTRIBUTING.md", *PAGES])
def test_every_file_that_a_page_names_is_there(page, project):
    named = set(
        re.findall(
            r"(?<![\w/.])(?:actors|balancer|tests|scripts|docs|configs|benchmarks)/[\w./-]*",
            (project / page).read_text(),
        )
    )
    assert not [name for name in named if not (project / name.rstrip("./")).exists() and "NAME" not in name]


@pytest.mark.parametrize("page", ["README.md", "SECURITY.md", "CONTRIBUTING.md", "CHANGELOG.md", *PAGES])
def test_every_link_of_a_page_leads_to_a_file(page, project):
    targets = re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", (project / page).read_text())
    assert not [target for target in targets if not ((project / page).parent / target).exists()]


def _modules(project):
    """Name -> tree of every module of the packages."""
    return {
        ".".join(path.relative_to(project).with_suffix("").parts).removesuffix(".__init__"): ast.parse(
            path.read_text()
        )
        for package in ("balancer", "actors")
        for path in (project / package).rglob("*.py")
    }


def _imports(node, names):
    """The modules among `names` that are imported at any depth, but for annotations only."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        if isinstance(child, ast.Import):
            yield from (alias.name for alias in child.names if alias.name in names)
        if isinstance(child, ast.ImportFrom):
            for alias in child.names:
                full = f"{child.module}.{alias.name}"
                yield from [full] if full in names else [child.module] if child.module in names else []
        yield from _imports(child, names)


def test_no_module_imports_itself_through_others_not_even_inside_functions(project):
    modules = _modules(project)
    graph = {name: set(_imports(tree, modules)) - {name} for name, tree in modules.items()}
    assert len(list(graphlib.TopologicalSorter(graph).static_order())) == len(modules)


def test_arrow_groups_in_one_thread(project):
    """In several, now and then: "ArrowIndexError: thread index 11 is out of range [0, 11)"."""
    for path in [*project.glob("balancer/**/*.py"), *project.glob("actors/**/*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(".group_by"):
                assert "use_threads=False" in ast.unparse(node), f"{path}:{node.lineno}"


def test_folders_and_classes_stay_small_enough_to_read(project):
    folders = Counter(
        path.parent
        for package in ("balancer", "actors")
        for path in (project / package).rglob("*.py")
        if path.name != "__init__.py"
    )
    assert {str(folder): count for folder, count in folders.items() if count > 14} == {}
    assert folders[project / "balancer"] <= 6
    classes = [
        (name, node.name)
        for name, tree in _modules(project).items()
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef) and (node.end_lineno or 0) - node.lineno >= 200
    ]
    assert classes == []


def test_a_parameter_is_called_what_it_is(project):
    """Not by a word that says no more than that somebody found it, or said it."""
    called = [
        (name, node.name)
        for name, tree in _modules(project).items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        for parameter in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)
        if parameter.arg in ("found", "told")
    ]
    assert called == []
