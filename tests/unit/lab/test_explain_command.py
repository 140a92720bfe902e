"""`labkit explain`: what it reads, prints and returns."""

import io
import json
import sys
from pathlib import Path

import pytest

from labkit.cli import main

TEXT = b"Cannot connect to amqp://user:s3cr3t@127.0.0.1:5672//: [Errno 111] Connection refused.\n"


class Input(io.TextIOWrapper):
    """Standard input, from a pipe or typed."""

    def __init__(self, given: bytes, *, typed: bool) -> None:
        super().__init__(io.BytesIO(given))
        self._typed = typed

    def isatty(self) -> bool:
        return self._typed


@pytest.fixture
def explain(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Run the command with these words and this input; return its exit code, its answer and what it says besides."""

    def run(*words: str, given: bytes = b"", typed: bool = False) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["labkit", "explain", *words])
        monkeypatch.setattr(sys, "stdin", Input(given, typed=typed))
        with pytest.raises(SystemExit) as ended:
            main()
        told = capsys.readouterr()
        return int(ended.value.code or 0), told.out, told.err

    return run


def test_standard_input_and_a_file_are_read_alike(explain, tmp_path: Path) -> None:
    file = tmp_path / "app.log"
    file.write_bytes(TEXT)
    code, answer, _ = explain(given=TEXT)
    assert code == 0
    assert answer.startswith("connection-refused: nothing listens on that port\n")
    assert "closed by: nobody" in answer
    assert "what to do: " in answer
    assert "practise it: notebook 07" in answer
    assert "s3cr3t" not in answer
    assert explain(str(file)) == (code, answer, "")


def test_json_says_the_same_for_programs(explain) -> None:
    code, answer, _ = explain("--json", given=TEXT)
    told = json.loads(answer)
    assert (code, told["known"]) == (0, True)
    (finding,) = told["findings"]
    assert (finding["diagnosis"], finding["closed_by"], finding["line"]) == ("connection-refused", "nobody", 1)
    assert "s3cr3t" not in answer


@pytest.mark.parametrize(
    "given", [b"", b"KeyError: 'x'", b"\x7fELF\0\0connection refused", bytes(range(128, 256)) * 99]
)
def test_what_is_not_known_has_an_exit_code_of_its_own(explain, given: bytes) -> None:
    assert explain(given=given)[:2] == (1, "not known: nothing here that labkit recognises; it does not guess\n")
    assert json.loads(explain("--json", given=given)[1]) == {"known": False, "findings": []}


def test_a_log_that_powershell_wrote_is_read(explain) -> None:
    assert explain(given=TEXT.decode().encode("utf-16"))[0] == 0


def test_a_file_that_cannot_be_read_is_bad_input(explain, tmp_path: Path) -> None:
    for path in (tmp_path / "missing", tmp_path):
        code, answer, said = explain(str(path))
        assert (code, answer) == (2, "")
        assert said.startswith("labkit: ")
        assert said.count("\n") == 1


def test_who_types_is_told_how_to_end(explain) -> None:
    code, _, said = explain(given=TEXT, typed=True)
    assert code == 0
    assert "Ctrl-D" in said


def test_of_a_long_input_the_beginning_is_read_and_that_is_said(explain) -> None:
    code, _, said = explain(given=TEXT + b"x" * 1_000_000)
    assert code == 0
    assert "only the first 300,000 bytes are read" in said
