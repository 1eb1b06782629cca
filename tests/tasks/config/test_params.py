"""Every kind of mistake in params.yaml becomes one line, and nothing runs."""

import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from tasks.config import ParamsError, load_params
from tasks.config.file import PUBLISHED, SANDBOX

PROJECT = Path(__file__).resolve().parents[2]
TEXT = (PROJECT / "params.yaml").read_text(encoding="utf-8")


def edited(folder: Path, old: str, new: str) -> Path:
    assert old in TEXT, f"this test edits {old!r}, which params.yaml no longer holds"
    path = folder / "params.yaml"
    path.write_text(TEXT.replace(old, new, 1), encoding="utf-8")
    return path


def mistakes_of(folder: Path, old: str, new: str) -> list[str]:
    with pytest.raises(ParamsError) as caught:
        load_params(edited(folder, old, new))
    lines = str(caught.value).splitlines()
    assert all(line.startswith(f"{folder / 'params.yaml'}: ") for line in lines)
    return [line.split(": ", 1)[1] for line in lines]


@pytest.mark.parametrize(
    ("old", "new", "key", "value", "allowed"),
    [
        ("  people: 60", "  people: 1", "avatars.people", "1", "an integer at least 7 and at most 2000"),
        ("  people: 60", "  people: '60'", "avatars.people", "'60'", "an integer"),
        ("  people: 60", "  people: 60.5", "avatars.people", "60.5", "an integer"),
        ("  people: 60", "  people: true", "avatars.people", "True", "an integer"),
        ("  people: 60", "  peple: 60", "avatars.peple", "60", "unknown key; allowed: profile, seed, people"),
        ("  threshold:", "  treshold:", "saliency.threshold", "missing", "a number above 0"),
        ("seed: 0 ", "seed: -1 ", "seed", "-1", "an integer at least 0"),
        ("seed: 0 ", "sede: 1\nseed: 0 ", "sede", "1", "unknown key"),
        ("active_above: 0.1", "active_above: .nan", "importance.active_above", "nan", "a number at least 0"),
        ("profile: laptop ", "profile: labtop ", "avatars.profile", "'labtop'", "quick, laptop, study"),
        (
            "forget_fraction: 0.1 ",
            "forget_fraction: 0.2 ",
            "prepare.forget_fraction",
            "0.2",
            "0.05, 0.1, 0.15",
        ),
        (
            "[vision, projector, language]",
            "[vision, audio]",
            "saliency.groups.1",
            "'audio'",
            "vision, projector",
        ),
        (
            "mask: none",
            "mask: true",
            "unlearn.methods.grad_diff.mask",
            "True",
            "saliency, random, magnitude, none",
        ),
        (
            "mask: none",
            "mask: random",
            "unlearn.methods.grad_diff.mask",
            "random",
            "add random to saliency.controls",
        ),
        ("seeds: [0, 1, 2]", "seeds: [0, 1, 0]", "study.seeds", "[0, 1, 0]", "names something twice"),
        ("methods: null ", "methods: [npo, no] ", "study.methods", "no", "some of: "),
        ("controls: []", "controls: [random, random]", "saliency.controls", "random", "each control once"),
        ("  run: [relearn, ", "  run: [relern, ", "attack.run.0", "'relern'", "relearn, quantize"),
        ("  run: [relearn, ", "  run: [quantize, ", "attack", "quantize, quantize", "each attack once"),
        (
            "  models: {} ",
            "  models: {npo: vanilla} ",
            "attack.models.npo",
            "'vanilla'",
            "npo: unlearned/npo",
        ),
        (
            "  models: {} ",
            "  models: {x: vanilla} ",
            "attack.models.x",
            "'vanilla'",
            "base, vanilla, retrained",
        ),
        ("shots: 0 ", "shots: 2 ", "evaluate", "shots is 2", "expected 0 with prompts bare"),
        ("prompts: bare ", "prompts: raw ", "evaluate.prompts", "'raw'", "bare, published, published_llava"),
        (
            "    grad_diff:\n",
            "    grad_dif:\n",
            "unlearn.methods.grad_dif",
            "unknown",
            "grad_diff, gradient_ascent",
        ),
        ("    manu:\n", "    many:\n", "evaluate.models", "many: unlearned/many", "add this entry"),
        ("    manu:\n", "    Many One:\n", "prune.methods.Many One", "expected a name", "small letters"),
        ("    manu:\n", "    npo:\n", "prune.methods.npo", "also a method of unlearn", "another name"),
        (
            "      layers: all                 #",
            "      layers: last #",
            "prune.methods.manu.layers",
            "'last'",
            "all, early",
        ),
        (
            "      layers: all\n",
            "      layers: {language: [3, 2]}\n",
            "prune.methods.random_pruning.layers.language",
            "[3, 2]",
            "first layer, last layer",
        ),
        (
            "      scope: tower\n      layers: all\n",
            "      scope: layer\n      layers: early\n",
            "prune.methods.random_pruning.scope",
            "layer",
            "layers: all only",
        ),
        ("{people: 20,", "{people: 1,", "profiles.quick.avatars.people", "1", "an integer at least 7"),
        ("image_size: 48", "image_size: 50", "base.image_size", "50", "a multiple of patch_size (12)"),
        ("{beta: 0.1}", "{}", "unlearn.methods.npo.settings.beta", "missing", "a number above 0"),
        ("{beta: 0.1}", "{beta: 0}", "unlearn.methods.npo.settings.beta", "0", "a number above 0"),
        ("{beta: 0.1}", "{beta: true}", "unlearn.methods.npo.settings.beta", "True", "a number above 0"),
        (
            "settings: {}",
            "settings: {beta: 2.0}",
            "unlearn.methods.grad_diff.settings.beta",
            "2.0",
            "this method's settings: none",
        ),
        (
            "{variant: paper}",
            "{variant: code}",
            "unlearn.methods.mmunlearner.settings.variant",
            "'code'",
            "one of: paper, official_code",
        ),
        ("      epochs: 2\n", "", "unlearn.methods.mmunlearner.epochs", "missing", "an integer at least 1"),
        (
            "      epochs: 2\n",
            "      epochs: null\n",
            "unlearn.methods.mmunlearner.epochs",
            "null",
            "an integer at least 1",
        ),
        (
            "start: vanilla  ",
            "start: unlearned/npo",
            "unlearn.methods.mmunlearner.start",
            "'unlearned/npo'",
            "vanilla, unlearned/manu, unlearned/random_pruning",
        ),
        ("precision: fp32", "precision: fp8", "vanilla.precision", "'fp8'", "fp32, bf16, fp16"),
        ("lora: null", "lora: {rank: 0}", "unlearn.lora.rank", "0", "at least 1"),
        ("npo: unlearned/npo", "npo: unlearned/x", "evaluate.models", "npo: unlearned/npo", "add this entry"),
        ("    manu: unlearned/manu\n", "", "evaluate.models", "manu: unlearned/manu", "add this entry"),
        (
            "    base: base\n",
            "    base: base\n    other: x\n",
            "evaluate.models.other",
            "'x'",
            "one of: base, vanilla",
        ),
        ("unlearn: {}", "unlearn: []", "profiles.quick.unlearn", "[]", "keys to replace"),
        ("    prune: {}\n", "", "profiles.quick.prune", "missing", "add `prune: {}`"),
        ("  quick: ", "  fast: ", "profiles.fast", "not a known profile", "quick, laptop, study"),
        (
            "    prune: {}\n",
            "    prune: {}\n    more: {}\n",
            "profiles.quick.more",
            "not a section",
            "avatars, benchmark, prepare, base",
        ),
        (
            "    unlearn: {}",
            "    unlearn: {methods: {npo: {mask: saliency}}}",
            "profiles.quick.unlearn.methods.npo.mask",
            "not for a profile",
            "set unlearn.methods.npo.mask",
        ),
    ],
)
def test_a_mistake_is_one_line_with_key_value_and_what_is_allowed(tmp_path, old, new, key, value, allowed):
    lines = mistakes_of(tmp_path, old, new)
    line = next((line for line in lines if line.startswith(key)), "")
    assert line, f"no line begins with {key}: {lines}"
    assert value in line
    assert allowed in line


