"""The page of a run, a label set or several runs holds what is stored, escapes every name and loads nothing."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.commands.report import report, report_comparison, report_labels
from schemas.toml_text import toml_text
from stages.report.blocks import Chart, Missing, Section, Table
from stages.report.charts import line_chart
from stages.report.facts import data_section
from stages.report.page import render
from stages.report.training import training_section
from tests.support.command_line import complaint, typed
from tests.support.world import silent

HOSTILE = "<script>alert('$x$')</script>"


@pytest.fixture(scope="module")
def page(whole, tmp_path_factory) -> Path:
    """The page of the undisturbed run."""
    out = tmp_path_factory.mktemp("report") / "report.html"
    report(whole, "", str(out), silent)
    return out


def test_a_runs_page_holds_facts_curves_figures_and_provenance(whole, page, tmp_path):
    text = page.read_text(encoding="utf-8")
    found = report(whole, "student", str(tmp_path / "again.html"), silent)
    assert (tmp_path / "again.html").read_bytes() == page.read_bytes()
    absent = {name for name, state in found["sections"].items() if state == "absent"}
    assert absent == {"disagreement", "tokens"} and "deit-pipeline evaluate --tokens" in text
    assert text.count('role="img"') == 6, "margins, loss, learning rate, agreement, throughput, waiting"
    manifest = Path(whole.workspace, "runs/student/manifest.json").read_text()
    assert all(sha256 in text for sha256 in re.findall(r'"sha256":"(\w{64})"', manifest)[:1])
    assert "torch" in text and "sum of softmaxes" in text and "61" in text


def test_a_page_loads_nothing_and_forbids_scripts(page):
    text = page.read_text(encoding="utf-8")
    assert "default-src 'none'" in text and "<script" not in text and "@import" not in text
    links = re.findall(r'(?:src|href)="([^"]*)"', text) + re.findall(r"url\(([^)]*)\)", text)
    assert links and [link for link in links if not link.startswith(("#", "data:"))] == []
    ids = re.findall(r'\bid="([^"]+)"', text)
    charts = [set(re.findall(r'\bid="([^"]+)"', svg)) for svg in re.findall(r"<svg.*?</svg>", text, re.DOTALL)]
    assert len(set().union(*charts)) == sum(map(len, charts)), "two charts share a name"
    assert {link[1:] for link in links if link.startswith("#")} <= set(ids)


def test_names_are_escaped_in_texts_tables_and_charts():
    chart = line_chart(HOSTILE, {HOSTILE: ([1, 2], [1.0, 2.0]), "猫": ([1, 2], [2.0, 1.0])}, y=HOSTILE)
    sections = [Section("a", HOSTILE, [Table((HOSTILE,), [(HOSTILE,)], HOSTILE), Missing(HOSTILE, HOSTILE), chart])]
    text = render(HOSTILE, HOSTILE, sections)
    assert "<script" not in text and text.count("&lt;script&gt;") >= 10
    assert "猫" in chart.svg and "$x$" in chart.svg
    assert "s3://bucket/x" in (shown := render("s3://key:secret@bucket/x", "\u202e", [])) and "secret" not in shown
    assert "\u202e" not in shown


def test_a_class_called_as_markup_is_escaped_in_a_label_sets_page(copied, tmp_path):
    from pipeline.commands import run as stages

    images, workspace = tmp_path / "odd", tmp_path / "odd-workspace"
    for split in ("train", "val"):
        shutil.copytree(Path(getattr(copied().source, split)), images / split)
        (images / split / "red").rename(images / split / "<script>alert(1)<b>")
    source = {"source": {"train": str(images / "train"), "val": str(images / "val")}}
    teacher = {"teacher": {"checkpoint": str(Path(copied().workspace, "runs/teacher/model.safetensors"))}}
    run = copied(source, teacher).model_copy(update={"workspace": str(workspace)})
    stages.shard(run, silent)
    stages.label(run, silent)
    out = tmp_path / "labels.html"
    found = report_labels(run, str(out), silent)
    text = out.read_text(encoding="utf-8")
    assert set(found["sections"].values()) == {"shown"}
    assert "<script" not in text and "&lt;script&gt;alert(1)&lt;b&gt;" in text


def test_what_is_not_stored_is_said_with_the_command_that_makes_it(copied, tmp_path):
    run = copied()
    for folder in ("labels/teacher", "shards/val", "predictions"):
        shutil.rmtree(Path(run.workspace, folder))
    for file in ("evaluation.json", "metrics.jsonl"):
        Path(run.workspace, "runs/student", file).unlink()
    out = tmp_path / "report.html"
    found = report(run, "", str(out), silent)
    absent = {name for name, state in found["sections"].items() if state == "absent"}
    assert absent == {"teacher", "training", "heads", "confusion", "disagreement", "tokens"}
    text = out.read_text(encoding="utf-8")
    for command in ("label-teacher", "evaluate --set train.name=student", "shard</code>"):
        assert f"deit-pipeline {command}" in text


def test_runs_side_by_side_show_what_differs_and_both_curves(whole, tmp_path):
    out = tmp_path / "report.html"
    report_comparison(whole, ["student", "teacher"], str(out), silent)
    text = out.read_text(encoding="utf-8")
    assert "train.epochs" in text and "train.batch_size" not in text
    assert "Provenance of teacher" in text and "Run teacher is not evaluated" in text


def test_skipped_images_are_counted_by_reason_and_named():
    skipped = tuple({"name": f"{number}.jpg", "reason": "is cut short"} for number in range(30))
    manifest: Any = SimpleNamespace(
        samples=5, classes=("a",), skipped=skipped, other_files=2, wanted=1, content="x", other=None
    )
    section = data_section({"train": manifest, "val": None}, "y")
    text = render("t", "a", [section])
    assert "the first 20 of 30" in text and "is cut short" in text and "19.jpg" in text and "20.jpg" not in text
    assert "another train split" in text and "The val split is not stored" in text


def test_accuracy_by_step_and_mfu_are_drawn_where_they_are_stored():
    lines = [{"step": 2, "loss": 1.0, "mfu": 0.4}, {"step": 2, "val_class_top1": 0.5, "val_ema_class_top1": 0.6}]
    section = training_section({"student": lines})
    titles = [block.title for block in section.blocks if isinstance(block, Chart)]
    assert titles == ["Loss", "Top-1 on the val split", "Model FLOPs utilisation"]
    assert not any(isinstance(block, Missing) for block in section.blocks)


def test_the_command_writes_the_page_and_refuses_what_it_cannot_do(whole, tmp_path):
    config = tmp_path / "deit.toml"
    config.write_text(toml_text(whole))
    out = str(tmp_path / "r.html")
    code, said, _ = typed("report", "teacher", "--out", out, "-c", str(config))
    assert (code, said) == (0, f"Run teacher → {out}\n")
    assert "no such run" in complaint(1, "report", "nobody", "--out", out, "-c", str(config))
    assert "named twice" in complaint(1, "report", "--compare", "teacher", "teacher", "-c", str(config))
    assert "cannot be written" in complaint(1, "report", "--out", f"{tmp_path}/no/r.html", "-c", str(config))
    for arguments in (["--labels", "teacher"], ["--compare", "teacher"], ["teacher", "student"]):
        assert typed("report", *arguments, "-c", str(config))[0] == 2


@pytest.fixture
def browser() -> Iterator[Any]:
    """Chromium without a window."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium, which the dev extra brings")
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not chromium or not driver:
        pytest.skip("needs Debian's packages chromium and chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    with webdriver.Chrome(options=options, service=webdriver.ChromeService(driver)) as chrome:
        yield chrome


def test_a_browser_shows_the_page_in_both_themes_and_on_a_phone_without_a_complaint(page, browser):
    colours = {}
    for theme in ("light", "dark"):
        for width in (360, 1200):
            media = {"features": [{"name": "prefers-color-scheme", "value": theme}]}
            browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
            size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500}
            browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
            browser.get(page.as_uri())
            assert browser.execute_script("return document.documentElement.scrollWidth") <= width
            broken = "return [...document.images].filter(one => !one.complete || !one.naturalWidth).length"
            assert browser.execute_script(broken) == 0
        style = "const of = (tag, key) => getComputedStyle(document.querySelector(tag))[key];"
        script = f"{style} return [of('body', 'backgroundColor'), of('figure svg path[style*=stroke]', 'stroke')]"
        colours[theme] = browser.execute_script(script)
    assert colours["light"][0] != colours["dark"][0] and colours["light"][1] != colours["dark"][1]
    assert browser.get_log("browser") == []
