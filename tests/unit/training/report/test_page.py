from html.parser import HTMLParser

import pytest

from recurra.storage.url import open_store
from recurra.training.report.log import read_log
from recurra.training.report.page import render
from recurra.training.report.samples import sample_html
from recurra.training.work import train_here

SAMPLES = [
    {"text": "abcd", "guesses": "abxd", "bits_per_token": 1.5},
    {"label": "good", "guess": "bad", "score": 0.75, "text": "<script>alert(1)</script>"},
    {"actual": [1.0, 2.0], "levels": [0.1, 0.5, 0.9], "quantiles": [[0.5, 1, 2], [1, 2, 4]]},
    {"bits": [[1, 0], [0, 1]], "answer": [[1, 0], [1, 1]]},
]


class Links(HTMLParser):
    """Everything that a browser would fetch."""

    def __init__(self):
        super().__init__()
        self.found = []
        self.tags = []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.found += [value for name, value in attrs if name in ("src", "href", "xlink:href") and value]


@pytest.fixture
def report(make_run):
    run = make_run(train={"steps": 12, "evaluate_every": 4, "checkpoint_every": {"steps": 5}})
    train_here(run)
    return run.open_store().read("report.html").decode()


def test_the_report_of_a_real_run_is_one_page_that_needs_nothing_else(report):
    """It is opened from a bucket, from a mail, years later."""
    links = Links()
    links.feed(report)

    assert links.found == []
    assert not {"script", "link", "img", "iframe"} & set(links.tags)
    assert "url(" not in report and "@import" not in report
    assert links.tags.count("svg") >= 8


@pytest.mark.parametrize(
    "words",
    [
        "Loss",
        "bits per token",
        "Learning rate",
        "Gradient norm",
        "Throughput",
        "waiting for data",
        "padding",
        "1 worker",
        "until a checkpoint is durable",
        "training stands still for one",
        "checkpoint 0 s of step 5: durable after",
    ],
)
def test_the_report_shows_what_one_looks_for(report, words):
    """Curves, waste, time line."""
    assert words in report


def test_a_run_that_left_nothing_yet_has_a_page(tmp_path):
    """`recurra runs` may look at a run in its first second."""
    page = render(read_log(open_store(f"file://{tmp_path}")))

    assert "not finished" in page and "No events yet" in page


@pytest.mark.parametrize("sample", SAMPLES, ids=["text", "table", "forecast", "bits"])
def test_samples_of_every_task_are_shown_and_escaped(sample):
    """Text comes from data that anybody may have written."""
    html = sample_html(sample)

    assert "<script>" not in html and len(html) > 50


def test_wrong_guesses_are_marked():
    """One sees at a glance where the model fails."""
    assert sample_html(SAMPLES[0]).count('class="miss"') == 1
    assert "missed" in sample_html(SAMPLES[1])
    assert sample_html(SAMPLES[3]).count("bit wrong") == 1


def test_a_restart_is_drawn_and_explained(make_run):
    """Losses behind it were made by another attempt; without one nothing is said of it."""
    train_here(make_run(train={"steps": 4, "checkpoint_every": {"steps": 2}}))
    run = make_run(train={"steps": 8, "checkpoint_every": {"steps": 2}})
    assert "dotted" not in run.open_store().read("report.html").decode()
    train_here(run)

    assert run.open_store().read("report.html").decode().count("; dotted: where a restart went on from") == 2
