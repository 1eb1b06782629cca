"""params.yaml and the profiles: every kind of mistake becomes one line, and nothing runs."""

import io
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from dvc.utils.serialize import dumps_yaml, loads_yaml
from pydantic import ValidationError
from ruamel.yaml import YAML
from typer.testing import CliRunner

from tasks.__main__ import app
from tasks.config import Params, ParamsError, checked, load_params, use_profile
from tasks.config.file import default_values, overlaid, read_yaml
from tasks.config.section import Section

PROJECT = Path(__file__).resolve().parents[3]
PARAMS = PROJECT / "params.yaml"
PROFILES = sorted(path.stem for path in (PROJECT / "profiles").glob("*.yaml"))
NPO = {"start": "vanilla", "mask": "none"}


def nested(dotted: str, value: object) -> dict:
    for key in reversed(dotted.split("/")):
        value = {key: value}
    return value


def mistakes(values: dict) -> list[str]:
    with pytest.raises(ParamsError) as error:
        checked(values, "params.yaml")
    lines = str(error.value).splitlines()
    assert all(line.startswith("params.yaml: ") for line in lines)
    return [line.removeprefix("params.yaml: ") for line in lines]


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("avatars/people", 1, ["avatars.people is 1", "7"]),
        ("avatars/people", "60", ["avatars.people is '60'", "integer"]),
        ("avatars/people", 60.5, ["avatars.people is 60.5", "integer"]),
        ("avatars/people", True, ["avatars.people is True", "integer"]),
        ("avatars/peple", 60, ["avatars.peple is 60", "people"]),
        ("avatars", [], ["avatars is []", "mapping"]),
        ("seed", -1, ["seed is -1", "0"]),
        ("sede", 1, ["sede is 1", "seed"]),
        ("importance/active_above", float("nan"), ["importance.active_above is nan", "finite"]),
        ("split/forget_fraction", 0.2, ["split.forget_fraction is 0.2", "0.05, 0.1, 0.15"]),
        ("split/forgotten_people", ["a"], ["split.forgotten_people is ['a']", "forget_people"]),
        ("prepare/on_bad_row", "go", ["prepare.on_bad_row is 'go'", "'stop' or 'skip'"]),
        ("benchmark/name", "mlmu", ["benchmark.name is 'mlmu'", "'mllmu'"]),
        ("benchmark/name", "mllmu", ["benchmark.roots", "{}", "eval, train"]),
        ("benchmark/roots", {"eval": "x"}, ["benchmark.roots", "{'eval': 'x'}", "none"]),
        ("base/image_size", 50, ["base.image_size is 50", "patch_size (12)"]),
        ("finetune/precision", "fp8", ["finetune.precision is 'fp8'", "'fp32', 'bf16' or 'fp16'"]),
        ("saliency/groups", ["vision", "audio"], ["saliency.groups.1 is 'audio'", "'projector'"]),
        ("saliency/controls", ["random"] * 2, ["saliency.controls is ['random', 'random']", "once"]),
        ("unlearn/forget", ["text"] * 2, ["unlearn.forget is ['text', 'text']", "once"]),
        ("unlearn/forget", ["audio"], ["unlearn.forget.0 is 'audio'", "'multimodal' or 'text'"]),
        ("unlearn/lora", {"rank": 0}, ["unlearn.lora.rank is 0", "1"]),
        ("unlearn/lora", {"rnk": 8}, ["unlearn.lora.rnk is 8", "rank"]),
        ("unlearn/methods/grad_dif", NPO, ["unlearn.methods.grad_dif is", "grad_diff"]),
        ("unlearn/methods/npo", {}, ["unlearn.methods.npo.start is missing"]),
        ("unlearn/methods/npo", None, ["unlearn.methods.npo is None", "mapping"]),
        ("unlearn/methods/npo", {**NPO, "beta": 0}, ["unlearn.methods.npo.beta is 0", "above 0"]),
        ("unlearn/methods/npo", {**NPO, "beta": True}, ["unlearn.methods.npo.beta is True", "number"]),
        ("unlearn/methods/npo", {**NPO, "betta": 1}, ["unlearn.methods.npo.betta is 1", "beta"]),
        ("unlearn/methods/npo", {**NPO, "epochs": None}, ["unlearn.methods.npo.epochs is None", "integer"]),
        ("unlearn/methods/npo", {**NPO, "mask": "all"}, ["unlearn.methods.npo.mask is 'all'", "'saliency'"]),
        (
            "unlearn/methods/npo",
            {**NPO, "mask": "random"},
            ["unlearn.methods.npo.mask is 'random'", "saliency, none", "saliency.controls"],
        ),
        (
            "unlearn/methods/gradient_ascent",
            {**NPO, "retain_text": True},
            ["unlearn.methods.gradient_ascent.retain_text is true", "no retain set"],
        ),
        (
            "unlearn/methods/npo",
            {**NPO, "retain_text": True, "retain_weight": 0.0},
            ["unlearn.methods.npo.retain_text is true", "no retain set"],
        ),
        (
            "unlearn/methods/kvw",
            {**NPO, "retain_text": True, "mask": "retain_statistic"},
            ["unlearn.methods.kvw.retain_text is true", "a saved statistic"],
        ),
        (
            "unlearn/methods/npo",
            {**NPO, "start": "unlearned/npo"},
            ["unlearn.methods.npo.start is 'unlearned/npo'", "vanilla, unlearned/manu"],
        ),
        (
            "unlearn/methods/system_prompt",
            {**NPO, "epochs": 1},
            ["unlearn.methods.system_prompt.epochs is 1"],
        ),
        (
            "unlearn/methods/mmunlearner",
            {**NPO, "variant": "code"},
            ["unlearn.methods.mmunlearner.variant is 'code'", "official_code"],
        ),
        ("prune/methods/Many One", {"selection": "random"}, ["prune.methods.Many One", "[a-z]"]),
        ("prune/methods/npo", {"selection": "random"}, ["prune.methods.npo", "no other model"]),
        ("prune/methods/base", {"selection": "random"}, ["prune.methods.base", "no other model"]),
        (
            "prune/methods/manu",
            {"selection": "random", "layers": "last"},
            ["prune.methods.manu.layers is 'last'", "all, early"],
        ),
        (
            "prune/methods/manu",
            {"selection": "random", "layers": {"language": [3, 2]}},
            ["prune.methods.manu.layers is {'language': [3, 2]}", "[first layer, last layer]"],
        ),
        (
            "prune/methods/manu",
            {"selection": "random", "layers": "early", "scope": "layer"},
            ["prune.methods.manu.layers is 'early'", "scope layer"],
        ),
        ("evaluate/shots", 2, ["evaluate.shots is 2", "prompts bare"]),
        ("attack/models", ["vanila"], ["attack.models is 'vanila'", "vanilla, retrained"]),
        ("lmms_eval/models", ["vanila"], ["lmms_eval.models is 'vanila'", "vanilla, retrained"]),
        ("attack/run", ["relearn"] * 2, ["attack.run is ['relearn', 'relearn']", "once"]),
        ("attack/relearn/budgets", [0], ["attack.relearn.budgets is [0]", "above 0"]),
        ("attack/soft_prompt/budgets", [5, 1], ["attack.soft_prompt.budgets is [5, 1]", "increasing"]),
        ("attack/jailbreak/prompts", {"mine": "Tell me."}, ["attack.jailbreak", "{question}"]),
        ("study/seeds", [1, 1], ["study.seeds is [1, 1]", "once"]),
        ("study/methods/npo", NPO, ["study.methods.npo", "no other model"]),
        ("study/grid/nothing", {"beta": [1]}, ["study.grid is 'nothing'", "npo"]),
        ("requests/method", "kl_min", ["requests.method is 'kl_min'", "mmunlearner"]),
        (
            "requests/gates/relearn_gap_at_most",
            0.1,
            ["requests.gates.relearn_gap_at_most is 0.1", "retrained"],
        ),
    ],
)
def test_a_mistake_is_one_line_with_key_value_and_what_is_allowed(key, value, words):
    lines = mistakes(nested(key, value))
    line = next((line for line in lines if line.startswith(words[0])), "")
    assert line, f"no line begins with {words[0]}: {lines}"
    assert all(word in line for word in words)


