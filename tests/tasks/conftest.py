"""Texts and sentences that take the place of the real ones."""

from collections.abc import Callable, Iterator

import pytest

from lrpilot.tasks.data.texts import SentenceData, TextData
from lrpilot.tasks.language import gpt, sentences


@pytest.fixture
def use_text(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[TextData], None]]:
    """Puts a text in the place of the real ones."""

    def use(data: TextData) -> None:
        monkeypatch.setattr(gpt, "load_text", lambda *args, **kwargs: data)
        gpt._data_on_device.cache_clear()

    yield use
    gpt._data_on_device.cache_clear()


@pytest.fixture
def use_sentences(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[SentenceData], None]]:
    """Puts sentences in the place of the real ones."""

    def use(data: SentenceData) -> None:
        monkeypatch.setattr(sentences, "load_sentences", lambda *args, **kwargs: data)
        sentences._data_on_device.cache_clear()

    yield use
    sentences._data_on_device.cache_clear()
