"""EgoSchema's full set: what lmms-eval's own task posts, that the harness does not, what is sent when asked for."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from loopback import Server, servers

from harness.benchmarks import LETTERS, all_benchmarks
from harness.errors import UserError
from harness.submission import (
    SERVER,
    Verdict,
    gather,
    nothing_posted,
    packaged_overrides,
    submit,
    write_submission,
)

requests = pytest.importorskip("requests")  # by which lmms-eval's tasks post
SCORED = "Total result: 3 correct, 1 wrong, 1 missing, 0 invalid, accuracy: 0.6\nSubset result: none"
ENTRY = all_benchmarks()["egoschema_full"]
DOCS = [
    {"question_idx": str(i), "video_idx": f"q{i}", "question": "what does C do", "answer": None}
    | {"option": [f"{letter}. thing {letter}" for letter in LETTERS]}
    for i in range(5)
]


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Server]]:
    monkeypatch.setenv("NO_PROXY", "*")
    with servers() as start:
        yield start


# ----------------------------------------------------------------------------- what lmms-eval's own task does


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A suite of EgoSchema's full set: a table without answers, five files in place of videos."""
    folder = tmp_path_factory.mktemp("suite")
    table = folder / "hub" / ENTRY.hub / "GENERATION"
    table.mkdir(parents=True)
    pd.DataFrame(DOCS).to_parquet(table / "test-00000-of-00001.parquet")
    front = "configs:\n- config_name: GENERATION\n  data_files:\n  - split: test\n    path: GENERATION/test-*\n"
    (table.parent / "README.md").write_text(f"---\n{front}---\n")
    for doc in DOCS:
        video = folder / "home" / ENTRY.video_of(doc, "egoschema")
        video.parent.mkdir(parents=True, exist_ok=True)
        video.write_bytes(b"video")
    return folder


