"""The page holds every number of the score files, needs nothing else, and refuses results that do not fit."""

import hashlib
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest

from efface.errors import ArtifactError
from tasks.report import _attacks, run
from tests.study_results import FEW, params_for, small_study, write_attacks, write_scores


class Reader(HTMLParser):
    """Cells with their value, models per table, links, images and visible text."""

    def __init__(self, text):
        super().__init__()
        self.cells, self.references, self.images, self.tags, self.words = {}, [], [], [], []
        self.model, self.styles = None, []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.tags.append(tag)
        self.model = values.get("data-model", self.model)
        if "data-cell" in values:
            self.cells[self.model, values["data-cell"]] = float(values["data-value"])
        self.references += [values[key] for key in ("src", "href", "srcset") if key in values]
        if tag == "img":
            self.images.append(values)

    def handle_data(self, data):
        (self.styles if self.tags and self.tags[-1] == "style" else self.words).append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    root = small_study(tmp_path_factory.mktemp("study") / "data")
    run(params_for(), root)
    return root


@pytest.fixture
def copy(study, tmp_path):
    return shutil.copytree(study, tmp_path / "data")


@pytest.fixture(scope="module")
def page(study):
    return Reader((study / "report" / "index.html").read_text(encoding="utf-8"))


def test_page_and_metrics_hold_every_number_of_the_score_files(study, page):
    expected = {}
    for model in FEW:
        summary = json.loads((study / "scores" / f"{model}.json").read_text())
        for set_name, modalities in summary["metrics"].items():
            for modality, metrics in modalities.items():
                for metric, cell in metrics.items():
                    expected[model, f"{set_name}/{modality}/{metric}"] = cell["value"]
    assert len(expected) > 100
    assert page.cells == pytest.approx(expected)
    side_effects = json.loads((study / "report" / "scores.json").read_text())["side_effects"]
    assert set(side_effects) == {*FEW} - {"base", "vanilla"}
    for effects in side_effects.values():
        assert f"{effects['worst']:.2f}" in page.text and effects["perception"] is None
        assert set(effects["kept"]) == {"picture", "name", "facts", "others"}
    assert "Perception is not available" in page.text
    metrics = json.loads((study / "report" / "metrics.json").read_text())
    flat = {
        (model, f"{s}/{modality}/{metric}"): value
        for model, sets in metrics.items()
        for s, modalities in sets.items()
        for modality, values in modalities.items()
        for metric, value in values.items()
    }
    assert flat == pytest.approx(expected)
    for value in expected.values():
        assert f"{value:.3f}" in page.text


def test_page_needs_no_network_and_no_script(study, page):
    assert "script" not in page.tags
    assert page.references
    assert all(reference.startswith(("data:image/", "#")) for reference in page.references)
    style = " ".join(page.styles)
    assert "url(" not in style
    assert "@import" not in style
    assert all(image.get("alt") for image in page.images)


def test_sections_link_to_headings(study, page):
    text = (study / "report" / "index.html").read_text(encoding="utf-8")
    targets = [reference[1:] for reference in page.references if reference.startswith("#")]
    assert len(targets) == 9
    assert all(f'id="{target}"' in text for target in targets)
    assert len(re.findall(r'\bid="([^"]+)"', text)) == len(set(re.findall(r'\bid="([^"]+)"', text)))


def test_gallery_shows_people_questions_golds_and_who_was_right(study, page):
    table = pd.read_parquet(study / "scores" / "vanilla.parquet")
    names = json.loads((study / "prepared" / "splits.json").read_text())
    for entity in names["entities"]["forget"]:
        assert names["names"][entity] in page.text
    row = table[(table["set"] == "forget") & (table["task"] == "cloze")].iloc[0]
    assert f"{row['question']} Answer: {row['gold']}" in page.text
    assert "✓ right: vanilla" in page.text
    assert "✗ wrong: retrained" in page.text
    pictures = [i for i in page.images if i["src"].startswith("data:image/png")]
    assert (
        len(pictures) == 5 * 2 + 9
    )  # forget people with an unseen picture beside, the retain people with one


