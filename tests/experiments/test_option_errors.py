"""Wrong values on the command line: messages say what is expected and how to type it."""

import dataclasses
from typing import Literal

import pytest

from experiments.__main__ import main
from experiments.option_errors import explain, refuse_empty


@dataclasses.dataclass
class Inner:
    kind: Literal["batch", "layer"] = "batch"
    share: float | None = None


@dataclasses.dataclass
class Options:
    kinds: tuple[Literal["batch", "layer"], ...] = ("batch",)
    sizes: tuple[int, ...] = (8,)
    strength: tuple[float, float] = (0.4, 0.1)
    drop: bool | None = None
    flag: bool = False
    seeds: int = 1
    name: str = ""
    inner: Inner = dataclasses.field(default_factory=Inner)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (
            ["--kind", "bacth"],
            "Expected --kind to be batch or layer, got 'bacth'. Did you mean batch?",
        ),
        (["--kind=x"], "Expected --kind to be batch or layer, got 'x'."),
        (["--kinds", "batch", "x"], "Expected --kinds to be batch or layer, got 'x'."),
        (["--share", "half"], "Expected --share to be a number, got 'half'."),
        (["--seeds", "1.5"], "Expected --seeds to be a whole number, got '1.5'."),
        (["--seeds", "1", "x", "--kind", "y"], "Expected --kind to be batch or layer, got 'y'."),
        (["--drop", "yes"], "Expected --drop to be True or False, got 'yes'."),
        (["--name", "x", "--sizes", "8", "-1"], ""),
        (["--seeds", "--name", "x"], "Expected --seeds with a whole number, got none."),
        (["--kind"], "Expected --kind with batch or layer, got none."),
        (["--name", "x", "--share"], "Expected --share with a number, got none."),
        (["--name"], "Expected --name with a value, got none."),
        (["--drop"], "Expected --drop with True or False, got none."),
        (["--strength", "0.4"], "Expected --strength with 2 values, got 1."),
        (["--flag", "--sizes"], ""),
    ],
)
def test_a_wrong_value_is_told_with_what_is_expected(words, line):
    assert explain(words, Options) == line


@pytest.mark.parametrize(
    ("words", "typed"),
    [
        (["--sizes", "8 16"], "--sizes 8 16"),
        (["--sizes", "8,16"], "--sizes 8 16"),
        (["--sizes=[8, 16]"], "--sizes 8 16"),
        (["--kinds", "batch layer"], "--kinds batch layer"),
        (["--kinds", "batch;$x"], "--kinds batch '$x'"),
    ],
)
def test_several_values_in_one_word_are_told_with_how_to_type_them(words, typed):
    line = explain(words, Options)
    assert line.startswith(f"Expected each value of {typed.split()[0]} as a separate word, got ")
    assert line.endswith(f"Type: {typed}")


@pytest.mark.parametrize("words", [["--runs", ""], ["--runs="], ["--seeds", "1", "--runs", "", ""]])
def test_an_empty_value_is_refused(words):
    """An empty path would otherwise mean the current folder."""
    with pytest.raises(ValueError, match="Expected --runs with a value, got an empty one"):
        refuse_empty(words)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["gradients", "--resume", ""], "Type --resume alone to resume the newest run"),
        (["gradients", "--resume="], "Type --resume alone to resume the newest run"),
        (["all", "--resume", ""], "Type --resume alone to resume the newest run"),
        (["gradients", "--runs", ""], "Expected --runs with a value, got an empty one."),
        (["gradients", "--data-dir="], "Expected --data-dir with a value, got an empty one."),
        (["report", "--to", ""], "Expected --to with a value, got an empty one."),
        (["report", "--runs", ""], "Expected --runs with a value, got an empty one."),
        (["compare", "--batch-sizes", "8 16"], "got '8 16'. Type: --batch-sizes 8 16"),
        (["compare", "--norms", "bach"], "group, instance or weight, got 'bach'. Did you mean bat"),
        (["all", "--only", "titanic batches"], "Type: --only titanic batches"),
        (["gradients", "--seeds"], "with a whole number, got none. Type one, or leave it out."),
        (["imagenet", "--prepare"], "got none. Type: python -m experiments imagenet --prepare SH"),
        (["imagenet", "--prepare", "x"], "Expected --data-dir as well, got none. Type: python"),
    ],
)
def test_commands_tell_it_in_one_line(words, message, capsys):
    assert main(words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
