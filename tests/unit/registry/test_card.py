from recurra.data.vocabulary import ByteVocabulary
from recurra.models.config import ModelConfig
from recurra.registry.card import card_of
from recurra.tasks.classification import ClassificationConfig, ClassificationTask
from recurra.tasks.language_model import LanguageModelConfig, LanguageModelTask

DATA = {"url": "file:///d", "version": 1, "digest": "d" * 64, "sequences": 9, "steps": 90, "longest": 20}


def test_a_card_holds_costs_data_and_limits():
    """By hand for an LSTM of 4 units over vectors of 4: 4 gates of 4 x (4 + 4), and 257 logits of 4 units."""
    task = LanguageModelTask(LanguageModelConfig(), ByteVocabulary())
    model = task.build_model(ModelConfig(hidden_size=4))
    size = task.vocabulary.size
    card = card_of(task, model, {"train": DATA, "eval": DATA})

    assert card["parameters"] == 4 * size + 16 * 8 + 2 * 16 + 5 * size
    assert card["state_bytes"] == 2 * 4 * 4
    assert card["flops_per_step"] == 2 * (16 * 8 + 4 * size)
    assert card["data"] == {"train": DATA, "eval": DATA}
    assert card["sessions"]
    assert [limit.split(" ")[0] for limit in card["limits"]] == ["Knows", "Trained"]


def test_what_a_model_cannot_do_is_said():
    """No sessions, no held-out data, and gradients that were cut."""
    task = ClassificationTask(ClassificationConfig(), ["calm", "storm"], None, 3)
    model = task.build_model(ModelConfig(hidden_size=4, bidirectional=True))
    card = card_of(task, model, {"train": DATA, "eval": None}, window=64)

    limits = " ".join(card["limits"])
    assert not card["sessions"] and "eval" not in card["data"]
    for words in ("one of 2 labels", "no sessions", "reached back 64 steps", "Nothing was held out"):
        assert words in limits
    assert "at most 20 steps" not in limits
