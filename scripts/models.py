"""The tables of docs/reference/models.md: what each family passes, and how far each registered type gets.

python -m scripts.models families     runs the tests of every family
python -m scripts.models types        builds a tiny model of every type that transformers registers for
                                      pictures and text, with random weights, and works with it
"""

from __future__ import annotations

import concurrent.futures
import multiprocessing
import re
import resource
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

import efface  # noqa: F401  # declares torchvision's operators before transformers looks for them

PAGE = Path(__file__).resolve().parents[1] / "docs" / "reference" / "models.md"
STEPS = ("load", "anatomy", "encode", "score", "train", "prune")
_SECONDS = 60  # of a processor that one step of one type may take
_BYTES = 8 << 30  # of address space that one type may take
# Imported once for all types: most of a tiny model's time goes into imports.
_PRELOADED = [
    "efface.neurons",
    "efface.unlearning.unlearn",
    "tests.models.generic",
    "transformers.models.llava.modeling_llava",
]

app = typer.Typer(add_completion=False)


class Outcomes:
    """A pytest plugin that collects the outcome of each family in each column."""

    def __init__(self) -> None:
        self.cells: dict[tuple[str, str], set[str]] = {}
        self.columns: list[str] = []
        self._of: dict[str, tuple[str, str]] = {}

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        """Read the column and family of each test."""
        for item in items:
            column = item.get_closest_marker("column")
            if column is not None:
                self._of[item.nodeid] = (item.callspec.params["family"], column.args[0])
                self.columns += [] if column.args[0] in self.columns else [column.args[0]]

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Keep an outcome; of a skipped test, the reason."""
        if report.nodeid not in self._of:
            return
        outcome = {"passed": "passed", "failed": "**failed**"}.get(report.outcome)
        if report.skipped:
            outcome = str(report.longrepr[2]).removeprefix("Skipped: ")
        if report.when == "call" or not report.passed:
            self.cells.setdefault(self._of[report.nodeid], set()).add(outcome or report.outcome)


@app.command()
def families() -> None:
    """Run the tests of every family and write the table: one row per family, with what it does not pass."""
    import pytest

    from tests.models import FAMILIES

    outcomes = Outcomes()
    code = pytest.main(["-q", "-p", "no:cacheprovider", "tests/efface/families/test_matrix.py"], [outcomes])
    lines = [f"Columns: {'; '.join(outcomes.columns)}.", "", "| family | passes all but |", "|---|---|"]
    for name, family in FAMILIES.items():
        remaining = [
            f"{column}: {', '.join(sorted(cells))}"
            for column in outcomes.columns
            if (cells := outcomes.cells.get((name, column), {"not run"})) != {"passed"}
        ]
        star = "\\*" if family.needs else ""
        lines.append(f"| {family.title}{star} (`{name}`) | {'; '.join(remaining) or '–'} |")
    write_part(
        "table", "\n".join(lines) + "\n\n\\* has a video processor: needs torchvision (see Packages).\n"
    )
    raise SystemExit(int(code))


@app.command()
def types(
    only: Annotated[list[str] | None, typer.Option(help="Types to try, instead of all.")] = None,
    minutes: Annotated[float, typer.Option(help="Types that it does not come to are left out.")] = 60,
) -> None:
    """Try every type, each in a process of its own, and write the counts and what stopped each type."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

    rows: dict[str, list[str]] = {}
    started = time.monotonic()
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    for kind in only or sorted(MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES):
        if time.monotonic() - started > 60 * minutes:
            break
        with concurrent.futures.ProcessPoolExecutor(1, context) as pool:
            try:
                rows[kind] = pool.submit(_try, kind).result()
            except concurrent.futures.process.BrokenProcessPool:
                rows[kind] = [f"load: more than {_BYTES >> 30} GiB of memory"]
        typer.echo(f"{kind}: {'; '.join(rows[kind])}")
    write_types(rows, write=only is None)


def write_types(rows: dict[str, list[str]], *, write: bool = True) -> None:
    """Print how many types pass each step, and write which types do not pass which, and why."""
    counts = {step: sum(step in reports for reports in rows.values()) for step in STEPS}
    complete = [kind for kind, reports in rows.items() if all(step in reports for step in STEPS)]
    lines = [f"Of {len(rows)} types: " + ", ".join(f"{step} {count}" for step, count in counts.items()) + "."]
    lines += ["", f"All steps: {', '.join(f'`{kind}`' for kind in complete)}."]
    lines += ["", "| stops at | types | why |", "|---|---|---|"]
    stops: dict[tuple[str, str], list[str]] = {}
    for kind, reports in rows.items():
        for report in (report for report in reports if report not in STEPS):
            step, _, reason = report.split(": ", 2)
            reason = _shared_reason(reason, kind).replace("|", "\\|")
            stops.setdefault((step, reason), []).append(f"`{kind}`")
    for (step, reason), kinds in sorted(stops.items(), key=lambda item: STEPS.index(item[0][0])):
        lines.append(f"| {step} | {', '.join(kinds)} | {reason} |")
    typer.echo(lines[0])
    if write:
        write_part("types", "\n".join(lines) + "\n")


