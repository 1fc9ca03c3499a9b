"""Sends generated messages over several connections at once, and reports the answers and what was wrong with them.

What is sent, `messages.py` draws; what is wrong, `verdicts.py` says.
"""

import asyncio
import re
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from typing import Any, NamedTuple

import grpc
from google.protobuf.message import DecodeError
from grpc import StatusCode
from tests.end_to_end.requests_of import Answer
from tests.robustness.messages import HEALTH, Caller, Generator, Message
from tests.robustness.verdicts import faults

_CONNECTIONS, _CALLS_AT_ONCE = 3, 24

#: Found so many times, nothing more is sent.
_FINDINGS_MAX = 10

#: How much of a message is told: seed and number draw the whole of it again.
_TOLD_MAX = 2000

#: What gRPC's client for asyncio says itself where the service has ended a stream that was still being sent: it lays
#: this over the status that came. Source: https://github.com/grpc/grpc/issues/36066
_OWN_STATUS, _TRIES = (StatusCode.INTERNAL, "Internal error from Core"), 10


class Plan(NamedTuple):
    """What to send where."""

    address: str
    callers: Sequence[Caller]
    #: Authorization headers that must be refused.
    forged: Sequence[str]
    messages: int
    seed: int
    #: A regular expression: once a finding has it, nothing more is sent. "" for enough findings of any kind.
    sought: str = ""


@dataclass
class Report:
    """What came of it.

    Attributes:
        sent: messages by method.
        answered: answers by status code.
        reasons: refusals by their reason.
        findings: what was wrong, each with the message to send again.
    """

    sent: Counter[str] = field(default_factory=Counter)
    answered: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    findings: list[str] = field(default_factory=list)

    def add(self, other: "Report") -> None:
        """Takes in what another one sent."""
        self.sent += other.sent
        self.answered += other.answered
        self.reasons += other.reasons
        self.findings += other.findings


def fuzzed(plan: Plan, processes: int) -> Report:
    """The report of a plan that so many processes carry out, each with a seed of its own; this one, if it is one."""
    if processes == 1:
        return run(plan)
    parts = [
        plan._replace(messages=plan.messages // processes, seed=plan.seed * processes + index)
        for index in range(processes)
    ]
    report = Report()
    with ProcessPoolExecutor(processes, get_context("spawn")) as others:
        for part in others.map(run, parts):
            report.add(part)
    return report


def run(plan: Plan) -> Report:
    """The report of a plan that this process carries out."""
    return asyncio.run(_Run(plan).report())


class _Run:
    def __init__(self, plan: Plan) -> None:
        self._plan, self._report = plan, Report()
        self._generator = Generator(plan.callers, plan.seed, plan.forged)
        self._numbers = iter(range(plan.messages))

    async def report(self) -> Report:
        options = (("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0))
        channels = [grpc.aio.insecure_channel(self._plan.address, options) for _ in range(_CONNECTIONS)]
        async with asyncio.TaskGroup() as calling:
            for index in range(_CALLS_AT_ONCE):
                calling.create_task(self._calls(channels[index % _CONNECTIONS]))
        for channel in channels:
            await channel.close()
        return self._report

    async def _calls(self, channel: grpc.aio.Channel) -> None:
        for number in self._numbers:
            if self._is_enough():
                return
            message = self._generator.message(number)
            answer = await sent(channel, message)
            self._take(number, message, answer)

    def _is_enough(self) -> bool:
        sought, findings = self._plan.sought, self._report.findings
        return any(re.search(sought, each) for each in findings) if sought else len(findings) >= _FINDINGS_MAX

    def _take(self, number: int, message: Message, answer: Answer) -> None:
        report = self._report
        report.sent[message.path if len(message.path) < 100 else "(a long path)"] += 1
        report.answered[answer.code.name] += 1
        if answer.code is not StatusCode.OK:
            report.reasons[answer.reason] += 1
        elif message.caller and answer.body:
            self._learn(message, answer.body)
        if found := faults(message, answer):
            what = f"{'; '.join(found)}: {answer.code.name} {answer.message[:300]!r}"
            report.findings.append(f"{what}\n  seed {self._plan.seed}, number {number}\n  {repr(message)[:_TOLD_MAX]}")

    def _learn(self, message: Message, body: bytes) -> None:
        try:
            self._generator.learn(message, body)
        except DecodeError:
            self._report.findings.append(f"an answer that is no message: {body!r}\n  {message!r}")


async def sent(channel: grpc.aio.Channel, message: Message) -> Answer:
    """What the service answers to the message, however often that has to be asked."""
    answer, tries = await _sent_once(channel, message), 1
    while (answer.code, answer.message) == _OWN_STATUS and tries < _TRIES:
        answer, tries = await _sent_once(channel, message), tries + 1
    return answer


async def _sent_once(channel: grpc.aio.Channel, message: Message) -> Answer:
    try:
        if message.times != 1 or message.path in HEALTH:  # reflection answers a message alone once
            return await _sent_as_stream(channel, message)
        unary: Any = channel.unary_unary(message.path)
        call = unary(message.data, timeout=message.timeout_seconds, metadata=message.metadata)
        return Answer(StatusCode.OK, await call, "", tuple(await call.trailing_metadata()))
    except grpc.aio.AioRpcError as refused:
        return Answer(refused.code(), b"", refused.details() or "", tuple(refused.trailing_metadata() or ()))


async def _sent_as_stream(channel: grpc.aio.Channel, message: Message) -> Answer:
    """What the service answers first; the health service goes on for ever."""
    # A message alone is one to the service in either form, and sent whole: there is no status to be laid over.
    stream: Any = channel.unary_stream(message.path) if message.times == 1 else channel.stream_stream(message.path)
    data = message.data if message.times == 1 else iter([message.data] * message.times)
    call = stream(data, timeout=message.timeout_seconds, metadata=message.metadata)
    body = b""
    async for answer in call:
        body = body or answer
        if message.path in HEALTH:
            call.cancel()
            return Answer(StatusCode.OK, body, "", ())
    return Answer(StatusCode.OK, body, "", ())
