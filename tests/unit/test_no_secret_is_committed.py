"""What is committed holds no key, no token and no password but those that are everybody's."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# A URL with a password that could be a drawn one; those of the lessons are short, and the masked ones are stars.
URL = re.compile(r"amqps?://[^\s:/@'\"]+:(?!password|PASSWORD)[A-Za-z0-9_%-]{12,}@")
TOKEN = re.compile(r"[?&]token=[0-9a-f]{16,}|\btoken_urlsafe\([^)]*\)\s*=\s*\S+")
KEY = re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----\s+[A-Za-z0-9+/=]{20,}")


def outputs(path):
    """Yield the stored texts of a notebook."""
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        for output in cell.get("outputs", ()):
            yield json.dumps(output)


def test_no_stored_output_of_a_notebook_shows_a_url_a_token_or_a_key():
    notebooks = sorted((ROOT / "notebooks").glob("*.ipynb"))
    assert len(notebooks) > 5
    found = [
        (path.name, kind.pattern[:20])
        for path in notebooks
        for text in outputs(path)
        for kind in (URL, TOKEN, KEY)
        if kind.search(text)
    ]
    assert found == []


def test_what_it_looks_for_would_be_found():
    assert URL.search("amqp://lab:Xk3_9dPq-aB7hQ2z@localhost:5672/")
    assert not URL.search("amqp://lab:***@localhost:5672/")
    assert TOKEN.search("/lab/tree/README.md?token=0123456789abcdef0123456789abcdef")
    assert KEY.search("-----BEGIN EC PRIVATE KEY-----\nMHcCAQEEIIhVqmqpLkcTn9YL\n")


@pytest.mark.skipif(shutil.which("git") is None or not (ROOT / ".git").exists(), reason="no repository here")
def test_no_committed_file_holds_a_key_and_the_bench_is_ignored():
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True, timeout=30)
    files = [ROOT / name for name in listed.stdout.split("\0") if name]
    assert len(files) > 100
    here = Path(__file__).name
    holding = [
        path.name
        for path in files
        if path.is_file() and path.name != here and KEY.search(path.read_text(encoding="utf-8", errors="replace"))
    ]
    assert holding == []
    assert not [path.name for path in files if path.suffix in (".key", ".pem")]
    for inside in (".lab/broker.json", ".lab/certificates/ca.key", "work/00.ipynb"):
        ignored = subprocess.run(["git", "check-ignore", "-q", inside], cwd=ROOT, check=False, timeout=30)
        assert ignored.returncode == 0, inside