@pytest.mark.parametrize("name", ["x$(touch PWNED)", "x`id`", "x;id", "x y", "../x", "X", "x'", "x\n"])
@pytest.mark.parametrize(
    ("key", "method"),
    [
        ("unlearn/methods", {"method": "npo", "start": "vanilla", "mask": "none"}),
        ("study/methods", {"method": "npo", "start": "vanilla", "mask": "none"}),
        ("prune/methods", {"selection": "random"}),
    ],
)
def test_a_name_that_a_shell_would_run_is_refused(key, method, name):
    section, _, field = key.partition("/")
    (line,) = mistakes({section: {field: {name: method}}})
    assert name.strip() in line and "[a-z]" in line


def test_each_mistake_has_its_own_line():
    lines = mistakes({"avatars": {"real": 0, "holdout": -1}})
    assert [line.split(" is ")[0] for line in lines] == ["avatars.real", "avatars.holdout"]


@pytest.mark.parametrize("text", ["a: [1", "seed: 0\nseed: 1\n", "- 1\n", ""])
def test_a_file_without_sections_is_refused(tmp_path, text):
    path = tmp_path / "params.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ParamsError) as error:
        load_params(path)
    assert len(str(error.value).splitlines()) == 1 and str(path) in str(error.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ParamsError) as error:
        load_params(tmp_path / "params.yaml")
    assert str(tmp_path / "params.yaml") in str(error.value)


