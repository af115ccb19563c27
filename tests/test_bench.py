"""The bench: its parts on tiny sizes, what is compared with what, and the rows it writes."""

import io
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import torch
from rich.console import Console
from tiny import small_suite, tiny_checkpoint
from videos import write

from architectures.bench import MEASURED, Session, config_of, open_model
from harness import bench
from harness.compose import compose
from harness.errors import UserError
from harness.evaluate import Evaluation
from harness.profilers.timing import Rounds
from harness.settings import PROFILE
from harness.speed import evaluating
from harness.speed.decoding import decoding, write_long
from harness.speed.evaluating import ALONE, BEST, SERIAL, SHORT, WAYS, Evaluations, evaluations
from harness.speed.model import Reprojecting, decode_steps, profile_grid
from harness.speed.rows import MS, Case, Measurement, as_frame, measure, table_of
from harness.video import count_frames

ONCE = Rounds(1, 0)


def measurement(variant: str, value: float, unit: str = MS, what: str = "thing") -> Measurement:
    return Measurement("part", what, variant, value, 0.9 * value, 1.1 * value, unit, 3, 1)


def test_faster_is_above_one_whatever_the_unit() -> None:
    assert measurement("new", 2.0).times_as_fast_as(measurement("old", 6.0)) == 3.0
    assert measurement("new", 6.0, "frames/s").times_as_fast_as(measurement("old", 2.0, "frames/s")) == 3.0


def test_median_and_quartiles_of_measured_rounds() -> None:
    pauses = iter([0.0, 0.01, 0.02, 0.03])  # the first is the warm-up
    case = Case("sleep", "in turn", lambda: time.sleep(next(pauses)), amount=6)
    (found,) = measure("part", [case], "naps/s", Rounds(3, 1))
    assert found.rounds == 3
    assert 6 / 0.06 < found.value <= 6 / 0.02
    assert found.quartile_1 <= found.value <= found.quartile_3
    (slower,) = measure("part", [Case("sleep", "once", lambda: time.sleep(0.02))], MS, ONCE)
    assert 20 <= slower.value < 200


def test_a_case_that_fails_is_not_left_out_in_silence() -> None:
    def fails() -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    with pytest.raises(RuntimeError, match="part, thing, large: out of memory"):
        measure("part", [Case("thing", "small", lambda: None), Case("thing", "large", fails)], MS, ONCE)


def test_table_compares_with_the_first_of_the_same_thing_and_fits() -> None:
    console = Console(width=bench.WIDTH, record=True, file=io.StringIO())
    rows = [measurement(v, x, what=w) for w in ("one", "two") for v, x in (("old", 6.0), ("new", 2.0))]
    console.print(table_of([*rows, measurement("new", 1234.5, what="a long name of a thing" * 4)]))
    lines = console.export_text().splitlines()
    assert max(map(len, lines)) <= bench.WIDTH
    assert sum("3 x" in line for line in lines) == 2
    assert any("1,234 (1,111 to 1,358)" in line for line in lines)


