"""dvc.yaml depends on exactly the code each stage imports, the parameters it uses, and knows every model."""

import ast
import functools
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from efface.data.benchmarks import LAYOUTS, READERS

PROJECT = Path(__file__).resolve().parents[2]
FLOORS = ("efface", "tasks", "flows")

GLUE = {
    "tasks/__main__.py": "starts a stage; makes nothing",
    "tasks/runtime/environment.py": "telemetry and warnings",
    "tasks/runtime/startup.py": "how packages are imported",
    "tasks/runtime/processes.py": "how processes end",
    "tasks/forkserver/__init__.py": "where a stage's process comes from",
    "tasks/runtime/sharing.py": "how many processes do the work; that their number alters nothing is tested",
    **{
        file.relative_to(PROJECT).as_posix(): "reads values that DVC tracks one by one"
        for file in (PROJECT / "tasks" / "params").glob("*.py")
    },
    "tasks/runtime/artifacts.py": "moves files into place; its digests and JSON are fixed by tests",
    "tasks/runtime/usage.py": "looks at the machine for the run records, which hold timings anyway",
    "tasks/tracking/sending.py": "sends copies of finished results elsewhere",
    "tasks/tracking/outbox.py": "the same",
    "efface/errors.py": "words of error messages",
}
"""Modules that cannot alter an output, so a change to them makes nothing stale."""


PLUGINS = {
    "benchmark": [f"{module.replace('.', '/')}.py" for module in LAYOUTS.values()],
    "prepare": [f"{module.replace('.', '/')}.py" for module in READERS.values()],
    "unlearn": ["efface/unlearning/methods/{key}.py"],
}
"""Modules found by name at run time: the stage of a method depends on that method's file alone."""


def load(name: str) -> Any:
    return YAML(typ="safe", pure=True).load((PROJECT / name).read_text(encoding="utf-8"))


STAGES: dict[str, Any] = load("dvc.yaml")["stages"]


def body(stage: str) -> dict[str, Any]:
    return STAGES[stage].get("do", STAGES[stage])


def module_file(dotted: str) -> Path | None:
    base = PROJECT.joinpath(*dotted.split("."))
    for candidate in (base.with_suffix(".py"), base / "__init__.py"):
        if candidate.is_file():
            return candidate
    return None


def package_of(path: Path) -> list[str]:
    parts = list(path.relative_to(PROJECT).with_suffix("").parts)
    return parts[:-1]


@functools.cache
def imports(path: Path) -> frozenset[Path]:
    """First-party files a module imports, anywhere; not what only type checkers read."""
    found: set[Path] = set()
    for dotted in _dotted_imports(ast.parse(path.read_text(encoding="utf-8")), path):
        if dotted.split(".")[0] not in FLOORS:
            continue
        parts = dotted.split(".")
        for length in range(1, len(parts) + 1):  # importing a.b.c runs a/__init__ and a.b/__init__ first
            file = module_file(".".join(parts[:length]))
            if file is not None:
                found.add(file)
    return frozenset(found)