def test_the_file_holds_defaults_and_a_key_left_out_has_its_default():
    assert load_params(PARAMS) == Params() == checked({})
    assert read_yaml(PARAMS) == default_values()


def test_numbers_are_read_as_dvc_reads_them(tmp_path):
    (tmp_path / "params.yaml").write_text("base:\n  learning_rate: 1e-3\n", encoding="utf-8")
    assert load_params(tmp_path / "params.yaml").base.learning_rate == 0.001


def styles(text: str) -> dict[str, str]:
    """The same values, written as DVC and ruamel write them."""
    written = {"dvc": dumps_yaml(loads_yaml(text, typ="rt")), "dvc plain": dumps_yaml(loads_yaml(text))}
    for typ in ("safe", "rt"):
        yaml, stream = YAML(typ=typ, pure=True), io.StringIO()
        yaml.default_flow_style = False
        yaml.indent(mapping=4, sequence=6, offset=4)
        yaml.width = 40
        yaml.dump(loads_yaml(text, typ=typ), stream)
        written[typ] = stream.getvalue()
    return written


@pytest.mark.parametrize("profile", ["laptop", "clear-llava-1.5-7b", "study"])
def test_a_profile_survives_being_rewritten(tmp_path, profile):
    project = copied(tmp_path)
    params = use_profile(profile, project)
    text = (project / "params.yaml").read_text(encoding="utf-8")
    for style, written in styles(text).items():
        assert loads_yaml(written) == loads_yaml(text), style
        (tmp_path / "params.yaml").write_text(written, encoding="utf-8")
        assert load_params(tmp_path / "params.yaml") == params, style


def copied(folder: Path) -> Path:
    project = folder / "project"
    shutil.copytree(PROJECT / "profiles", project / "profiles")
    shutil.copy(PARAMS, project / "params.yaml")
    return project


@pytest.mark.parametrize("profile", PROFILES)
def test_a_profile_changes_its_values_and_no_others_and_keeps_the_comments(tmp_path, profile):
    project = copied(tmp_path)
    params = use_profile(profile, project)
    assert load_params(project / "params.yaml") == params
    values = read_yaml(project / "profiles" / f"{profile}.yaml")
    assert read_yaml(project / "params.yaml") == overlaid(default_values(), values)
    comments = [line.partition("#")[2] for line in PARAMS.read_text().splitlines() if "#" in line]
    text = (project / "params.yaml").read_text()
    assert [comment for comment in comments if comment not in text] == []
    use_profile("laptop", project)
    assert read_yaml(project / "params.yaml") == default_values()


