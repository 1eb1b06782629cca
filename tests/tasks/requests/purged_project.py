"""A project in which request A is done, and what is left of its person."""

import shutil

from dvc.repo import Repo
from ruamel.yaml import YAML

from tasks.requests import purge
from tasks.requests.state import RUNS
from tests.requests_project import NAMES, PEOPLE, params_with, write_benchmark
from tests.traces import traces

PERSON = PEOPLE[1]


def with_done_request(project):
    """The project after request A and B, with a DVC cache and a remote that hold their data."""
    project.params = params_with(auto_promote=True)
    folder = project.root.parent
    picture = write_benchmark(project.root, PERSON)
    Repo.init(str(folder), no_scm=True).close()
    project.forget("A", PERSON)
    project.forget("B", PEOPLE[2])
    office_of(project).mkdir()
    with Repo(str(folder)) as repo:
        with repo.config.edit("local") as config:
            config["remote"]["office"] = {"url": str(office_of(project))}
            config["core"]["remote"] = "office"
        for place in (folder, *(path for path in (folder / RUNS).iterdir() if path.is_dir())):
            stages = {}
            for name in (
                "benchmarks",
                "prepared",
                "scores",
                "models/vanilla",
                "models/unlearned/mmunlearner",
            ):
                if not (path := place / "data" / name).exists():
                    continue
                repo.add(str(path))
                out = YAML(typ="safe").load(path.with_name(f"{path.name}.dvc"))["outs"][0]
                stages[name.replace("/", "-")] = {
                    "cmd": "python -m tasks prepare",
                    "params": {"params.yaml": {"split.forget_people": [PERSON]}},
                    "outs": [out | {"path": f"data/{name}"}],
                }
            YAML().dump({"schema": "2.0", "stages": stages}, place / "dvc.lock")
    with Repo(str(folder)) as repo:
        repo.push()
    for cache in (folder / ".dvc" / "cache", office_of(project)):
        (cache / "runs" / "ab" / "abc").mkdir(parents=True)
        shutil.copy(folder / "dvc.lock", cache / "runs" / "ab" / "abc" / "def")
    for path in folder.rglob("*.dvc"):
        if path.is_file():
            path.unlink()
    project.picture = picture
    return project


def office_of(project):
    """The folder of its DVC remote."""
    return project.root.parent.with_suffix(".office")


def run_purge(project, request="A"):
    if purge.unfinished(project.root) is None:
        plan = purge.plan_purge(project.params, project.root, project.registry, request)
        purge.start(project.root, plan)
    record = purge.carry_out(project.root)
    purge.complete(project.root, request)
    return record


def all_traces(project, words=(PERSON, NAMES[PERSON])):
    folders = (project.root.parent, office_of(project))
    return set().union(*(traces(folder, words, [project.picture]) for folder in folders))