def _dotted_imports(tree: ast.AST, path: Path) -> list[str]:
    names: list[str] = []
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            names += [name for part in node.orelse for name in _dotted_imports(part, path)]
            continue
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package_of(path)[: len(package_of(path)) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            names += [f"{module}.{alias.name}" for alias in node.names]
        names += _dotted_imports(node, path)
    return names


def closure(start: Path) -> set[Path]:
    seen, todo = set(), [start]
    while todo:
        path = todo.pop()
        if path in seen:
            continue
        seen.add(path)
        todo += [p for p in imports(path) if relative(p) not in GLUE]
    return seen


def relative(path: Path) -> str:
    return path.relative_to(PROJECT).as_posix()


def says_nothing(path: Path) -> bool:
    """An `__init__` of only a docstring runs nothing."""
    return path.name == "__init__.py" and all(
        isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        for node in ast.parse(path.read_text(encoding="utf-8")).body
    )


def instances(stage: str) -> list[str]:
    """Names a stage runs for; one empty name for a stage that runs once, or for none so far."""
    where = STAGES[stage].get("foreach")
    if where is None:
        return [""]
    section, key = where.strip("${}").split(".")
    return list(load("params.yaml")[section][key]) or [""]


def possible(stage: str) -> list[str]:
    """Names a stage may run for: every method there is, listed in params.yaml or not."""
    if stage != "unlearn":
        return instances(stage)
    return [file.stem for file in (PROJECT / PLUGINS[stage][0]).parent.glob("[a-z]*.py")]


def code_paths(stage: str, key: str) -> list[str]:
    deps = [dep.replace("${key}", key) for dep in body(stage)["deps"]]
    return [dep for dep in deps if dep.split("/")[0] in FLOORS]


def code_deps(stage: str, key: str) -> set[Path]:
    files: set[Path] = set()
    for dep in code_paths(stage, key):
        path = PROJECT / dep
        files |= contents(path) if path.is_dir() else {path}
    return files


def contents(folder: Path) -> set[Path]:
    return {p for p in folder.rglob("*") if p.is_file() and "__pycache__" not in p.parts}


def used_code(stage: str, key: str) -> set[Path]:
    """What a stage imports, and the files that lie beside it in its packages (templates, styles)."""
    used = closure(PROJECT / "tasks" / f"{stage}.py")
    for plugin in PLUGINS.get(stage, ()):
        used |= closure(PROJECT / plugin.format(key=key))
    beside = {f for p in used for f in p.parent.iterdir() if f.is_file() and f.suffix not in (".py", ".pyc")}
    return {p for p in used if relative(p) not in GLUE} | beside


def short(files: set[Path]) -> list[str]:
    """Files, with every folder that is wholly among them named once."""
    names = set(files)
    for folder in sorted({p.parent for p in files}, key=lambda p: len(p.parts), reverse=True):
        inside = {p for p in contents(folder) if not says_nothing(p)}
        if folder.relative_to(PROJECT).parts[1:] and inside <= files:
            names = {p for p in names if folder not in p.parents} | {folder}
    return sorted(relative(p) for p in names)


RUNS = [
    (stage, key)
    for stage in STAGES
    for key in {**dict.fromkeys(instances(stage)), **dict.fromkeys(possible(stage))}
]


@pytest.mark.parametrize(("stage", "key"), RUNS)
def test_a_stage_depends_on_exactly_the_code_it_imports(stage, key):
    used, listed = used_code(stage, key), code_deps(stage, key)
    for_any = set().union(*(used_code(stage, other) for other in possible(stage)))
    silent = {p for p in used | listed if says_nothing(p)}
    missing, needless = used - listed - silent, listed - for_any - silent
    hint = f"in all: {short(used - (silent - listed))}"
    assert not missing, f"add to {stage} in dvc.yaml: {short(missing)}; {hint}"
    assert not needless, f"{stage} does not import: {short(needless)}; {hint}"


@pytest.mark.parametrize(("stage", "key"), RUNS)
def test_every_path_of_code_exists(stage, key):
    assert [dep for dep in code_paths(stage, key) if not (PROJECT / dep).exists()] == []


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_tracks_every_parameter_it_reads_and_its_profile(stage):
    section = {"benchmark": "avatars", "control": "saliency"}.get(stage, stage)
    tracked = {param.split(".")[0] for param in body(stage)["params"]}
    tree = ast.parse((PROJECT / "tasks" / f"{stage}.py").read_text(encoding="utf-8"))
    read = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "params"
    }
    assert read, "no parameter found; does run() still take `params`?"
    assert read <= tracked, f"add to params of {stage} in dvc.yaml"
    assert f"profiles.${{avatars.profile}}.{section}" in body(stage)["params"]


def test_modules_are_imported_by_name_only_where_it_is_known():
    dynamic = {
        relative(path)
        for floor in FLOORS
        for path in (PROJECT / floor).rglob("*.py")
        if "import_module(" in path.read_text(encoding="utf-8")
        or "__import__(" in path.read_text(encoding="utf-8")
    }
    known = {"tasks/__main__.py", "tasks/benchmark.py", "tasks/prepare.py", "efface/unlearning/method.py"}
    known.add("tasks/runtime/startup.py")  # other people's packages alone
    assert dynamic <= known | {relative(path) for path in PASSING_ON}, "add it to PLUGINS and to dvc.yaml"


PASSING_ON = {
    PROJECT / "efface" / package / "__init__.py": import_module(f"efface.{package}").__all__
    for package in ("evaluation", "saliency")
}
"""Packages that import what they pass on to users when it is asked for, and its names."""


def test_what_packages_pass_on_to_users_is_imported_from_its_own_module():
    """Or a stage would use a module of which dvc.yaml knows nothing."""
    found = [
        f"{relative(path)}: {dotted}"
        for floor in FLOORS
        for path in (PROJECT / floor).rglob("*.py")
        for dotted in _dotted_imports(ast.parse(path.read_text(encoding="utf-8")), path)
        for package, names in PASSING_ON.items()
        if dotted in {f"{'.'.join(package_of(package))}.{name}" for name in names}
    ]
    assert found == []


def test_glue_exists_and_each_has_a_reason():
    assert all(GLUE.values())
    assert [name for name in GLUE if not (PROJECT / name).exists()] == []


def test_the_closure_sees_function_level_relative_and_transitive_imports(tmp_path, monkeypatch):
    monkeypatch.setattr("tests.tasks.test_dvc_yaml.PROJECT", tmp_path)
    files = {
        "tasks/a.py": "def f():\n    from efface.x import y\n",
        "efface/__init__.py": "",
        "efface/x/__init__.py": "from .z import w\n",
        "efface/x/y.py": "if TYPE_CHECKING:\n    import efface.only_types\n",
        "efface/x/z.py": "import torch\n",
        "efface/only_types.py": "",
        "efface/unused.py": "",
    }
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert {relative(p) for p in closure(tmp_path / "tasks/a.py")} == {
        "tasks/a.py",
        "efface/__init__.py",
        "efface/x/__init__.py",
        "efface/x/y.py",
        "efface/x/z.py",
    }
