import subprocess
import sys
import wave
from pathlib import Path

import numpy as np
import pytest

from recurra.data.dataset import Dataset
from recurra.data.pipeline import Pipeline
from recurra.data.plan import PlanOptions
from recurra.data.vocabulary import Vocabulary
from recurra.orchestration.job_file import load_job
from recurra.registry.config import PublishConfig
from recurra.tasks.build import task_from_dataset
from recurra.tasks.problems.copying import Copy
from recurra.tasks.problems.dataset import write_problems
from recurra.training.work import train_here

JOBS = Path(__file__).parents[3] / "jobs"


def prepare(job: str, *arguments: str, code: int = 0) -> str:
    """Run a job's prepare.py as a user does; gives what it printed."""
    done = subprocess.run(
        [sys.executable, JOBS / job / "prepare.py", *arguments],
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == code, done.stderr
    return done.stdout + done.stderr


def check_fits(job: str, url: str, splits: tuple[str, str]) -> None:
    """The job file takes the datasets that its prepare.py writes."""
    run = load_job(JOBS / job / "job.yaml").train_run()
    assert (run.data.train.rsplit("/", 1)[1], (run.data.eval or "").rsplit("/", 1)[1]) == splits
    for split in splits:
        dataset = Dataset.open(f"{url}/{split}")
        task_from_dataset(run.task, dataset.schema, dataset.metadata).build_model(run.model)


def test_python_sources_are_split_by_path_and_start_with_bos(tmp_path: Path, local_url: str):
    """Whether a file is held out depends on its path alone, so that a baseline and a model see the same split."""
    source = tmp_path / "source"
    for number in range(60):
        file = source / f"package{number % 3}" / f"module{number}.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"x = {number}\n")
    for path in ("test/test_it.py", "site-packages/other.py"):
        (source / path).parent.mkdir(parents=True, exist_ok=True)
        (source / path).write_text("y = 1\n")
    (source / "broken.py").write_bytes(b"\xff\xfe")
    (source / "empty.py").write_text("")

    prepare("python-suggestions", "--source", str(source), "--out", local_url)
    train, valid = Dataset.open(f"{local_url}/train"), Dataset.open(f"{local_url}/valid")
    assert len(train) + len(valid) == 60
    assert 0 < len(valid) < 12
    tokens = train[0]["tokens"]
    assert tokens[0] == 0
    assert Vocabulary.from_json(train.metadata["vocabulary"]).decode(tokens).startswith("x = ")
    check_fits("python-suggestions", local_url, ("train", "valid"))


def test_writing_again_leaves_what_is_there(tmp_path: Path, local_url: str):
    """A dataset is appended to by writing; a second run of the script must not double it."""
    (tmp_path / "source").mkdir()
    for number in range(40):
        (tmp_path / "source" / f"module{number}.py").write_text("x = 1\n")
    arguments = ("--source", str(tmp_path / "source"), "--out", local_url)
    prepare("python-suggestions", *arguments)
    before = len(Dataset.open(f"{local_url}/train"))

    assert "is left as it is" in prepare("python-suggestions", *arguments)
    assert len(Dataset.open(f"{local_url}/train")) == before


def test_sentiment_has_the_published_proportion_and_no_test_word_in_its_vocabulary(tmp_path: Path, local_url: str):
    """1,777 sentences of each label are for testing; the vocabulary is made of the others."""
    for name, word in (("rt-polarity.neg", "dull"), ("rt-polarity.pos", "warm")):
        lines = [f"a {word} film number{number} caf\xe9" for number in range(2000)]
        (tmp_path / name).write_text("\n".join(lines) + "\n", encoding="latin-1")

    prepare("sentiment", "--source", str(tmp_path), "--out", local_url)
    train, test = Dataset.open(f"{local_url}/train"), Dataset.open(f"{local_url}/test")
    assert (len(train), len(test)) == (2 * 223, 3554)
    assert sum(int(test[number]["label"]) for number in range(len(test))) == 1777
    seen = {entry for entry in train.metadata["vocabulary"]["entries"] if entry.startswith("number")}
    texts = [Vocabulary.from_json(train.metadata["vocabulary"]).decode(train[n]["tokens"]) for n in range(len(train))]
    assert seen <= {word for text in texts for word in text.split()}
    assert "café" in texts[0]
    check_fits("sentiment", local_url, ("train", "test"))


def test_retail_holds_the_last_two_years_of_each_series_out(tmp_path: Path, local_url: str):
    """Training never sees them; series that are too short to test are dropped; gaps before a start are cut."""
    months = [f"{2000 + number // 12}-{number % 12 + 1:02d}" for number in range(60)]
    rows = ["Month,A,B,C"]
    for number, month in enumerate(months):
        late = "" if number < 6 else f"{number}.5"
        short = f"{number}" if number >= 40 else ""
        rows.append(f"{month},{100 + number},{late},{short}")
    (tmp_path / "turnover_wide.csv").write_text("\n".join(rows) + "\n")
    (tmp_path / "series.csv").write_text(
        "Series ID,State,Industry\nA,Victoria,Food\nB,Queensland,Food\nC,Victoria,Books\n"
    )

    prepare("retail-forecast", "--source", str(tmp_path), "--out", local_url)
    train, test = Dataset.open(f"{local_url}/train"), Dataset.open(f"{local_url}/test")
    assert [len(train[n]["values"]) for n in range(len(train))] == [36, 30]
    assert [len(test[n]["values"]) for n in range(len(test))] == [60, 54]
    assert (test[1]["start"], int(test[1]["holdout"]), test[1]["values"][0]) == ("2000-07", 24, np.float32(6.5))
    assert train.metadata["static"]["state"][int(train[1]["state"])] == "Queensland"
    check_fits("retail-forecast", local_url, ("train", "test"))


def test_copy_problems_are_written_in_two_sets(local_url: str):
    """The evaluation may be of longer sequences than the training: generalisation is the point."""
    prepare("algorithmic/copy", "--out", local_url, "--sequences", "50", "--longest", "4", "--eval-length", "9")

    train, test = Dataset.open(f"{local_url}/train"), Dataset.open(f"{local_url}/eval")
    assert train.lengths().max() <= 2 * 4 + 1
    assert set(test.lengths().tolist()) == {2 * 9 + 1}
    check_fits("algorithmic/copy", local_url, ("train", "eval"))


@pytest.mark.parametrize(
    ("job", "steps", "more"),
    [
        ("repeat-copy", 10 + 1 + 10 * 10 + 1, []),
        ("associative-recall", 10 * 4 + 5 + 3, ["--easier", "2"]),
        ("dynamic-ngrams", 199, []),
        ("priority-sort", 20 + 1 + 16, []),
    ],
)
def test_the_papers_problems_are_evaluated_at_their_longest(local_url: str, job: str, steps: int, more: list[str]):
    """Figures are quoted for the longest sequences that training draws."""
    prepare(f"algorithmic/{job}", "--out", local_url, "--sequences", "20", "--eval-sequences", "3", *more)

    assert Dataset.open(f"{local_url}/train").lengths().max() <= steps
    assert set(Dataset.open(f"{local_url}/eval").lengths().tolist()) == {steps}
    check_fits(f"algorithmic/{job}", local_url, ("train", "eval"))


def test_recall_is_learned_from_few_items_to_many(local_url: str):
    """Each dataset of the job's curriculum is one that prepare.py writes, with an item more than the one before."""
    amounts = ["--easier", "30", "--sequences", "30", "--eval-sequences", "1"]
    prepare("algorithmic/associative-recall", "--out", local_url, *amounts)
    data = load_job(JOBS / "algorithmic/associative-recall/job.yaml").train_run().data
    names = [url.rsplit("/", 1)[1] for url in (*data.easier, data.train)]

    assert [Dataset.open(f"{local_url}/{name}").metadata["sizes"]["items"][1] for name in names] == [*range(3, 11)]


def test_a_batch_of_repeat_copy_has_short_and_long_sequences(local_url: str):
    """Grouped by length, one update would be about long answers alone and the next about short ones."""
    prepare("algorithmic/repeat-copy", "--out", local_url, "--sequences", "160", "--eval-sequences", "1")
    run = load_job(JOBS / "algorithmic/repeat-copy/job.yaml").train_run()
    rows = run.train.global_batch.sequences
    options = PlanOptions(batch_sequences=rows, shuffle=run.data.shuffle, bucket_window=run.data.shuffle_window)
    spreads = [np.ptp(b.lengths) for b in Pipeline(Dataset.open(f"{local_url}/train"), options, epochs=1)]

    assert len(spreads) == 20
    assert min(spreads) > 5
    assert np.median(spreads) > 40


def test_a_published_model_is_measured_beyond_its_training(tmp_path: Path):
    """`generalise.py` takes what `recurra train` published, and asks longer questions."""
    url = f"file://{tmp_path}"
    copy = Copy(width=2)
    write_problems(f"{url}/train", copy, 20, [(1, 3)], seed=0)
    run = load_job(
        JOBS / "algorithmic/copy/job.yaml", [f"data.train={url}/train", f"data.eval={url}/train"]
    ).train_run()
    run = run.model_copy(
        update={
            "runs": f"{url}/runs",
            "publish": PublishConfig(model="copy", alias="production", registry=f"{url}/registry"),
            "train": run.train.model_copy(update={"steps": 3}),
        }
    )
    train_here(run)

    arguments = ["copy@production", "3", "12", "--registry", f"{url}/registry", "--sequences", "20"]
    done = subprocess.run(
        [sys.executable, JOBS / "algorithmic/generalise.py", *arguments],
        check=True,
        capture_output=True,
        text=True,
        timeout=120,
    )
    lines = [line.split() for line in done.stdout.splitlines()[1:]]
    assert [line[0] for line in lines] == ["3", "12"]
    assert float(lines[0][1]) == pytest.approx(6, rel=0.4)  # a bit for each bit, after three updates
    assert float(lines[1][1]) == pytest.approx(24, rel=0.4)


def test_entities_take_their_words_from_the_training_split(tmp_path: Path, local_url: str):
    """What only the test split has must be unknown; words stay as they were cut, and `O` is tag 0."""
    for split, name in (("train", "Ada"), ("dev", "Eve"), ("test", "Bob")):
        lines = [f"{name}\tB-person", "can't\tO", "", "we\tO", f"met {name}\tB-person"]
        (tmp_path / f"{split}.conll").write_text("\n".join([*lines, "", *lines]) + "\n")

    prepare("entities", "--source", str(tmp_path), "--out", local_url)
    train, test = Dataset.open(f"{local_url}/train"), Dataset.open(f"{local_url}/test")
    assert len(train) == len(test) == 4
    assert set(train.metadata["vocabulary"]["entries"]) == {"ada", "can't", "we", "met ada"}
    assert test[0]["tokens"].tolist()[0] == 1
    assert train.metadata["tags"] == ["O", "B-person"]
    assert test[1]["tags"].tolist() == [0, 1]
    check_fits("entities", local_url, ("train", "dev"))


def test_adding_problems_mark_one_step_in_each_half(local_url: str):
    """What is asked for is far from the end in every sequence, so that only memory helps."""
    prepare("adding", "--out", local_url, "--sequences", "20", "--length", "40")
    train = Dataset.open(f"{local_url}/train")
    batch = next(iter(Pipeline(train, PlanOptions(batch_sequences=20), epochs=1)))
    values_BTD = batch.columns["values"]

    assert set(train.lengths().tolist()) == {40}
    assert (values_BTD[:, :20, 1].sum(1) == 1).all() and (values_BTD[:, 20:, 1].sum(1) == 1).all()
    np.testing.assert_allclose((values_BTD[..., 0] * values_BTD[..., 1]).sum(1), batch.columns["target"], rtol=1e-6)
    check_fits("adding", local_url, ("train", "eval"))


def test_translation_pairs_lines_and_shares_one_vocabulary(tmp_path: Path, local_url: str):
    """Merges are learnt from both languages of the training split; the reference stays text."""
    for name, english, german in (("train", "a dog", "ein hund"), ("val", "cats", "katzen"), ("test2016", "a", "ein")):
        (tmp_path / f"{name}.en").write_text(f"{english}\n" * 3)
        (tmp_path / f"{name}.de").write_text(f"{german}\n" * 3)
    prepare("translation", "--source", str(tmp_path), "--out", local_url)
    train, test = Dataset.open(f"{local_url}/train"), Dataset.open(f"{local_url}/test")
    vocabulary = Vocabulary.from_json(train.metadata["vocabulary"])
    assert train.metadata["target_vocabulary"] == train.metadata["vocabulary"] == test.metadata["vocabulary"]
    assert (vocabulary.decode(train[0]["tokens"]), train[0]["target"]) == ("a dog", "ein hund")
    assert len(vocabulary.encode(" hund")) == 1 and len(vocabulary.encode("cats")) == 4
    check_fits("translation", local_url, ("train", "val"))

    (tmp_path / "val.de").write_text("eine\n")
    assert "belong together" in prepare("translation", "--source", str(tmp_path), "--out", local_url, code=1)


def test_speech_gives_the_language_model_training_transcripts_alone(tmp_path: Path, local_url: str):
    """What the test recordings say must not help to hear them."""
    for split, said in (("train", "YES"), ("test", "GO yes")):
        np.savez(tmp_path / f"{split}.npz", one=np.zeros((9, 13), np.float32))
        (tmp_path / f"{split}.tsv").write_text(f"id\tframes\ttext\none\t9\t{said}\n")
    prepare("speech", "--source", str(tmp_path), "--out", local_url)
    test = Dataset.open(f"{local_url}/test")
    assert test.metadata["language_model_texts"] == ["YES"]
    assert (test[0]["target"], test[0]["values"].shape) == ("GO YES", (9, 13))
    check_fits("speech", local_url, ("train", "test"))


def test_yes_and_no_are_heard_by_their_names(tmp_path: Path, local_url: str):
    """The first 31 recordings train; the front end is kept for the endpoint."""
    for number in range(34):
        name = "_".join(f"{number:08b}")
        with wave.open(str(tmp_path / f"{name}.wav"), "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(8000)
            file.writeframes(bytes(2 * 1000))
    prepare("speech-yesno", "--source", str(tmp_path), "--out", local_url)
    train, test = Dataset.open(f"{local_url}/train"), Dataset.open(f"{local_url}/test")
    assert (len(train), len(test)) == (31, 3)
    assert train[1]["target"] == "no no no no no no no yes"
    assert train[0]["values"].shape == (1 + (1000 - 200) // 80, 20)
    assert test.metadata["front_end"]["rate"] == 8000
    check_fits("speech-yesno", local_url, ("train", "test"))


@pytest.mark.parametrize("job", ["sentiment", "retail-forecast", "entities", "translation", "speech", "speech-yesno"])
def test_a_source_that_is_not_there_is_one_line(tmp_path: Path, local_url: str, job: str):
    """A user who mistypes a path sees which file was missing, and no stack trace."""
    said = prepare(job, "--source", str(tmp_path / "nowhere"), "--out", local_url, code=1)

    assert "nowhere" in said
    assert "Traceback" not in said
