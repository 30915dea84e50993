"""Completions, asked for with OpenAI's own client."""

import math

import openai
import pytest
from tests.unit.serving.conftest import continued, language_service


@pytest.fixture(scope="module")
def server(serve):
    return serve(language_service(max_new_tokens=64), api_key="the-key")


@pytest.fixture(scope="module")
def client(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="the-key", max_retries=0) as client:
        yield client


def ask(client, prompt="def ", **options):
    return client.completions.create(model="lm", prompt=prompt, **{"max_tokens": 12, **options})


def test_the_models_continuation_comes_back_with_its_usage(client, server):
    """The text is the model's own greedy one, and the client's typed fields are all there."""
    task, model = server.service.task, server.service.served.model
    answer = ask(client, temperature=0)
    wanted = task.text_of(continued(model, task.encode({"prompt": "def "}).inputs, 12))

    assert answer.choices[0].text == wanted
    assert (answer.object, answer.choices[0].finish_reason) == ("text_completion", "length")
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (5, 12, 17)
    assert [model.id for model in client.models.list()] == ["lm"]


def test_a_stream_has_the_same_text_choice_by_choice(client):
    """`n`, `seed`, `top_p`, `stream_options`: one chunk type for all of them, and usage in the last."""
    options = {"n": 3, "seed": 5, "temperature": 0.8, "top_p": 0.9}
    whole = ask(client, **options)
    texts = ["", "", ""]
    *chunks, last = ask(client, **options, stream=True, stream_options={"include_usage": True})
    for chunk in chunks:
        for choice in chunk.choices:
            texts[choice.index] += choice.text

    assert texts == [choice.text for choice in whole.choices]
    assert len(set(texts)) == 3
    assert last.usage == whole.usage and last.choices == []


def test_equal_seeds_give_equal_texts(client):
    """And other seeds others."""
    first, again, other = (ask(client, seed=seed).choices[0].text for seed in (1, 1, 2))

    assert first == again != other


def test_a_small_top_p_is_greedy(client):
    """Only the likeliest token is left to draw from, whatever the temperature."""
    assert ask(client, top_p=1e-6, temperature=2.0).choices[0].text == ask(client, temperature=0).choices[0].text


def test_a_stop_text_ends_the_answer_before_it(client):
    """One text or a list."""
    whole = ask(client, temperature=0, max_tokens=30).choices[0].text
    stop = whole[6:9]
    for given in (stop, ["never to be seen", stop]):
        choice = ask(client, temperature=0, max_tokens=30, stop=given).choices[0]
        assert (choice.text, choice.finish_reason) == (whole[: whole.find(stop)], "stop")


def test_logprobs_are_those_of_the_chosen_tokens(client):
    """At temperature 0 the chosen token is the likeliest; probabilities of the best ones sum to 1 at most."""
    found = ask(client, temperature=0, logprobs=5).choices[0].logprobs

    assert len(found.tokens) == len(found.token_logprobs) == len(found.text_offset) == 12
    for chosen, best in zip(found.token_logprobs, found.top_logprobs, strict=True):
        assert chosen == pytest.approx(max(best.values()))
        assert sum(map(math.exp, best.values())) <= 1 + 1e-9


def test_errors_arrive_as_the_clients_own_types(client, server):
    """A program that handles OpenAI's errors handles ours."""
    with pytest.raises(openai.NotFoundError, match="not served here"):
        client.completions.create(model="gpt", prompt="a")
    with pytest.raises(openai.UnprocessableEntityError, match="max_tokens") as refused:
        ask(client, max_tokens=65)
    assert (refused.value.code, refused.value.param) == ("too_many_tokens", "max_tokens")
    with (
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="wrong", max_retries=0) as stranger,
        pytest.raises(openai.AuthenticationError, match="bearer key"),
    ):
        ask(stranger)


def test_a_stream_that_fails_raises_what_failed(serve):
    """The status is long out: the terminal event has the type, and the client raises it instead of ending silently."""
    server = serve(language_service(max_new_tokens=100_000_000, deadline_s=1.0))
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0) as client:
        stream = ask(client, max_tokens=100_000_000, temperature=0, stream=True)
        with pytest.raises(openai.APIError, match="serve.deadline_s") as failed:
            for _ in stream:
                pass
    assert (failed.value.code, failed.value.type) == ("deadline_exceeded", "server_error")
