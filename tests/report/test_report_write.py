"""The two files: complete where facts are, silent where they are not, never a script, a path or an address."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from w4afp8 import report
from w4afp8.errors import CheckpointError
from w4afp8.families import LAYOUT_METHOD
from w4afp8.validate.findings import ValidationReport

SECTIONS = {
    "quality", "layers", "experts", "tokens", "activations", "histograms", "folds", "roles", "checks", "time",
    "reproduce",
}  # fmt: skip
VOID = {"meta", "link", "br", "wbr", "path"}


class Page(HTMLParser):
    """Sections, drawings and whether every element is closed where it should be."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.sections: set[str] = set()
        self.drawings = self.marks = 0
        self.text = ""
        self.feed(text)
        assert not self.open, self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        if tag == "section":
            self.sections.add(str(found["id"]))
        self.drawings += tag == "svg"
        if tag == "path":
            self.marks += 1
            assert re.fullmatch(r"[MLHVhz\d. ]+", str(found["d"])), found["d"]
        assert not any(name.startswith("on") for name in found)
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture
def full(directory: Path, validation: ValidationReport, evaluation: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    paths = report.write(directory, validation=validation, evaluation=evaluation)
    return paths.html.read_text(), json.loads(paths.json.read_text())


def test_every_section_has_its_figures(full: tuple[str, dict[str, Any]]) -> None:
    page = Page(full[0])
    assert page.sections == SECTIONS
    assert page.drawings == 1 + 2 + 1 + 2 + 2 + 1, "layers, before and after, tokens, two ranges, two histograms, time"
    assert page.marks > 2 * page.drawings


def test_the_page_fetches_nothing_and_names_no_path(full: tuple[str, dict[str, Any]], directory: Path) -> None:
    html, content = full
    assert not re.search(r"https?:|//[a-z]|<script|@import|url\(|<img", html)
    for text in (html, json.dumps(content)):
        assert str(directory.parent) not in text


def test_light_and_dark_and_narrow_are_provided(full: tuple[str, dict[str, Any]]) -> None:
    html = full[0]
    assert "prefers-color-scheme: dark" in html and 'name="viewport"' in html and "max-width: 560px" in html
    light, dark = (set(re.findall(r"(--[a-z0-9-]+): #", part)) for part in html.split("prefers-color-scheme: dark")[:2])
    assert light == dark, "every colour has its dark twin"


def test_the_summary_says_what_the_facts_say(full: tuple[str, dict[str, Any]]) -> None:
    html, content = full
    tiles = {tile["title"]: (tile["value"], tile["note"]) for tile in content["summary"]}
    assert tiles["Size"] == ("1.5 MB", "from 2.5 MB, 60 % of it")
    assert tiles["Bits per weight"][0] == "4.25"
    assert tiles["KL divergence"] == ("0.0127", "± 5e-4 nats a token")
    assert tiles["Perplexity"] == ("20.91", "source 20.76, +0.15")
    assert tiles["Error that is left"][0] == "25 %"
    assert tiles["Fewest tokens"] == ("100", "expert 0 of layer 1, median 102")
    assert tiles["Multi-token prediction"] == ("kept, 4 bits", "1 layer")
    assert content["verdict"]["word"] == "Proven"
    assert all(value in html for value, _ in tiles.values())


def test_the_report_begins_with_sentences_for_who_reads_no_further(
    full: tuple[str, dict[str, Any]], directory: Path, record: dict[str, Any]
) -> None:
    html, content = full
    assert content["brief"] == [
        "1.5 MB instead of the source's 2.5 MB (60 %).",
        "On held-out text its perplexity is 20.91 beside the source's 20.76 (+0.7 %), and its first choice is the "
        "source's for 93.2 % of the tokens.",
        "Every expert saw calibration text, 100 tokens at least.",
    ]
    assert "20.91 beside" in html.split('<dl class="tiles"')[0]
    assert "1 min 10 s for 2 layers: 35.2 s each in the median, layer 1 took longest with 1 min 2 s." in html
    record["layers"][0]["tokens_per_expert"][2] = 0
    (directory / "w4afp8/record.json").write_text(json.dumps(record))
    bare = json.loads(report.write(directory).json.read_text())["brief"]
    assert bare[1:] == ["Its quality beside the source was not measured.", "1 expert of 8 saw no calibration text."]


def test_the_machine_report_keeps_the_numbers_not_the_digests(full: tuple[str, dict[str, Any]]) -> None:
    content = full[1]
    assert "digests" not in content["record"] and len(content["record"]["layers"]) == 2
    assert content["validation"]["layers"][0]["experts"][3]["output_error"] == 0.02
    assert "per_sequence" not in content["evaluations"][0]


def test_a_failed_validation_is_named_in_full(directory: Path, validation: ValidationReport) -> None:
    for i in range(60):
        validation.checks[0].blame(f"model.layers.{i}.x", "nothing", "a <tensor>", "make it again")
    html = report.write(directory, validation=validation).html.read_text()
    assert "Do not use" in html and "60 problems in index" in html
    assert "model.layers.9.x" in html and "and 50 more" in html
    assert "a &lt;tensor&gt;" in html and "a <tensor>" not in html


def test_nothing_but_a_folder_still_makes_a_page(tmp_path: Path) -> None:
    folder = tmp_path / "bare & <odd>"
    folder.mkdir()
    paths = report.write(folder)
    page = Page(paths.html.read_text())
    assert page.sections == {"reproduce"} and page.drawings == 0
    assert "Not validated" in page.text and "bare & <odd>" in page.text and "not evaluated" in page.text


def test_a_sparse_record_is_no_crash(directory: Path, record: dict[str, Any]) -> None:
    sparse = {"layers": [{"layer": 1}, {"layer": 2, "experts": [{"expert": 0}], "error": {"rtn": 0.0, "chosen": 0.0}}]}
    (directory / "w4afp8/record.json").write_text(json.dumps(sparse))
    Page(report.write(directory).html.read_text())


def test_without_a_record_the_validation_draws_the_experts(directory: Path, validation: ValidationReport) -> None:
    (directory / "w4afp8/record.json").unlink()
    page = Page(report.write(directory, validation=validation).html.read_text())
    assert {"experts", "activations", "histograms"} <= page.sections


def test_what_was_saved_is_used_again(
    directory: Path, validation: ValidationReport, evaluation: dict[str, Any]
) -> None:
    report.write(directory, validation=validation)
    (directory / "w4afp8/evaluation.json").write_text(json.dumps([evaluation, {**evaluation, "activations": "static"}]))
    content = json.loads(report.write(directory).json.read_text())
    assert content["validation"]["directory"] == "tiny-W4AFP8"
    assert [item["activations"] for item in content["evaluations"]] == ["token", "static"]


def test_the_same_facts_give_the_same_bytes(directory: Path, validation: ValidationReport) -> None:
    first = [path.read_bytes() for path in report.write(directory, validation=validation)]
    assert first == [path.read_bytes() for path in report.write(directory, validation=validation)]


def test_a_broken_record_is_an_error(directory: Path) -> None:
    (directory / "w4afp8/record.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"record\.json"):
        report.write(directory)


def test_the_command_that_makes_it_again_is_quoted(directory: Path, validation: ValidationReport) -> None:
    validation.against = "my model"
    content = json.loads(report.write(directory, validation=validation).json.read_text())
    assert content["reproduce"] == "w4afp8 quantize --model 'my model' --recipe w4afp8/recipe.yaml -o tiny-W4AFP8"


def test_a_layout_that_does_not_say_which_is_an_error(directory: Path) -> None:
    (directory / "config.json").write_text(json.dumps({"quantization_config": {"quant_method": LAYOUT_METHOD}}))
    with pytest.raises(
        CheckpointError, match=r"config\.json: quantization_config lacks layout, layout_version, read_by"
    ):
        report.write(directory)
