"""The registry's errors, and settings that can be read without running a method's file."""

from __future__ import annotations

import sys

import pytest

import efface
from efface.errors import EffaceError
from efface.settings import check, declared, in_words
from efface.unlearning import METHODS
from efface.unlearning.method import _Registry

GOOD = 'from efface.unlearning.method import Method\n\nMETHOD = Method(name="{name}", paper="arXiv:1")\n'


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package of methods of its own, with one good method."""
    folder = tmp_path / "made_methods"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "one.py").write_text(GOOD.format(name="one"))
    monkeypatch.syspath_prepend(tmp_path)
    import made_methods

    yield folder, _Registry(made_methods)
    for name in [name for name in sys.modules if name.startswith("made_methods")]:
        del sys.modules[name]


def test_unknown_method_lists_the_known_ones():
    known = (
        "grad_diff, gradient_ascent, idk_dpo, kl_min, mmunlearner, npo, rmu, simnpo, system_prompt, undial"
    )
    with pytest.raises(EffaceError, match=f"unknown unlearning method 'gd'; known methods: {known}"):
        METHODS["gd"]


def test_registry_holds_each_file_under_its_own_name():
    assert len(METHODS) == 10
    for name in METHODS:
        assert METHODS[name].name == name and METHODS[name].paper.startswith("arXiv:")


def test_a_new_file_is_a_new_method(package):
    folder, registry = package
    (folder / "two.py").write_text(GOOD.format(name="two"))
    assert list(registry) == ["one", "two"] and registry["two"].name == "two"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (GOOD.format(name="one"), "two.py defines method 'one', a name that is taken: .*: one, two"),
        (GOOD.format(name="three"), "two.py defines method 'three': a method has the name of its file"),
        ("", "two.py defines no METHOD; see the other methods: one, two"),
        (
            GOOD.format(name="two").replace('"arXiv:1"', '"arXiv:1", settings={"beta": {"type": "number"}}'),
            "two.py: the settings of METHOD must be the file's SETTINGS",
        ),
    ],
)
def test_a_bad_file_is_an_error_that_lists_the_known_methods(package, text, message):
    folder, registry = package
    (folder / "two.py").write_text(text)
    with pytest.raises(EffaceError, match=message):
        registry["two"]


def test_settings_are_read_from_the_text_of_a_file(tmp_path):
    file = tmp_path / "m.py"
    file.write_text("import no_such_module\nSETTINGS = {'beta': {'type': 'number'}}\n")
    assert declared(file, "SETTINGS") == {"beta": {"type": "number"}} and declared(file, "TRAINS") is None
    file.write_text("SETTINGS = dict(beta=1)\n")
    with pytest.raises(ValueError, match="m.py: SETTINGS must be a literal"):
        declared(file, "SETTINGS")


def test_what_is_declared_is_what_the_methods_have():
    from pathlib import Path

    for name in METHODS:
        file = Path(efface.__file__).parent / "unlearning" / "methods" / f"{name}.py"
        assert (declared(file, "SETTINGS") or {}) == METHODS[name].settings
        assert (declared(file, "TRAINS") is False) is (METHODS[name].edit is not None)


@pytest.mark.parametrize(
    ("value", "schema", "message"),
    [
        (0, {"type": "number", "exclusiveMinimum": 0}, "is 0: expected a number above 0"),
        ("1", {"type": "number"}, "is '1': expected a number"),
        (float("nan"), {"type": "number"}, "is nan: expected a number"),
        (True, {"type": "integer", "minimum": 0}, "is True: expected an integer at least 0"),
        (1.5, {"type": "integer"}, "is 1.5: expected an integer"),
        (2, {"type": "number", "exclusiveMaximum": 2}, "is 2: expected a number below 2"),
        (3, {"type": "number", "maximum": 2}, "is 3: expected a number at most 2"),
        ("c", {"enum": ["a", "b"]}, "is 'c': expected one of: a, b"),
        ("", {"type": "string", "minLength": 1}, "is '': expected a text"),
    ],
)
def test_a_setting_out_of_range_is_told_with_its_range(value, schema, message):
    with pytest.raises(ValueError, match=f"settings.x {message}"):
        check({"x": value}, {"x": schema})


def test_settings_in_range_pass():
    schema = {"a": {"type": "number", "exclusiveMinimum": 0, "maximum": 1}, "b": {"enum": ["x"]}}
    check({"a": 1, "b": "x"}, schema)
    assert in_words(schema["a"]) == "a number above 0 and at most 1"
