"""Pages elsewhere that are named: the addresses have the right form, and docs/links.md lists each. No network."""

import re
from datetime import UTC, date, datetime
from pathlib import Path
from urllib.parse import urlsplit

from labkit.audit import RULES, running
from labkit.lab.notebook_file import notebooks, read

ROOT = Path(__file__).parents[2]
LIST = ROOT / "docs" / "links.md"
PAGES = [
    *(ROOT / name for name in ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md")),
    *sorted(ROOT.glob("docs/*.md")),
    *sorted(ROOT.glob("notebooks/instructor/*.md")),
]
ADDRESS = re.compile(r"https?://[^\s<>\"'`|)\]]+")
ROW = re.compile(r"^\| <(\S+)> \| (.+) \| (\d{4}-\d{2}-\d{2}) \|$", re.MULTILINE)
ALSO_READ = {"https://github.com/rabbitmq/rabbitmq-tutorials/blob/main/python"}  # for whoever wants more


def listed():
    return {address: date.fromisoformat(day) for address, _, day in ROW.findall(LIST.read_text(encoding="utf-8"))}


def named():
    """Yield each address in prose or in a rule, and where it stands."""
    assert running.look  # which has the rules about brokers
    texts = {str(page.relative_to(ROOT)): page.read_text(encoding="utf-8") for page in PAGES if page != LIST}
    for path in notebooks(ROOT):
        cells = [cell.source for cell in read(path).cells if cell.cell_type == "markdown"]
        texts[path.name] = "\n".join(cells)
    texts |= {f"rule {each.name}": each.reference for each in RULES.values()}
    for where, text in texts.items():
        for address in ADDRESS.findall(text):
            if urlsplit(address).hostname != "host":  # "http://host:15672" stands for any
                yield where, address.rstrip(".,;:")


def test_the_list_has_every_page_that_is_named_and_no_other():
    found = {address.partition("#")[0] for _, address in named()}
    assert len(found) > 20
    assert sorted(found - set(listed())) == []
    assert sorted(set(listed()) - found - ALSO_READ) == []


def test_every_address_has_the_form_of_one():
    wrong = []
    for where, address in [*named(), *((LIST.name, each) for each in listed())]:
        parts = urlsplit(address)
        is_plain = parts.scheme == "https" and not parts.query and parts.username is None and parts.port is None
        host_is_named = re.fullmatch(r"([a-z0-9-]+\.)+[a-z]{2,}", parts.netloc)
        path_is_clean = re.fullmatch(r"[\w./-]*", parts.path) and "//" not in parts.path
        if not (is_plain and host_is_named and path_is_clean and re.fullmatch(r"[\w-]*", parts.fragment)):
            wrong.append((where, address))
    assert wrong == []


def test_each_row_has_the_day_on_which_the_page_was_read():
    text = LIST.read_text(encoding="utf-8")
    rows = [line for line in text.splitlines() if line.startswith("| <")]
    assert len(rows) == len(listed()) > 20
    assert all(date(2026, 1, 1) <= day <= datetime.now(UTC).date() for day in listed().values())