@pytest.fixture
def run_egoschema(suite: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict]:
    """lmms-eval's full EgoSchema with a model that answers A, B, C, D, E; sleeping between tries costs nothing."""
    monkeypatch.setenv("HF_HOME", str(suite / "home"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("LMMS_EVAL_DATASETS_CACHE", str(tmp_path / "datasets"))
    monkeypatch.chdir(tmp_path)  # the packaged aggregation writes into it
    import lmms_eval.tasks
    from lmms_eval.api.model import lmms
    from lmms_eval.evaluator import simple_evaluate

    class InTurn(lmms):
        def generate_until(self, asked: list[Any]) -> list[str]:
            return [LETTERS[request.args[3]] for request in asked]

        def loglikelihood(self, asked: list[Any]) -> list[Any]:
            raise NotImplementedError("EgoSchema generates")

        def generate_until_multi_round(self, asked: list[Any]) -> list[str]:
            raise NotImplementedError("EgoSchema has one round")

    monkeypatch.setattr("time.sleep", lambda seconds: None)
    folder = str(Path(lmms_eval.tasks.__file__).parent / "egoschema")

    def run(**overrides: Any) -> dict:
        task = {"task": "egoschema", "dataset_path": str(suite / "hub" / ENTRY.hub), **overrides}
        manager = lmms_eval.tasks.TaskManager(include_path=[folder], include_defaults=False, model_name="in_turn")
        return simple_evaluate(
            InTurn(), tasks=[task], task_manager=manager, batch_size=1, bootstrap_iters=0, process_docs_parallel=1
        )

    return run


@pytest.fixture
def reroute(monkeypatch: pytest.MonkeyPatch) -> Callable[[Server], list[str]]:
    """Have what `requests.post` sends end at a loopback server; the addresses that were meant are listed."""

    def to(server: Server) -> list[str]:
        meant, post = [], requests.post

        def rerouted(url: str, **options: Any) -> Any:
            meant.append(url)
            return post(server.url, **options)

        monkeypatch.setattr(requests, "post", rerouted)
        return meant

    return to


@pytest.mark.timeout(900)
def test_the_packaged_task_posts_and_the_harness_does_not(
    run_egoschema: Callable[..., dict],
    reroute: Callable[[Server], list[str]],
    serve: Callable[..., Server],
    tmp_path: Path,
) -> None:
    server = serve((200, SCORED))
    meant = reroute(server)

    # As packaged: the predictions are posted, offline or not.
    results = run_egoschema()
    assert meant == [SERVER]
    assert results["results"]["egoschema"]["submission,none"] == 60
    ((method, _, _, body),) = server.received
    assert (method, json.loads(body)) == ("POST", {f"q{i}": i for i in range(5)})

    # Guarded: the same code is stopped at its first try, before a byte is sent.
    with pytest.raises(UserError, match=r"about to be sent to 127\.0\.0\.1 \(POST\)"), nothing_posted():
        run_egoschema()
    assert len(meant) == 2
    assert len(server.received) == 1

    # As the harness runs it: it ends well, and nothing tries to post.
    with nothing_posted():
        results = run_egoschema(**packaged_overrides("egoschema"))
    assert len(meant) == 2
    assert len(server.received) == 1
    assert results["results"]["egoschema"]["submission,none"] == len(DOCS)

    # Its predictions, in a file, and sent when that is asked for: to the address given, as they are in the file.
    file = tmp_path / "out" / "submission.json"
    write_submission(file, gather(sample["submission"] for sample in results["samples"]["egoschema"]))
    with pytest.raises(UserError, match="needs submit=true"):
        submit(file, server.url)
    assert len(server.received) == 1
    assert submit(file, server.url, submit=True) == Verdict(3, 1, 1, 0, 60.0)
    method, path, headers, sent = server.received[1]
    assert (method, path, headers["Content-Type"]) == ("POST", "/api/upload/", "application/json")
    assert sent == file.read_bytes()
    assert json.loads(sent) == json.loads(body)  # as lmms-eval's own task would have sent them
    assert len(server.received) == 2


def test_only_submission_tasks_are_overridden() -> None:
    for entry in all_benchmarks().values():
        for task in entry.tasks:
            assert bool(packaged_overrides(task)) == entry.submission


# -------------------------------------------------------------------------------------- the file, and sending it


def test_answers_are_gathered_and_the_unreadable_left_out(tmp_path: Path) -> None:
    answers = gather([{"a": 3}, {"b": -1}, {"c": 0}, {"a": 3}])
    assert answers == {"a": 3, "c": 0}
    write_submission(tmp_path / "deep" / "file.json", answers)
    assert json.loads((tmp_path / "deep" / "file.json").read_text()) == {"a": 3, "c": 0}
    with pytest.raises(UserError, match="question a was answered twice"):
        gather([{"a": 3}, {"a": 1}])


@pytest.mark.parametrize("index", [5, -1, "A", None, 1.0, True], ids=repr)
def test_what_is_no_option_is_not_written(index: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="question q7 has the options 0 to 4"):
        write_submission(tmp_path / "file.json", {"q7": index})
    assert not (tmp_path / "file.json").exists()


def test_an_empty_submission_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no answers to write"):
        write_submission(tmp_path / "file.json", {})


@pytest.fixture
def file(tmp_path: Path) -> Path:
    write_submission(tmp_path / "submission.json", {"a": 3, "b": 1})
    return tmp_path / "submission.json"


@pytest.mark.parametrize("typed", [False, None, 1, "true"], ids=repr)
def test_nothing_but_true_sends(typed: Any, file: Path, serve: Callable[..., Server]) -> None:
    server = serve((200, SCORED))
    with pytest.raises(UserError, match=r"submission\.json was not sent: .* needs submit=true"):
        submit(file, server.url, submit=typed)
    assert server.sent() == []


def test_sending_is_refused_where_nothing_is_to_be_posted(file: Path, serve: Callable[..., Server]) -> None:
    server = serve((200, SCORED))
    with pytest.raises(UserError, match="about to be sent"), nothing_posted():
        submit(file, server.url, submit=True)
    assert server.sent() == []


def test_a_server_that_wakes_is_waited_for(
    file: Path, serve: Callable[..., Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []
    monkeypatch.setattr("harness.submission.time.sleep", waits.append)
    server = serve((503, "asleep"), (502, "yawns"), (200, SCORED))
    assert submit(file, server.url, submit=True, pause=20).accuracy == 60
    assert waits == [20, 30]
    asleep = serve((503, "asleep"))
    with pytest.raises(UserError, match=r"did not score .* in 3 tries \(the last: HTTP 503\)"):
        submit(file, asleep.url, submit=True, attempts=3)
    assert len(asleep.sent()) == 3


def test_a_server_that_is_not_there(file: Path, serve: Callable[..., Server]) -> None:
    server = serve((200, SCORED))
    server.server.server_close()
    with pytest.raises(UserError, match=r"in 2 tries \(the last: .*refused"):
        submit(file, server.url, submit=True, attempts=2, pause=0)


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_nothing_goes_where_the_server_points(status: int, file: Path, serve: Callable[..., Server]) -> None:
    elsewhere = serve((200, SCORED))
    server = serve((status, elsewhere.url))
    with pytest.raises(UserError, match=rf"refused .* \(HTTP {status}\)"):
        submit(file, server.url, submit=True)
    assert elsewhere.sent() == []


def test_a_reply_without_a_score(file: Path, serve: Callable[..., Server]) -> None:
    server = serve((200, "thank you"))
    with pytest.raises(UserError, match="reply has no score: 'thank you'"):
        submit(file, server.url, submit=True)
    assert len(server.sent()) == 1


def test_a_refusal_is_not_repeated(file: Path, serve: Callable[..., Server]) -> None:
    server = serve((400, "bad"))
    with pytest.raises(UserError, match=r"refused .*submission\.json \(HTTP 400\)"):
        submit(file, server.url, submit=True)
    assert len(server.sent()) == 1


@pytest.mark.parametrize("content", ["", "[1, 2]", "{}", '{"a": "B"}', '{"a": 7}', '{"a": true}', None], ids=repr)
def test_other_files_are_not_sent(content: str | None, tmp_path: Path, serve: Callable[..., Server]) -> None:
    server, path = serve((200, SCORED)), tmp_path / "other.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=r"other\.json cannot be sent"):
        submit(path, server.url, submit=True)
    assert server.sent() == []
