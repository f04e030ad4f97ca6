"""The channel between front end and engine process: whole frames, checked schemas, epochs."""

from __future__ import annotations

import asyncio
import socket

import msgspec
import pytest

from octavo.engine.channel import Abort, AsyncChannel, Channel, Message, StepReport, Submit
from octavo.engine.errors import EngineDead
from octavo.engine.params import (
    Emitted,
    FinishReason,
    PoolingKind,
    PoolingParams,
    Request,
    SamplingParams,
)
from octavo.engine.step import Delta, StepStats, Timing, TokenLogprobs


def full_request() -> Request:
    return Request(
        id="cmpl-1",
        prompt_token_ids=(0, 5, 4095),
        sampling=SamplingParams(
            n=2,
            max_tokens=None,
            logit_bias={3: -100.0, 7: 2.5},
            allowed_token_ids=(1, 2),
            bad_words_ids=((4, 5), (6,)),
            seed=-(2**63),
            stop=("a", "é"),
        ),
        seed=2**64 - 1,
        arrival=12.5,
        emitted=(Emitted(token_ids=(1,)), Emitted(finished=True)),
    )


def full_report() -> StepReport:
    logprobs = TokenLogprobs(
        token_id=3, logprob=-0.5, rank=1, top_ids=(3, 4), top_logprobs=(-0.5, -2.0)
    )
    timing = Timing(arrival=1.0, first_scheduled=2.0, first_token=3.0, finished=4.0)
    delta = Delta(
        request_id="cmpl-1",
        index=1,
        token_ids=(3,),
        logprobs=(logprobs,),
        finish_reason=FinishReason.STOP,
        timing=timing,
    )
    return StepReport((delta, Delta(request_id="x", error="no")), StepStats(step=7))


def pooled_request() -> Request:
    pooling = PoolingParams(kind=PoolingKind.LAST, dimensions=7, normalize=False)
    return Request(id="embd-1", prompt_token_ids=(5,), pooling=pooling, seed=0, arrival=1.0)


def pooled_report() -> StepReport:
    pooled = Delta(request_id="embd-1", embedding=(0.5, -2.0), finish_reason=FinishReason.STOP)
    return StepReport((pooled,), StepStats())


def pair(epoch: int = 0, far_epoch: int = 0) -> tuple[Channel, Channel]:
    near, far = socket.socketpair()
    return Channel(near, epoch=epoch), Channel(far, epoch=far_epoch)


@pytest.mark.parametrize(
    "message",
    [
        Submit((full_request(), pooled_request())),
        full_report(),
        pooled_report(),
        Abort("a", 3),
    ],
)
def test_a_message_arrives_as_it_was_sent(message: Message) -> None:
    near, far = pair()
    near.send(message)
    assert far.receive(wait=True) == [message]
    near.close()
    far.close()


def test_receive_without_waiting_returns_at_once() -> None:
    near, far = pair()
    assert far.receive(wait=False) == []
    near.send(Abort("a"))
    near.send(Abort("b"))
    assert far.receive(wait=False) == [Abort("a"), Abort("b")]
    near.close()
    far.close()


def test_a_frame_that_arrives_in_pieces_is_whole_again() -> None:
    near, far = socket.socketpair()
    channel = Channel(far, epoch=0)
    probe, sink = pair()
    probe.send(Abort("in pieces"))
    frame = sink._sock.recv(1000)
    for byte in frame[:-1]:
        near.send(bytes([byte]))
        assert channel.receive(wait=False) == []
    near.send(frame[-1:])
    assert channel.receive(wait=True) == [Abort("in pieces")]
    for end in (near, channel, probe, sink):
        end.close()


def test_messages_of_an_older_incarnation_are_dropped() -> None:
    near, far = pair(epoch=1, far_epoch=2)
    near.send(Abort("old"))
    assert far.receive(wait=False) == []
    near.close()
    with pytest.raises(EOFError):
        far.receive(wait=True)
    far.close()


def test_bytes_that_are_no_frame_are_refused() -> None:
    near, far = socket.socketpair()
    channel = Channel(far, epoch=0)
    near.send(b"\xff" * 64)
    with pytest.raises(EngineDead, match="broken frame"):
        channel.receive(wait=True)
    near.close()
    channel.close()


def test_a_payload_of_the_wrong_schema_is_refused() -> None:
    near, far = socket.socketpair()
    channel = Channel(far, epoch=0)
    payload = msgspec.msgpack.encode({"request_id": 3})
    near.send(len(payload).to_bytes(4, "little") + b"\x02\x00\x00\x00" + payload)
    with pytest.raises(msgspec.ValidationError):
        channel.receive(wait=True)
    near.close()
    channel.close()


async def test_the_async_end_speaks_the_same() -> None:
    near, far = socket.socketpair()
    engine = Channel(near, epoch=3)
    front = await AsyncChannel.open(far, epoch=3)
    front.send(Submit((full_request(),)))
    received = await asyncio.to_thread(engine.receive, wait=True)
    assert received == [Submit((full_request(),))]
    engine.send(full_report())
    assert await front.receive() == full_report()
    engine.close()
    with pytest.raises(EOFError):
        await front.receive()
    front.send(Abort("nobody is there"))
    await front.close()