def test_training_costs_and_provenance_are_shown(page, study):
    size = (study / "masks" / "saliency.safetensors").stat().st_size
    assert f"{size} Bytes" in page.text or f"{size / 1024:.1f} KiB" in page.text
    assert "ended by its last step" in page.text.lower()
    assert "evaluate@manu" in page.text
    assert "0123456789abcdef" in page.text
    assert "5.23.0" in page.text


def test_plots_and_summary_are_written(study):
    plots = {path.name for path in (study / "report" / "plots").iterdir()}
    assert {"forget_retain.svg", "picture_text.svg", "saliency_density.svg", "pruned_units.svg"} <= plots
    tradeoff = pd.read_csv(study / "report" / "plots" / "forget_retain.csv")
    assert list(tradeoff["model"]) == list(FEW)
    summary = (study / "report" / "summary.md").read_text()
    rows = [line for line in summary.splitlines() if line.startswith("| ")]
    assert len(rows) == 2 * (1 + len(FEW))  # knowledge, then the score with its parts
    card = json.loads((study / "report" / "scores.json").read_text())
    assert set(card["models"]) == set(FEW)
    assert card["models"]["vanilla"]["score"]["full"]["value"] == 0
    assert card["models"]["vanilla"]["auc"] is None  # no holdout people here: not available, not 0
    assert len({row.count("|") for row in rows[: 1 + len(FEW)]}) == 1
    assert len({row.count("|") for row in rows[1 + len(FEW) :]}) == 1


def test_every_unlearned_model_has_a_card_with_its_scores_and_no_id_in_the_clear(study):
    cards = {path.stem: path.read_text() for path in (study / "report" / "cards").iterdir()}
    assert set(cards) == {"mmunlearner", "manu"}
    text = cards["mmunlearner"]
    assert "| vanilla | full | 0.0 |" in text and "| mmunlearner | visual |" in text
    assert "Membership inference: not available." in text and "Attacks: not available." in text
    assert "learning_rate | `0.0002`" in text and "## Limits" in text and "git_commit" in text
    forget = json.loads((study / "prepared" / "splits.json").read_text())["entities"]["forget"]
    assert not any(identity in text for identity in forget)
    assert f"`{hashlib.sha256(forget[0].encode()).hexdigest()[:16]}`" in text


def test_the_curve_of_a_watched_method_is_drawn_with_its_front(study, copy):
    path = copy / "runs" / "unlearn@mmunlearner.json"
    record = json.loads(path.read_text())
    shares = [(0, 1.0, 0.9), (5, 0.5, 0.95), (10, 0.25, 0.8), (12, 0.25, 0.75)]
    names = ("step", "forget_known", "retain_known")
    record["summary"]["curve"] = [dict(zip(names, point, strict=True)) for point in shares]
    path.write_text(json.dumps(record))
    run(params_for(), copy)
    reader = Reader((copy / "report" / "index.html").read_text(encoding="utf-8"))
    (curve,) = (image["alt"] for image in reader.images if "still right" in image["alt"])
    assert "mmunlearner from 1.00 and 0.90 to 0.25 and 0.75" in curve
    rows = pd.read_csv(copy / "report" / "plots" / "curve.csv")
    assert list(rows["on_front"]) == [False, True, True, False] and list(rows["step"]) == [0, 5, 10, 12]
    assert len(pd.read_csv(study / "report" / "plots" / "curve.csv")) == 0


def test_dvc_plots_find_their_templates_and_columns(study):
    from ruamel.yaml import YAML

    project = Path(__file__).resolve().parents[2]
    described = YAML(typ="safe", pure=True).load((project / "dvc.yaml").read_text())["plots"]
    for (plot,) in (entry.values() for entry in described):
        assert json.loads((project / ".dvc" / "plots" / f"{plot['template']}.json").read_text())["encoding"]
        for path, y in plot["y"].items():
            columns = set(pd.read_csv(study.parent / path).columns)
            assert {"model", plot["x"], y} <= columns


BACK = {
    "retrained": {"none": 0.1, "4 bits": 0.1, "0 steps": 0.1, "30 steps": 0.3},
    "mmunlearner": {"none": 0.2, "4 bits": 0.7, "0 steps": 0.2, "30 steps": 0.5},
}