def test_each_mistake_has_its_own_line_and_is_told_once(tmp_path):
    lines = mistakes_of(tmp_path, "  real: 12\n  holdout: 12", "  real: 0\n  holdout: -1")
    assert [line.split(" is ")[0] for line in lines] == ["avatars.real", "avatars.holdout"]


def test_a_mistake_in_a_profile_that_is_not_chosen_is_found_too(tmp_path):
    assert mistakes_of(tmp_path, "fisher_samples: null}", "fisher_samples: 0}") == [
        "profiles.study.saliency.fisher_samples is 0: expected an integer at least 1, or null"
    ]


@pytest.mark.parametrize("text", ["a: [1", "seed: 0\nseed: 1\n", "- 1\n", ""])
def test_a_file_that_is_no_mapping_of_sections_is_refused(tmp_path, text):
    path = tmp_path / "params.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ParamsError, match="YAML|expected sections") as caught:
        load_params(path)
    assert len(str(caught.value).splitlines()) == 1


def test_a_missing_file_says_where_to_stand(tmp_path):
    with pytest.raises(ParamsError, match="project's root"):
        load_params(tmp_path / "params.yaml")


@pytest.mark.parametrize("profile", SANDBOX)
def test_the_chosen_profile_replaces_values_and_leaves_the_rest(tmp_path, profile):
    loaded = load_params(edited(tmp_path, "profile: laptop ", f"profile: {profile} "))
    laptop = load_params(PROJECT / "params.yaml")
    assert loaded.avatars.people == {"quick": 20, "laptop": laptop.avatars.people, "study": 200}[profile]
    assert loaded.avatars.picture_size == laptop.avatars.picture_size


