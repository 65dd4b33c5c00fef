"""Texts and sentences: their parts, their numbers, and what happens without files."""

import os
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lrpilot.tasks.data import texts as text_data
from lrpilot.tasks.data.archives import DataError
from lrpilot.tasks.data.texts import (
    CHARACTERS,
    PADDING,
    UNKNOWN,
    encode_characters,
    load_sentences,
    load_text,
    number_words,
)

FOLDER = os.environ.get("LRPILOT_DATA")
NEEDS_TEXT = pytest.mark.skipif(not FOLDER, reason="needs the texts: set LRPILOT_DATA")
SPLITS = ("train", "held_out", "test")


def decode(numbers: Tensor) -> str:
    return "".join(CHARACTERS[number] for number in numbers.tolist())


@NEEDS_TEXT
def test_shakespeare_is_cut_as_documented_and_nothing_is_lost() -> None:
    data = load_text("shakespeare")
    (path,) = Path(str(FOLDER)).rglob("input.txt")
    text = path.read_text()

    assert [len(part) for part in (data.train, data.held_out, data.test)] == [
        1_003_854,
        55_770,
        55_770,
    ]
    is_same = decode(torch.cat([data.train, data.held_out, data.test])) == text
    assert is_same
    assert "".join(sorted(set(text))) == CHARACTERS


@NEEDS_TEXT
def test_sentences_as_text_lack_only_what_shakespeare_lacks() -> None:
    data = load_text("sst2")
    for split, file in zip(SPLITS, ("train.tsv", "dev.tsv", "test.tsv"), strict=True):
        (path,) = Path(str(FOLDER)).rglob(f"sst2-sentences/{file}")
        lines = path.read_text().splitlines(keepends=True)
        text = "".join(line.rsplit("\t", 1)[0] + "\n" for line in lines)
        kept = decode(getattr(data, split))

        expected = "".join(character for character in text if character not in "`012456789")

        # pytest would spend minutes on the difference of two long texts
        is_same = kept == expected
        assert is_same
        assert len(kept) > 0.997 * len(text)


@NEEDS_TEXT
@pytest.mark.parametrize("name", ["shakespeare", "sst2"])
def test_a_text_is_loaded_once(name: str) -> None:
    assert load_text(name) is load_text(name)
    assert load_sentences() is load_sentences()


@NEEDS_TEXT
def test_sentences_come_in_the_documented_numbers() -> None:
    data = load_sentences()

    for split, size in zip(SPLITS, (6920, 872, 1821), strict=True):
        assert getattr(data, f"{split}_x").shape == (size, 53)
        assert getattr(data, f"{split}_y").shape == (size,)
        assert set(getattr(data, f"{split}_y").tolist()) == {0, 1}
    assert data.num_words == 7206
    assert [int(data.train_y.sum()), int(data.held_out_y.sum()), int(data.test_y.sum())] == [
        3610,
        444,
        909,
    ]


@NEEDS_TEXT
def test_sentences_are_numbers_of_training_words_followed_by_padding() -> None:
    data = load_sentences()
    for split in SPLITS:
        x = getattr(data, f"{split}_x")
        lengths = (x != PADDING).sum(1)
        is_word = torch.arange(53) < lengths[:, None]

        assert int(lengths.min()) >= 1
        assert torch.equal(x != PADDING, is_word)
        assert int(x.max()) < data.num_words
    counts = data.train_x.flatten().bincount(minlength=data.num_words)
    assert int(counts[UNKNOWN + 1 :].min()) == 2
    assert bool((counts[UNKNOWN + 1 :].diff() <= 0).all())


@NEEDS_TEXT
def test_a_text_is_read_from_a_folder_given_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LRPILOT_DATA")
    monkeypatch.setenv("LRPILOT_CACHE", str(tmp_path))

    assert len(load_text("shakespeare", data_dir=FOLDER).test) == 55_770


def test_words_are_numbered_by_frequency_then_alphabet() -> None:
    assert number_words(["b a c a", "c b a d"]) == {"a": 2, "b": 3, "c": 4}


def test_every_character_has_its_own_number() -> None:
    assert decode(encode_characters(CHARACTERS)) == CHARACTERS
    assert encode_characters("`7\t").tolist() == []


def test_an_unknown_text_is_refused() -> None:
    with pytest.raises(ValueError, match=r"`name` must be one of \('shakespeare', 'sst2'\), got"):
        load_text("bible")


@pytest.mark.usefixtures("no_files")
@pytest.mark.parametrize("name", ["shakespeare", "sst2"])
def test_without_files_and_network_one_error_names_three_cures(name: str) -> None:
    with pytest.raises(DataError, match=r"(?s)`data_dir` or LRPILOT_DATA .*cache .*network"):
        load_text(name)


@pytest.mark.usefixtures("no_files")
def test_a_folder_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="`data_dir` must be an existing folder"):
        load_sentences(data_dir=str(tmp_path / "nowhere"))


@pytest.mark.usefixtures("no_files")
def test_an_altered_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "shakespeare").mkdir()
    (tmp_path / "shakespeare" / "input.txt").write_text("To be, or not to be")
    text_data._load_text.cache_clear()

    with pytest.raises(DataError, match=r"input\.txt is damaged"):
        load_text("shakespeare", data_dir=str(tmp_path))