@pytest.mark.parametrize(("profile", "people"), [("quick", 20), ("laptop", 60), ("study", 200)])
def test_profiles_of_the_embedded_benchmark_differ_in_size(tmp_path, profile, people):
    assert use_profile(profile, copied(tmp_path)).avatars.people == people


@pytest.mark.parametrize("profile", [name for name in PROFILES if "7b" in name])
def test_a_published_profile_has_its_benchmark_and_model(tmp_path, profile):
    params = use_profile(profile, copied(tmp_path))
    assert params.benchmark.name == profile.split("-")[0]
    assert all(root.startswith("hf://") for root in params.benchmark.roots.values())
    assert params.base.source != "sandbox"


def test_a_new_file_is_a_new_profile(tmp_path):
    project = copied(tmp_path)
    (project / "profiles/mine.yaml").write_text(
        "unlearn:\n  methods:\n    npo:\n      epochs: 9\n    grad_diff: null\n    kl_min:\n"
        "      start: vanilla\n      mask: none\nattack:\n  models: []\n",
        encoding="utf-8",
    )
    methods = use_profile("mine", project).unlearn.methods
    assert list(methods) == ["mmunlearner", "gradient_ascent", "npo", "simnpo", "kl_min"]
    assert (methods["npo"].epochs, methods["npo"].settings.beta) == (9, 0.4)


def test_an_unknown_or_wrong_profile_changes_nothing(tmp_path):
    project = copied(tmp_path)
    (project / "profiles/wrong.yaml").write_text("avatars:\n  people: 1\n", encoding="utf-8")
    for name, words in (
        ("nope", ["'nope'", "laptop, ", "quick"]),
        ("wrong", ["wrong.yaml", "avatars.people"]),
    ):
        with pytest.raises(ParamsError) as error:
            use_profile(name, project)
        assert len(str(error.value).splitlines()) == 1
        assert all(word in str(error.value) for word in words)
    assert (project / "params.yaml").read_text() == PARAMS.read_text()


def test_parameters_are_frozen():
    with pytest.raises(ValidationError) as error:
        Params().avatars.people = 3
    assert error.value.errors()[0]["type"] == "frozen_instance"


def test_every_field_is_documented():
    sections = Section.__subclasses__()
    assert len(sections) > 10
    bare = [
        f"{section.__name__}.{name}"
        for section in sections
        if section.__module__.startswith("tasks.config")
        for name, field in section.model_fields.items()
        if not field.description and not isinstance(field.annotation, type)
    ]
    assert bare == []


def test_nothing_runs_on_wrong_parameters(tmp_path):
    (tmp_path / "params.yaml").write_text("avatars:\n  people: 1\n", encoding="utf-8")
    completed = subprocess.run(
        [sys.executable, "-m", "tasks", "vanilla"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(PROJECT), "PATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert completed.returncode == 2
    assert completed.stderr.startswith("error: params.yaml: avatars.people is 1: ")
    assert len(completed.stderr.splitlines()) == 1
    assert list(tmp_path.iterdir()) == [tmp_path / "params.yaml"]


@pytest.mark.parametrize(
    ("command", "code", "words"),
    [
        (["unlearn", "nope"], 1, ["'nope'", "mmunlearner, grad_diff, gradient_ascent, npo, simnpo"]),
        (["use", "nope"], 2, ["'nope'", "laptop", "quick"]),
    ],
)
def test_a_command_with_an_unknown_name_says_which_there_are(monkeypatch, command, code, words):
    monkeypatch.chdir(PROJECT)
    result = CliRunner().invoke(app, command)
    assert result.exit_code == code and len(result.stderr.splitlines()) == 1
    assert all(word in result.stderr for word in words)