def test_attacks_are_shown_with_the_distance_to_retrained(copy):
    for model, back in BACK.items():
        write_attacks(copy, model, back)
    run(params_for(), copy)
    reader = Reader((copy / "report" / "index.html").read_text(encoding="utf-8"))
    rows = pd.read_csv(copy / "report" / "plots" / "attacks.csv").set_index(["model", "variant"])
    assert len(rows) == 8
    gaps = rows.loc["mmunlearner", "gap"]
    assert gaps["4 bits"] == gaps.max() > gaps["30 steps"] > 0 and rows.loc["retrained", "gap"].isna().all()
    card = json.loads((copy / "report" / "scores.json").read_text())["models"]
    # The worst attack is far ahead on any half of the people; a budget of 0 is no attack.
    low, high = card["mmunlearner"]["attack_interval"]
    assert low <= card["mmunlearner"]["attack_gap"] <= high and high > gaps["4 bits"]
    assert card["mmunlearner"]["attack_gap"] == pytest.approx(gaps["4 bits"], abs=0.05)
    (robustness,) = (image["alt"] for image in reader.images if "worst of 3" in image["alt"])
    assert "quantize, 4 bits" in robustness and (copy / "report" / "plots" / "robustness.svg").is_file()
    assert card["retrained"]["attack_gap"] is card["manu"]["attack_gap"] is None
    assert list(rows["step"].dropna()) == [0, 0, 30, 30]
    assert f"{gaps['4 bits']:+.2f}" in reader.text and "as it is" in reader.text
    (curve,) = (image["alt"] for image in reader.images if "relearning" in image["alt"])
    assert "mmunlearner 0.17 at 0" in curve and "at 30" in curve
    assert (copy / "report" / "plots" / "relearning.svg").is_file()
    summary = (copy / "report" / "summary.md").read_text()
    card_text = (copy / "report" / "cards" / "mmunlearner.md").read_text()
    mean = card["mmunlearner"]["attack_gap"]
    assert f"Attacks: {mean:+.2f} exact match above the retrained model" in card_text
    row = f"| mmunlearner | {mean:+.2f} | {gaps['4 bits']:+.2f} | {gaps['30 steps']:+.2f} |"
    assert row in summary and f"{gaps['4 bits']:+.2f}" in reader.text


def test_without_attacks_the_page_says_how_to_run_them(study, page):
    assert "No model was attacked." in page.text
    assert list(pd.read_csv(study / "report" / "plots" / "attacks.csv")["model"]) == []
    assert "gap to retrained" not in (study / "report" / "summary.md").read_text()


def test_an_attack_on_other_weights_is_not_shown_but_told(copy):
    for model, back in BACK.items():
        write_attacks(copy, model, back)
    about = json.loads((copy / "attacks" / "mmunlearner.json").read_text())
    for model, remaining in (("mmunlearner", ["retrained"]), ("retrained", [])):
        (copy / "attacks" / f"{model}.json").write_text(json.dumps(about | {"digest": "of before"}))
        attacks, _ = _attacks(params_for(), copy)
        assert attacks.models == remaining
        assert attacks.unavailable[model].startswith("the model changed after it was attacked")


def test_an_attack_on_a_model_when_others_were_forgotten_is_not_shown_but_told(copy):
    for model, back in BACK.items():
        write_attacks(copy, model, back)
    path = copy / "attacks" / "mmunlearner.parquet"
    table = pd.read_parquet(path)
    table["entity_id"] = "fictitious/999"
    table.to_parquet(path, index=False)
    attacks, plots = _attacks(params_for(), copy)
    assert attacks.models == ["retrained"] and [plot.name for plot in plots] == ["relearning"]
    assert "fictitious/999" in attacks.unavailable["mmunlearner"]
    about = json.loads((copy / "attacks" / "retrained.json").read_text())
    about |= {
        "unavailable": {"language": "no list"},
        "floors": {"linear, layer 1": {"chance": 0.1, "base": 0.2}},
    }
    (copy / "attacks" / "retrained.json").write_text(json.dumps(about))
    record = json.loads((copy / "runs" / "retrained.json").read_text())
    record |= {"stage": "attack", "name": "retrained", "summary": {"seconds": {"quantize": 4.5}}}
    (copy / "runs" / "attack@retrained.json").write_text(json.dumps(record))
    attacks, _ = _attacks(params_for(), copy)
    assert attacks.unavailable["language (retrained)"] == "no list"
    assert attacks.floors == about["floors"] and attacks.seconds == {"quantize": 4.5}


