"""EgoSchema's full set: predictions become a file, and nothing is sent anywhere unless its user types it.

The answers are a server's. lmms-eval's task posts the predictions to it when it aggregates, whatever the Hugging
Face libraries are told about being offline. Here `packaged_overrides` takes that aggregation away, `nothing_posted`
refuses whatever would be sent all the same, `write_submission` writes the file, and `submit` sends it if told to.
"""

import contextlib
import functools
import http.client
import importlib
import importlib.util
import json
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from harness.benchmarks import LETTERS, benchmark_of_task
from harness.errors import UserError
from harness.paths import write_text

SERVER = "https://validation-server.onrender.com/api/upload/"  # as lmms-eval's task and its README have it
READING = frozenset({"GET", "HEAD", "OPTIONS", "TRACE"})  # methods that bring nothing but a question
VERDICT = re.compile(
    r"Total result: (\d+) correct, (\d+) wrong, (\d+) missing, (\d+) invalid, accuracy: (\d+(?:\.\d+)?)"
)
DOWNLOADING = frozenset({"nextqa_mc_test"})
"""Tasks whose module calls nltk.download when it is imported: word lists that only open-ended tasks beside it read."""
SECONDS_PER_REQUEST = 60


# ------------------------------------------------------------------------------- what the packaged task would post


class PostingRefused(BaseException):
    """Something was about to be sent. Not an Exception: tasks swallow those and try again, or score a 0."""


def packaged_overrides(task: str) -> dict[str, Any]:
    """What to merge into the configuration that lmms-eval gets of a task; {} for most.

    For a submission task an aggregation that counts the predictions, in place of the one that posts them.
    """
    benchmark = benchmark_of_task(task)
    if not benchmark.submission:
        return {}
    return {"metric_list": [{"metric": benchmark.metric, "aggregation": _count, "higher_is_better": True}]}


@contextlib.contextmanager
def nothing_posted(allow: Collection[str] = (), online: bool = False, tasks: Collection[str] = ()) -> Iterator[None]:
    """Let no HTTP request that carries anything (POST, PUT, PATCH, DELETE) leave this process.

    By whichever of requests, urllib, urllib3, httpx, httpx2 and aiohttp it is made. Other processes are not covered.

    Args:
        allow: host names that may be sent to, such as a judge's that the user named.
        online: the Hugging Face hub's host may be sent to: its listings are asked for by POST.
        tasks: those to be loaded meanwhile, for what some download when they are imported; unless online, it is left.

    Raises UserError that names the host, in place of what was refused.
    """
    allowed = {*allow, *([_hub_host()] if online else [])}
    with contextlib.ExitStack() as stack:
        for owner, name, wrap in _senders():
            stack.enter_context(_replaced(owner, name, wrap(getattr(owner, name), allowed)))
        if not online and not DOWNLOADING.isdisjoint(tasks) and importlib.util.find_spec("nltk"):
            stack.enter_context(_replaced(importlib.import_module("nltk"), "download", _no_download))
        try:
            yield
        except PostingRefused as refused:
            raise UserError(str(refused)) from refused


# --------------------------------------------------------------------------------------- the file, and sending it


@dataclass(frozen=True)
class Verdict:
    """What the server made of a submission: counts of questions, and the share of right ones in percent."""

    correct: int
    wrong: int
    missing: int
    invalid: int
    accuracy: float