@pytest.mark.parametrize("profile", PUBLISHED)
def test_a_published_profile_chooses_another_benchmark(tmp_path, profile):
    loaded = load_params(edited(tmp_path, "profile: laptop ", f"profile: {profile} "))
    assert loaded.avatars.profile == profile
    assert loaded.benchmark.name == profile.split("-")[0]
    assert all(root.startswith("hf://") for root in loaded.benchmark.roots.values())


@pytest.mark.parametrize("profile", PUBLISHED)
def test_dvc_finds_a_profile_whose_name_has_a_dot(profile):
    from dvc.dependency.param import read_param_file
    from dvc.fs import localfs

    path = f"profiles.{profile}.benchmark"
    read = read_param_file(localfs, str(PROJECT / "params.yaml"), [path], flatten=True)
    assert read[path]["name"] == profile.split("-")[0]


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ("name: avatars ", "name: mllmu ", "benchmark.roots of mllmu: expected eval, train; given none"),
        ("roots: {} ", "roots: {eval: x} ", "benchmark.roots of avatars: expected none, it is made here"),
        ("name: avatars ", "name: mlmu ", "benchmark.name is 'mlmu': expected one of: avatars, mllmu"),
        (
            "forgotten_people: null ",
            "forgotten_people: [fictitious/001] ",
            "prepare.forgotten_people is given without forget_people: expected null, or both",
        ),
        ("on_bad_row: stop ", "on_bad_row: go ", "prepare.on_bad_row is 'go': expected one of: stop, skip"),
    ],
)
def test_a_benchmark_and_its_roots_belong_together(tmp_path, old, new, line):
    assert any(found.startswith(line) for found in mistakes_of(tmp_path, old, new))


def test_a_profile_can_replace_one_key_of_one_method(tmp_path):
    path = edited(tmp_path, "    unlearn: {}", "    unlearn: {methods: {npo: {epochs: 9}}}")
    path.write_text(path.read_text().replace("profile: laptop ", "profile: quick "))
    methods, before = load_params(path).unlearn.methods, load_params(PROJECT / "params.yaml").unlearn.methods
    assert methods["npo"].epochs == 9
    assert methods["npo"].settings == before["npo"].settings == {"beta": 0.1}
    assert methods["grad_diff"] == before["grad_diff"]


def test_numbers_are_read_as_dvc_reads_them(tmp_path):
    path = edited(tmp_path, "vision_learning_rate: 1.0e-3", "vision_learning_rate: 1e-3")
    assert load_params(path).base.vision_learning_rate == 0.001


def test_parameters_cannot_be_changed_after_loading():
    params = load_params(PROJECT / "params.yaml")
    with pytest.raises(ValidationError, match="frozen"):
        params.avatars.people = 3


def test_every_field_says_what_it_means():
    from tasks.config.section import Section

    sections = Section.__subclasses__()  # importing load_params above imported them all
    assert len(sections) > 10
    bare = [
        f"{section.__name__}.{name}"
        for section in sections
        for name, field in section.model_fields.items()
        if not field.description and not isinstance(field.annotation, type)
    ]
    assert bare == []


@pytest.mark.parametrize("command", [["params"], ["vanilla"], ["unlearn", "npo"]])
def test_nothing_runs_on_bad_parameters(tmp_path, command):
    edited(tmp_path, "  people: 60", "  people: 1")
    done = subprocess.run(
        [sys.executable, "-m", "tasks", *command],
        cwd=tmp_path,
        env={"PYTHONPATH": str(PROJECT), "PATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert (
        done.stderr
        == "error: params.yaml: avatars.people is 1: expected an integer at least 7 and at most 2000\n"
    )
    assert list(tmp_path.iterdir()) == [tmp_path / "params.yaml"]


def test_an_unlisted_method_names_the_listed_ones(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "tasks", "unlearn", "nope"],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "nope" in done.stderr
    assert "mmunlearner, grad_diff, gradient_ascent, npo" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_folder_of_ones_own_leaves_the_presets_as_they_are(tmp_path):
    path = edited(tmp_path, "  name: avatars ", "  name: clear ")
    path.write_text(path.read_text().replace("  roots: {} ", "  roots: {data: my/clear} ", 1))
    params = load_params(path)
    assert params.benchmark.roots == {"data": "my/clear"}
    text = path.read_text().replace("profile: laptop ", "profile: mllmu-qwen2-vl-7b ", 1)
    path.write_text(text)
    assert set(load_params(path).benchmark.roots) == {"eval", "train"}