def test_the_same_results_give_the_same_bytes(study, copy):
    run(params_for(), copy)
    for path in (study / "report").rglob("*"):
        if path.is_file():
            assert path.read_bytes() == (copy / path.relative_to(study)).read_bytes(), path.name


def test_a_warning_where_vanilla_learnt_nothing_and_no_markup_from_a_model(copy):
    retrained = pd.read_parquet(copy / "scores" / "retrained.parquet")
    write_scores(copy, "vanilla", retrained.assign(model="vanilla"))
    table = pd.read_parquet(copy / "scores" / "manu.parquet")
    write_scores(
        copy, "manu", table.assign(generation='<script>alert("x")</script><img src=http://x.example>')
    )
    run(params_for(), copy)
    reader = Reader((copy / "report" / "index.html").read_text(encoding="utf-8"))
    assert "Vanilla never learnt some of this" in reader.text
    assert "No method is scored" in reader.text
    assert "**Warning** forget / multimodal" in (copy / "report" / "summary.md").read_text()
    assert "script" not in reader.tags
    assert not any("x.example" in reference for reference in reader.references)


def shorten(root):
    table = pd.read_parquet(root / "scores" / "manu.parquet")
    write_scores(root, "manu", table.iloc[:-4])


def other_benchmark(root):
    table = pd.read_parquet(root / "scores" / "manu.parquet")
    write_scores(root, "manu", table.assign(benchmark="mllmu"))


def foreign(root):
    for model in FEW:
        table = pd.read_parquet(root / "scores" / f"{model}.parquet")
        write_scores(root, model, table.assign(sample_id="x" + table["sample_id"]))


def cut(path, size=200):
    def damage(root):
        (root / path).write_bytes((root / path).read_bytes()[:size])

    return damage


def damaged_attack(root):
    write_attacks(root, "manu", {"none": 0.5})
    cut("attacks/manu.parquet")(root)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda root: (root / "scores" / "manu.parquet").unlink(), "manu.parquet|dvc repro"),
        (cut("scores/manu.parquet"), "manu.parquet|damaged|dvc checkout"),
        (cut("scores/manu.json", 40), "manu.json|damaged|dvc repro"),
        (cut("masks/saliency.safetensors", 50), "saliency.safetensors|damaged|dvc checkout"),
        (cut("runs/unlearn@mmunlearner.json"), "unlearn@mmunlearner.json|damaged"),
        (damaged_attack, "attacks/manu.parquet|damaged"),
        (cut("prepared/samples.parquet"), "samples.parquet"),
        (shorten, "manu: 4 missing"),
        (other_benchmark, "manu.parquet|mllmu|avatars"),
        (
            foreign,
            "such as x|prepared",
        ),
    ],
)
def test_results_that_cannot_be_compared_are_refused_before_anything_is_written(copy, damage, message):
    shutil.rmtree(copy / "report")
    damage(copy)
    with pytest.raises(ValueError) as error:
        run(params_for(), copy)
    assert isinstance(error.value, ArtifactError) or "samples.parquet" in message
    assert all(part in str(error.value) for part in message.split("|"))
    assert not (copy / "report").exists()


def test_one_run_of_few_people_ranks_no_method(study, page):
    assert "it orders no methods" in page.text
    verdict = page.text[page.text.index("In short") : page.text.index("Did the run work?")]
    assert not any(model in verdict for model in ("mmunlearner", "manu"))


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs chromium")
def test_no_sideways_scrolling_on_a_phone(study, tmp_path):
    frame = Path(tmp_path / "frame.html")
    page = (study / "report" / "index.html").as_uri()
    frame.write_text(
        f'<iframe id="f" width="390" height="800" src="{page}"></iframe>'
        "<script>onload = () => document.title = f.contentDocument.documentElement.scrollWidth</script>"
    )
    flags = "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking"
    flags += " --disable-component-update --disable-sync --allow-file-access-from-files"
    flags += f" --user-data-dir={tmp_path / 'profile'} --virtual-time-budget=5000 --dump-dom"
    process = subprocess.run(
        ["chromium", *flags.split(), frame.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    width = int(re.search(r"<title>(\d+)</title>", process.stdout)[1])
    assert 0 < width <= 390