def gather(values: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """Question id -> option index, from the per-sample values of the packaged task's metric.

    A question without a readable answer (the task's -1) is left out: the server counts it as missing.
    Raises UserError for a question that was answered in two ways.
    """
    answers: dict[str, int] = {}
    for value in values:
        for question, index in value.items():
            if answers.setdefault(question, index) != index:
                raise UserError(f"EgoSchema's question {question} was answered twice, differently; run it again")
    return {question: index for question, index in answers.items() if index >= 0}


def write_submission(path: Path, answers: Mapping[str, int]) -> None:
    """Write what the server takes: a JSON object, question id (the video's name) -> option index, 0 to 4.

    Raises UserError if there are no answers, or one is no option.
    """
    if not answers:
        raise UserError(f"there are no answers to write to {path}; run the evaluation first")
    for question, index in answers.items():
        if not _is_option(index):
            raise UserError(f"EgoSchema's question {question} has the options 0 to {len(LETTERS) - 1}, not {index!r}")
    write_text(path, json.dumps(dict(answers), indent=1) + "\n")


def submit(file: Path, url: str = SERVER, submit: bool = False, attempts: int = 8, pause: float = 5.0) -> Verdict:
    """Send a file of `write_submission` to the server, and nowhere it redirects to.

    The server sleeps when it is not used, and answers with errors for about a minute while it wakes.

    Args:
        submit: must be True, as the user typed it: else nothing is sent.
        attempts: tries, as long as the server does not answer or answers with an error of its own (5xx).
        pause: seconds of waiting after the first try; n times as long after the n-th, at most 30.

    Raises UserError if it is not to be sent, is no such file, or the server does not score it.
    """
    if submit is not True:
        raise UserError(f"{file} was not sent: sending EgoSchema's predictions to {url} needs submit=true")
    body = _checked(file)
    problem = ""
    for attempt in range(1, attempts + 1):
        try:
            return _read_verdict(_post(url, body), url)
        except urllib.error.HTTPError as error:
            problem = f"HTTP {error.code}"
            if error.code < 500:
                raise UserError(f"{url} refused {file} ({problem}); check the address and the file") from error
        except OSError as error:
            problem = str(error)
        if attempt < attempts:
            time.sleep(min(30.0, pause * attempt))
    raise UserError(f"{url} did not score {file} in {attempts} tries (the last: {problem}); try again later")


# ------------------------------------------------------------------------------------------------------- parts


def _count(results: list[Mapping[str, int]]) -> int:
    return len(results)


def _no_download(*packages: Any, **options: Any) -> bool:
    return False


def _hub_host() -> str:
    from huggingface_hub import constants

    return urlsplit(constants.ENDPOINT).hostname or ""


Wrapper = Callable[[Callable[..., Any], Collection[str]], Callable[..., Any]]


def _senders() -> list[tuple[type, str, Wrapper]]:
    """(class, method, how to guard it) of the ways in which Python sends HTTP requests here.

    requests, urllib and urllib3 all come down to the standard library's connection.
    """
    senders: list[tuple[type, str, Wrapper]] = [(http.client.HTTPConnection, "putrequest", _guarded_connection)]
    for name in ("httpx", "httpx2"):
        if importlib.util.find_spec(name):
            module = importlib.import_module(name)
            senders += [(module.Client, "send", _guarded_client), (module.AsyncClient, "send", _guarded_client)]
    if importlib.util.find_spec("aiohttp"):
        session = importlib.import_module("aiohttp").ClientSession
        senders.append((session, "_request", _guarded_session))  # it has no public place that all requests pass
    return senders


def _refuse(method: str, host: str | None, allowed: Collection[str]) -> None:
    if method.upper() not in READING and host not in allowed:
        raise PostingRefused(
            f"something was about to be sent to {host} ({method.upper()}), and nothing is unless you ask for it: "
            "leave out the benchmarks whose tasks do so, or name what may be asked"
        )


def _guarded_connection(original: Callable[..., Any], allowed: Collection[str]) -> Callable[..., Any]:
    @functools.wraps(original)
    def putrequest(self: http.client.HTTPConnection, method: str, url: str, *args: Any, **options: Any) -> Any:
        # Through a proxy, the host meant is the tunnel's (https) or in the address (http).
        _refuse(method, urlsplit(url).hostname or getattr(self, "_tunnel_host", None) or self.host, allowed)
        return original(self, method, url, *args, **options)

    return putrequest


def _guarded_client(original: Callable[..., Any], allowed: Collection[str]) -> Callable[..., Any]:
    @functools.wraps(original)
    def send(self: Any, request: Any, *args: Any, **options: Any) -> Any:
        _refuse(request.method, request.url.host, allowed)
        return original(self, request, *args, **options)

    return send


def _guarded_session(original: Callable[..., Any], allowed: Collection[str]) -> Callable[..., Any]:
    @functools.wraps(original)
    def request(self: Any, method: str, url: Any, *args: Any, **options: Any) -> Any:
        _refuse(method, urlsplit(str(url)).hostname, allowed)
        return original(self, method, url, *args, **options)

    return request


@contextlib.contextmanager
def _replaced(owner: Any, name: str, replacement: Any) -> Iterator[None]:
    original = getattr(owner, name)
    setattr(owner, name, replacement)
    try:
        yield
    finally:
        setattr(owner, name, original)


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """An answer that points elsewhere is an error: predictions go to the address that was typed."""

    def redirect_request(self, *args: Any) -> None:
        return None


def _checked(file: Path) -> bytes:
    """The content of a submission file."""
    try:
        body = file.read_bytes()
        answers = json.loads(body)
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be sent: it is no submission file ({error}); write it again") from error
    if not isinstance(answers, dict) or not answers or not all(map(_is_option, answers.values())):
        raise UserError(f"{file} cannot be sent: it does not give each question an option of 0 to 4; write it again")
    return body


def _is_option(index: Any) -> bool:
    return type(index) is int and 0 <= index < len(LETTERS)  # True is an int, too


def _post(url: str, body: bytes) -> str:
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"}, method="POST")
    with urllib.request.build_opener(_NoRedirect).open(request, timeout=SECONDS_PER_REQUEST) as response:
        return response.read().decode("utf-8", "replace")


def _read_verdict(reply: str, url: str) -> Verdict:
    found = VERDICT.search(reply)
    if found is None:
        raise UserError(f"{url} took the predictions, but its reply has no score: {reply[:300]!r}")
    correct, wrong, missing, invalid = map(int, found.groups()[:4])
    return Verdict(correct, wrong, missing, invalid, 100 * float(found[5]))
