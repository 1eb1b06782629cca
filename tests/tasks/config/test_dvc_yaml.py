"""dvc.yaml agrees with the code: its commands, parameters and dependencies exist."""

import ast
import re
from pathlib import Path

import networkx
import pytest
from dvc.repo import Repo
from ruamel.yaml import YAML

from tasks.config import STAGES as TABLE
from tasks.config import Params
from tasks.config.section import UNLISTED

PROJECT = Path(__file__).resolve().parents[3]
STAGES = YAML(typ="safe").load((PROJECT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
BODIES = {name: stage.get("do", stage) for name, stage in STAGES.items()}


def commands(name: str) -> list[list[str]]:
    written = BODIES[name]["cmd"]
    return [command.split() for command in ([written] if isinstance(written, str) else written)]


def folders_imported(file: Path) -> set[str]:
    """Folders of the library that a file imports, such as efface/models."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    folders = {"/".join(name.split(".")[:2]) for name in names if name.startswith("efface.")}
    return {folder for folder in folders if (PROJECT / folder).is_dir()}


@pytest.mark.parametrize("name", STAGES)
def test_names_are_quoted_for_the_shell(name):
    words = [word for command in commands(name) for word in command if "$" in word]
    assert all(word in ("'${item}'", "'${key}'") for word in words)


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_depends_on_the_folders_its_file_imports(name):
    stage = commands(name)[0][3]
    deps = BODIES[name]["deps"]
    files = [dep for dep in deps if dep.startswith("tasks/") and dep.endswith(".py")]
    assert stage in ("vanilla", "retrained") or f"tasks/{stage}.py" in files
    imported = set().union(*(folders_imported(PROJECT / file) for file in files))
    missing = {folder for folder in imported if not any(dep.startswith(folder) for dep in deps)}
    assert missing == set()


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_tracks_the_sections_it_reads(name):
    files = [PROJECT / dep for dep in BODIES[name]["deps"] if re.fullmatch(r"tasks/.*\.py", dep)]
    code = "".join(file.read_text(encoding="utf-8") for file in files)
    code = code.replace("params.base.trust_remote_code", "")  # a permission, which changes no result
    read = set(re.findall(r"\bparams\.(\w+)", code)) & set(Params.model_fields)
    if name == "split":
        read -= {"unlearn", "prune"}  # for warnings alone
    if name in ("vanilla", "retrained"):
        read -= {"vanilla", "retrained"} - {name}  # one file runs both
    assert read <= {key.partition(".")[0] for key in BODIES[name].get("params", [])}


@pytest.mark.parametrize("name", ["saliency", "control"])
def test_other_trained_weights_or_forgotten_facts_make_a_mask_stale(name):
    assert {"unlearn.lora", "unlearn.forget"} <= set(BODIES[name]["params"])


def test_a_key_that_params_yaml_does_not_list_is_tracked_with_its_section_or_changes_no_result():
    tracked = [key.split(".") for body in BODIES.values() for key in body.get("params", [])]
    in_part = {keys[0] for keys in tracked} - {keys[0] for keys in tracked if len(keys) == 1}
    unlisted = {
        f"{section}.{key}"
        for section in in_part
        for key, field in Params.model_fields[section].annotation.model_fields.items()
        if UNLISTED in field.metadata
    }
    assert unlisted == {"saliency.storage", "unlearn.checkpoint_every"}


def test_dvc_resolves_every_stage_and_finds_its_code_and_parameters():
    with Repo(str(PROJECT)) as repo:
        stages = repo.index.stages
    optional = {"control", "attack", "lmms_eval"}
    assert {stage.name.partition("@")[0] for stage in stages} >= STAGES.keys() - optional
    for stage in stages:
        for dep in stage.deps:
            if hasattr(dep, "params"):
                assert dep.read_params().keys() >= set(dep.params), stage.name
            elif not dep.def_path.startswith("data/"):
                assert dep.exists, f"{stage.name}: {dep.def_path}"


def test_dvc_and_the_table_of_stages_hold_the_same_stages():
    assert {name for stage in TABLE.values() for name in stage.dvc} == STAGES.keys()
    for stage in TABLE.values():
        assert {commands(name)[0][3] for name in stage.dvc} == {stage.name}
        assert {BODIES[name].get("meta", {}).get("gpu", False) for name in stage.dvc} == {stage.gpu}
        assert (PROJECT / "tasks" / f"{stage.module}.py").is_file()


def test_every_stage_waits_until_the_names_are_checked():
    with Repo(str(PROJECT)) as repo:
        graph = repo.index.graph
    for stage in graph:
        upstream = {descendant.name for descendant in networkx.descendants(graph, stage)}
        assert stage.name == "params" or "params" in upstream, stage.name
