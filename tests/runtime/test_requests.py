"""Requests and answers in a run's folder."""

import pytest

from ray_snake.errors import ConfigError, DataError, NodeFailedError
from ray_snake.runtime.requests import AddRequest, Answer, Mailbox, RemoveRequest


@pytest.fixture
def mailbox(storage):
    return Mailbox(storage)


def test_requests_come_in_the_order_in_which_they_were_made(mailbox):
    made = [AddRequest(uri="b"), RemoveRequest(node=1, name="a"), AddRequest(uri="a", name="x")]
    keys = [mailbox.post(one) for one in made]
    assert list(mailbox.waiting().items()) == list(zip(keys, made, strict=True))


def test_an_answer_ends_a_request_and_is_taken_once(mailbox, storage):
    key = mailbox.post(AddRequest(uri="a"))
    assert mailbox.take_answer(key) is None
    mailbox.answer(key, Answer(node=3, name="a", visit=7))
    assert mailbox.waiting() == {}
    assert mailbox.take_answer(key) == Answer(node=3, name="a", visit=7)
    assert mailbox.take_answer(key) is None
    assert storage.list("answers") == []


def test_what_is_no_request_is_left_alone(mailbox, storage):
    storage.write("requests/0.json", b"{}")
    storage.write("requests/1.json", b"no JSON")
    key = mailbox.post(AddRequest(uri="a"))
    assert list(mailbox.waiting()) == [key]


@pytest.mark.parametrize(
    ("error", "texts"),
    [
        (DataError("x.arrow", "has no rows", "leave it out"), ("x.arrow", "no rows", "leave")),
        (NodeFailedError("node x did not start", "wait"), ("node x did not start", "wait")),
    ],
)
def test_a_refusal_is_raised_where_it_was_asked(error, texts):
    with pytest.raises(ConfigError) as caught:
        Answer.refusal(error).raise_refusal()
    for text in texts:
        assert text in str(caught.value)
    Answer(node=1).raise_refusal()
