"""Latency of saved models in turn, as the main table has it."""

import pytest
import torch
from small_models import small_model

from harness.profilers import latency
from harness.profilers.latency import Latency, measure, summary
from harness.profilers.timing import NOT_RUN, Timed


def test_every_checkpoint_gets_its_latency(tmp_path_factory: pytest.TempPathFactory) -> None:
    folders = [tmp_path_factory.mktemp(name) for name in ("self_attention", "slow_fast")]
    for folder in folders:
        small_model(f"architecture={folder.name.rstrip('0123456789')}").save_pretrained(folder)
    found = measure([(folders[0], 4), (folders[0], 64), (folders[1], 64)], repeats=5, warmup=1, new_tokens=2)
    assert len(found) == 3
    for each in found:
        low, high = each.prefill_ms_quartiles
        assert 0 < low <= each.prefill_ms <= high
        low, high = each.decode_ms_quartiles
        assert 0 < low <= each.decode_ms_per_token <= high
    assert found[1].prefill_ms > found[0].prefill_ms  # 64 frames against 4, 276 more tokens


def test_one_thread_and_afterwards_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[int] = []
    monkeypatch.setattr(latency, "interleaved", lambda *_: threads.append(torch.get_num_threads()) or [])
    torch.set_num_threads(2)
    try:
        assert measure([]) == []
        assert threads == [1]
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)


def test_medians_and_quartiles_per_token() -> None:
    timed = Timed(rounds=3)
    timed.seconds["prefill"], timed.seconds["decode"] = [0.003, 0.001, 0.002], [0.08, 0.04, 0.06]
    assert summary(timed, 4) == Latency(
        pytest.approx(2), (pytest.approx(1.5), pytest.approx(2.5)), pytest.approx(15), (12.5, pytest.approx(17.5))
    )


def test_a_model_that_failed_has_no_latency() -> None:
    with pytest.raises(RuntimeError, match="not measured: not run: time budget"):
        summary(Timed(error=NOT_RUN), 4)