def _shared_reason(reason: str, kind: str) -> str:
    """A reason without the way out and what only one type has, so that types share it."""
    reason = reason.partition("; ")[0].removeprefix(f"{kind} is a {kind!r} model").removeprefix(", which")
    return re.sub(rf"^{kind} is a \w+, which| \('\w+'\)| of \w+(?=, got)", "", reason).strip()


def _try(kind: str) -> list[str]:
    """The steps that a type passes, and the reasons where it stops."""
    signal.signal(signal.SIGPROF, _stop)
    resource.setrlimit(resource.RLIMIT_AS, (_BYTES, _BYTES))
    reports = list[str]()
    for step, work in _steps(kind):
        if step == "prune" and "anatomy" not in reports:
            break
        signal.setitimer(signal.ITIMER_PROF, _SECONDS)
        try:
            work()
        except Exception as error:  # noqa: BLE001  # whatever a family raises is the result
            reason = " ".join((str(error) or "no message").split())
            reason = reason if len(reason) < 240 else f"{reason[:240]} ..."
            reports.append(f"{step}: {type(error).__name__}: {reason}")
            if step in ("load", "encode"):
                break
        else:
            reports.append(step)
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
    return reports


def _stop(*_: object) -> None:
    raise TimeoutError(f"more than {_SECONDS} s")


def _steps(kind: str) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Steps by name; those that follow a failed one need what it made and are tried as far as they can be."""
    import io

    import torch
    from PIL import Image
    from transformers import CONFIG_MAPPING, AutoModelForImageTextToText

    from efface.data.samples import Sample
    from efface.encoding import Encoder
    from efface.encoding.answers import nll
    from efface.models import Source, anatomy
    from efface.models.loading import auto_class
    from efface.neurons import zero_neurons
    from tests.models import FAMILIES, build_tiny
    from tests.models.generic import WITHOUT_RULE, fit_processor, tiny_config, tiny_model, tiny_processor

    state: dict[str, Any] = {}

    def load() -> None:
        architectures = WITHOUT_RULE.get(kind, {}).get("architectures")
        auto_class(
            Source(kind), CONFIG_MAPPING[kind](architectures=architectures)
        )  # what Efface itself refuses
        if kind in FAMILIES:
            state["model"], state["processor"] = build_tiny(kind)
            return
        try:
            config = tiny_config(kind)
            try:
                state["processor"] = tiny_processor(config)
            except Exception as error:  # noqa: BLE001  # reported by the step that needs it
                state["no_processor"] = error
            state["model"] = tiny_model(config)
        except Exception as error:  # noqa: BLE001  # tiny sizes do not fit: parts alone, from the default ones
            state.pop("processor", None)
            state["no_processor"] = error
            try:
                with torch.device("meta"):
                    state["model"] = AutoModelForImageTextToText.from_config(CONFIG_MAPPING[kind]())
            except Exception:  # noqa: BLE001  # nor do the default sizes fit
                raise error from None
            return
        if "processor" in state:
            fit_processor(state["model"], state["processor"])

    def find_parts() -> None:
        state["parts"] = anatomy(state["model"])

    def encode() -> None:
        if "processor" not in state:
            raise state["no_processor"]
        rows = []
        for i in range(2):
            buffer = io.BytesIO()
            Image.new("RGB", (64, 64), (90 * i, 200, 30)).save(buffer, format="PNG")
            row = {
                "sample_id": str(i),
                "entity_id": f"fictitious/{i}",
                "split": "forget",
                "part": "train",
                "modality": "multimodal",
                "task": "qa",
                "image": buffer.getvalue(),
                "question": "Which colour does this person like?",
                "answer": "red and green",
            }
            rows.append(Sample.from_row(row))
        state["samples"] = rows
        state["batch"] = Encoder(state["processor"], rows).batch([0])

    def score() -> None:
        with torch.no_grad():
            value = nll(state["model"], state["batch"])
        if not torch.isfinite(value):
            raise ValueError("the likelihood is not finite")

    def train() -> None:
        from efface.unlearning import METHODS, TrainingConfig
        from efface.unlearning.unlearn import unlearn

        unlearn(
            state["model"],
            state["processor"],
            method="npo",
            forget=state["samples"],
            retain=state["samples"],
            settings=METHODS["npo"].settings(epochs=1, learning_rate=1e-3),
            config=TrainingConfig(batch_size=2),
        )

    def prune() -> None:
        mlps = state["parts"].require_mlps()
        with torch.no_grad():
            before = nll(state["model"], state["batch"])
            zero_neurons(state["model"], {mlp.name: torch.arange(mlp.width) for mlp in mlps})
            if nll(state["model"], state["batch"]) == before:
                raise ValueError("switching all neurons off changes nothing")

    works = (load, find_parts, encode, score, train, prune)
    yield from zip(STEPS, works, strict=True)


def write_part(name: str, text: str) -> None:
    """Replace the generated part of that name in docs/reference/models.md."""
    begin, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->\n"
    before, rest = PAGE.read_text(encoding="utf-8").split(begin)
    PAGE.write_text(f"{before}{begin}{text}{end}{rest.split(end)[1]}", encoding="utf-8")


if __name__ == "__main__":
    app()