def test_projecting_again_changes_no_logits() -> None:
    sizes = {**MEASURED, "hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 48, "vocab_size": 50}
    model = open_model(config_of(sizes, 64, placement={"name": "list", "layers": [0]}))
    sessions = [kind(model, 4) for kind in (Session, Reprojecting)]
    logits = []
    for session in sessions:
        session.__dict__ |= {name: vars(sessions[0])[name] for name in ("features_BTPV", "prompt_BL", "text_BL")}
        session.prefill()
        memory = session.cache.slow_memory
        session.step()
        assert (session.cache.slow_memory is memory) == (type(session) is Session)
        with torch.no_grad():
            logits.append(model(torch.ones(1, 1, dtype=torch.long), past_key_values=session.cache).logits)
    assert torch.equal(*logits)


def test_decode_steps_and_profile_grid() -> None:
    steps = decode_steps([2], Rounds(2, 0))
    assert [m.variant for m in steps] == ["slow K/V projected again", "slow K/V kept"]
    cells = profile_grid(ONCE, scale="mini")
    assert [m.variant for m in cells] == ["torch's counter", "closed form"] * 2
    assert all(m.value > 0 and m.unit == MS for m in [*steps, *cells])
    assert cells[3].times_as_fast_as(cells[2]) > 1


def test_decoding_says_what_was_read(tmp_path: Path) -> None:
    path = write_long(tmp_path / "long.mp4", frames=90, width=64, height=48, fps=10, group=30)
    assert count_frames(path) == 90
    whole = write(tmp_path / "whole.mp4", "libx264", {"g": "1000", "sc_threshold": "0"}, shown=20)
    found = [m for m in decoding([path, whole], ONCE, frames=[2]) if m.variant.startswith("pyav")]
    assert [m.variant for m in found] == [
        *("pyav, through, 1 thread", "pyav, through, 2 threads", "pyav, seek, 1 thread", "pyav, seek, 2 threads"),
        *("pyav, through, 1 thread", "pyav, through, 2 threads"),
        *("pyav, seek (read through), 1 thread", "pyav, seek (read through), 2 threads"),
    ]
    assert [m.threads for m in found] == [1, 2] * 4
    assert found[0].what == "long.mp4: 2 of 90 frames"


# ------------------------------------------------------------------------------------------------ evaluation


PAUSES = {(1, 0): 0.3, (1, 2): 0.2, (32, 0): 0.1, (32, 2): 0.05}


def pretend(answers: Callable[[int, int], list[str]]) -> Callable[..., Evaluation]:
    """An `evaluate` that sleeps, and answers by batch and workers; what is answered already takes 10 ms."""

    def evaluate(
        checkpoint: Path, suite: Path, out: Path, frames: int, batch_size: int, workers: int, answer_tokens: int
    ) -> Evaluation:
        assert answer_tokens == SHORT
        if not out.exists():
            time.sleep(PAUSES[batch_size, workers])
            out.mkdir(parents=True)
        time.sleep(0.01)
        texts = answers(batch_size, workers)
        columns = {"task": "t", "doc_id": range(len(texts)), "answer": texts, "prediction": "A", "correct": True}
        return Evaluation({}, pd.DataFrame({**columns, "failure": "", "seconds": 0.001}))

    return evaluate


def test_evaluations_are_compared_and_their_seconds_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = {1: ["a", "b", "c", "d"], 32: ["a", "b", "x", "d"]}
    monkeypatch.setattr(evaluating, "evaluate", pretend(lambda batch, workers: answers[batch]))
    found = evaluations(tmp_path, tmp_path, tmp_path / "work", 8, Rounds(2, 0))
    assert [m.variant for m in found.measurements] == [*map(str, WAYS), ALONE]
    assert {m.what for m in found.measurements} == {"4 questions, 8 frames, 3 tokens"}
    rates = [m.value for m in found.measurements]
    assert rates == sorted(rates)
    assert (found.samples, found.differing) == (4, 1)
    shares = found.shares
    assert shares.index.tolist() == [str(way) for way in WAYS]
    assert (shares["all"] - shares.drop(columns="all").sum(axis=1)).abs().max() < 1e-9
    assert shares.loc[str(SERIAL), "answering"] == pytest.approx(0.004)
    assert 0.01 <= shares["lmms_eval"].iloc[0] < 0.05
    ratio, own, differing = found.sentences
    assert f"{rates[3] / rates[0]:.2f} x the samples per second" in ratio
    assert "lmms-eval itself takes 0.0 s" in own
    assert differing == "1 of 4 answers differ between batch 1 and batch 32."


def test_decoding_ahead_must_not_change_an_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluating, "evaluate", pretend(lambda batch, workers: [f"{workers}"]))
    with pytest.raises(RuntimeError, match="decoding ahead changed answers at batch 32"):
        evaluations(tmp_path, tmp_path, tmp_path / "work", 8, ONCE)


@pytest.mark.slow
def test_real_evaluations(tmp_path: Path) -> None:
    found = evaluations(tiny_checkpoint(), small_suite(), tmp_path, 8, ONCE)
    assert len(found.measurements) == len(WAYS) + 1
    assert found.samples == 104
    assert found.measurements[3].value > found.measurements[0].value


# -------------------------------------------------------------------------------------------------- the verb


def test_bench_prints_its_tables_and_writes_its_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [measurement("old", 6.0), measurement("new", 2.0), measurement(str(SERIAL), 3.0, "samples/s")]
    shares = pd.DataFrame([[4.0, 2.0, 1.0, 1.0]], [str(BEST)], ["all", "answering", "waiting", "lmms_eval"])
    made = bench.Bench(rows, Evaluations(rows, shares, 12, 0))
    monkeypatch.setattr(bench, "run", lambda settings, work, progress: made)
    threads = torch.get_num_threads()
    overrides = [f"results_dir={tmp_path}"]
    bench.bench(compose(overrides, root=PROFILE), overrides)
    assert torch.get_num_threads() == threads
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines()[:-1])) <= bench.WIDTH  # the last names the file
    assert f"12 questions, 128 frames, answers of {SHORT} tokens" in printed
    written = pd.read_csv(tmp_path / "bench.csv")
    assert written["variant"].tolist() == ["old", "new", str(SERIAL)]
    for column in ("device", "torch_version", "av_version", "lmms_eval_version", "threads", "code_commit", "rounds"):
        assert column in written
    assert written["quartile_3"].tolist() == pytest.approx([6.6, 2.2, 3.3])


def test_a_setting_that_changes_nothing_is_refused() -> None:
    for text in ("device=cuda", "frames=[1]", "encoder=tiny"):
        with pytest.raises(UserError, match="changes nothing: the bench's sizes are fixed; it takes rounds, "):
            bench.bench(compose([text], root=PROFILE), [text])


def test_every_part_gets_its_share_of_the_time() -> None:
    settings = compose(["rounds=4", "seconds=1000", "warmup=2"], root=PROFILE)
    parts = [bench._rounds(settings, part) for part in bench.SHARES]
    assert sum(part.seconds for part in parts) == pytest.approx(bench.LIMIT_S)
    assert {(part.measured, part.warmup) for part in parts} == {(4, 2)}
    assert as_frame([measurement("old", 6.0)])["unit"].tolist() == [MS]
