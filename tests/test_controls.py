"""Controls against slow truth: each question asked alone, attention by hand, and what a control must leave alone."""

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from small_models import prompt, small_model, video
from test_plugin import FRAMES, answers, plugin, requests_for, tiny_model
from tiny import tiny_checkpoint

from architectures import SlowFastForConditionalGeneration
from harness import lmms_plugin
from harness.benchmarks import benchmark_of_task
from harness.controls import CONTROLS, OtherQuestion, before_question, control_of, query_by_companions, shuffled_order
from harness.errors import UserError
from harness.lmms_requests import Question, read_questions, with_companions
from harness.settings import Control
from harness.video import read_frames

ABOUT_SLOW = [name for name, control in CONTROLS.items() if control.about_slow_tokens]


def questions_of(*tasks: str) -> dict[tuple[str, int], Question]:
    return read_questions(*requests_for(tasks or ["videomme"]))


@cache
def plain() -> dict:
    """The answers without a control."""
    return answers(plugin())


@cache
def closed() -> dict:
    """The answers without the slow tokens."""
    return answers(plugin(control="gate_closed"))


def test_the_command_line_offers_every_control() -> None:
    assert [control.value for control in Control] == [control.name for control in Control] == list(CONTROLS)
    for name, control in CONTROLS.items():
        assert control_of(name).name == name
        assert vars(control)["__doc__"]  # its own, not the base's
    with pytest.raises(UserError, match="unknown control 'open': use one of none, gate_closed, other_video, shuffled"):
        control_of("open")


@pytest.mark.parametrize("control", ABOUT_SLOW)
def test_a_control_of_slow_tokens_needs_a_slow_path(control: str) -> None:
    with pytest.raises(UserError, match=f"control={control}: the model in .* has no slow path; use control=none"):
        plugin(pretrained=tiny_checkpoint(placement="none"), control=control)


# ------------------------------------------------------------------------------------------- shuffled, blank


@pytest.mark.slow
def test_shuffled_slow_tokens_against_questions_asked_alone() -> None:
    """Alone: the model is given as slow features those of the video's frames in the shuffled order."""
    model, processor = tiny_model()
    alone = {}
    for key, question in list(questions_of().items())[::2]:
        seen = read_frames(question.path, FRAMES)
        inputs = dict(processor(text=[question.prompt], videos=[seen.frames_THWC], times=[seen.times_T]))
        order_T = shuffled_order(question.path.name, FRAMES).numpy()
        shown = processor.watchable([seen.frames_THWC[order_T]], [seen.times_T])["frames"]
        inputs["slow_features"] = model.encode_video(shown)
        with torch.no_grad():
            ids = model.generate(**inputs, max_new_tokens=question.max_new_tokens, do_sample=False)
        alone[key] = processor.tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    answered = answers(plugin(control="shuffled"))
    assert {key: answered[key] for key in alone} == {key: text.strip() for key, text in alone.items()}
    assert answered != plain()


def test_an_order_is_the_videos_own() -> None:
    orders = {name: shuffled_order(name, FRAMES).tolist() for name in ("a.mp4", "b.mp4", "c.mp4")}
    assert all(sorted(order) == list(range(FRAMES)) for order in orders.values())
    assert len(set(map(tuple, orders.values()))) == 3
    assert orders == {name: shuffled_order(name, FRAMES).tolist() for name in orders}
    assert all(shuffled_order(f"{number}.mp4", 2).tolist() == [1, 0] for number in range(20))  # never left in place


def test_a_single_frame_cannot_be_shuffled() -> None:
    with pytest.raises(UserError, match="control=shuffled: a single frame has no order"):
        plugin(control="shuffled", frames=1)


@pytest.mark.parametrize("placement", ["every", "none"])
def test_blank_video_against_a_grey_clip(placement: str) -> None:
    """As if each clip were mid-grey; so two questions of one wording have one answer. It needs no slow path."""
    folder = tiny_checkpoint(placement=placement)
    blank = plugin(pretrained=folder, control="blank_video")
    answered = answers(blank)
    model, processor, questions = blank.model, blank.processor, questions_of()
    grey_THWC = np.full((FRAMES, 96, 160, 3), 128, np.uint8)  # of any size
    for key, question in list(questions.items())[:4]:
        inputs = processor(text=[question.prompt], videos=[grey_THWC], times=[np.linspace(0, 1, FRAMES)])
        ids = model.generate(**inputs, max_new_tokens=question.max_new_tokens, do_sample=False)
        new_ids = ids[0, inputs["input_ids"].shape[1] :]
        assert answered[key] == processor.tokenizer.decode(new_ids, skip_special_tokens=True).strip()
    assert answered != plain()


# ------------------------------------------------------------------------------------------- other question


def test_companions_by_hand() -> None:
    tasks = ["videomme", "longvideobench_val_v", "mvbench_action_antonym", "mvbench_state_change"]
    questions = questions_of(*tasks)
    paired = with_companions(questions, lambda text: len(text.split()))
    backwards = dict(reversed(questions.items()))
    assert paired == with_companions(backwards, lambda text: len(text.split()))
    assert {key: replace(question, companion="") for key, question in paired.items()} == questions
    for question in paired.values():
        name = benchmark_of_task(question.task).name
        others = {q.prompt for q in questions.values() if benchmark_of_task(q.task).name == name} - {question.prompt}
        assert question.companion in others
        n, words = len(question.prompt.split()), set(question.prompt.split())
        alike = [text for text in others if len(text.split()) == n]
        if alike:
            assert len(question.companion.split()) == n
            shared = min(len(words & set(text.split())) for text in alike)
            assert len(words & set(question.companion.split())) == shared
        else:
            nearest = min(abs(len(text.split()) - n) for text in others)
            assert abs(len(question.companion.split()) - n) == nearest


def test_a_companion_of_another_length_is_rather_longer() -> None:
    first = next(iter(questions_of().values()))
    texts = ["a b c", "d e", "f g h i", "a b"]
    questions = {("videomme", i): replace(first, doc_id=i, prompt=text) for i, text in enumerate(texts)}
    paired = with_companions(questions, lambda text: len(text.split()))
    assert [question.companion for question in paired.values()] == ["f g h i", "a b", "a b c", "d e"]
    with pytest.raises(UserError, match="control=other_question: videomme has a single prompt here"):
        with_companions({("videomme", 0): first}, len)


def test_its_own_question_as_companion_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    itself = lambda questions, n_tokens: {k: replace(q, companion=q.prompt) for k, q in questions.items()}  # noqa: E731
    assert answers(plugin(control="other_question")) != plain()
    monkeypatch.setattr(lmms_plugin, "with_companions", itself)
    assert answers(plugin(control="other_question")) == plain()


def test_with_closed_gates_nobody_asks() -> None:
    model = plugin(control="other_question")
    model.model.close_gates_()
    assert answers(model) == closed()


FUSIONS = {
    "slow_fast": (),
    "own_queries": ("fusion.query=own",),
    "hyper_attention": ("fusion=hyper_attention", "gate=sigmoid"),
}


def recorded(model: SlowFastForConditionalGeneration, inputs: dict[str, Any]) -> tuple[Any, dict[int, list]]:
    """What a model answers, and what each of its fusions was called with."""
    calls: dict[int, list] = {fusion.layer_index: [] for _, fusion in model.hybrid()}
    hooks = [
        fusion.register_forward_pre_hook(lambda fusion, args: calls[fusion.layer_index].append(args))
        for _, fusion in model.hybrid()
    ]
    outputs = model(**inputs)
    for hook in hooks:
        hook.remove()
    return outputs, calls


def crossed_by_hand(fusion: Any, args: tuple, companion_args: tuple) -> torch.Tensor:
    """The fusion's result for one row, its readers' queries being those of the companion, aligned at the right."""
    attended_BLQE, _, memory, readers, scaling, _ = args
    _, query_BQLE, _, _, _, input_BLD = companion_args
    (key_KSE, value_KSE) = (tensor[0] for tensor in memory.shelves[0][fusion.layer_index].chunks[0])
    shift = query_BQLE.shape[2] - attended_BLQE.shape[1]
    result_BLQE = attended_BLQE.clone()
    for place in readers.shelves[0].place_GN[0].tolist():
        if getattr(fusion, "q_proj", None) is None:
            query_QE = query_BQLE[0, :, place + shift]
        else:
            query_QE = fusion.q_proj(input_BLD[0, place + shift]).unflatten(-1, (-1, fusion.head_dim))
        attended_QE = attended_BLQE[0, place]
        crossed_QE = torch.empty_like(attended_QE)
        for head in range(fusion.heads):
            key_head = head * fusion.key_heads // fusion.heads
            scores_S = key_KSE[key_head] @ query_QE[head] * (scaling or fusion.head_dim**-0.5)
            crossed_QE[head] = scores_S.softmax(0) @ value_KSE[key_head]
        gate = fusion.gate(attended_QE[None, None])[0, 0]
        mixed = crossed_QE - attended_QE if type(fusion).__name__ == "HyperAttentionFusion" else crossed_QE
        result_BLQE[0, place] = attended_QE + gate * mixed
    return result_BLQE


def read_by_hand(
    model: SlowFastForConditionalGeneration, inputs: dict[str, Any], asked: dict[int, list], patch: pytest.MonkeyPatch
) -> Any:
    """The own row alone, its cross-attention by hand with the recorded queries of its companion."""
    with patch.context() as patched:
        for _, fusion in model.hybrid():
            (companion,) = asked[fusion.layer_index]

            def forward(*args: Any, fusion: Any = fusion, companion: tuple = companion) -> torch.Tensor:
                return crossed_by_hand(fusion, args, companion)

            patched.setattr(fusion, "forward", forward)
        return model(**inputs)


@pytest.mark.parametrize("companion", ["two three left right up", "up two three left right down"])
@pytest.mark.parametrize("kind", FUSIONS)
@torch.no_grad()
def test_slow_tokens_are_read_with_the_companions_queries(
    kind: str, companion: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At prefill and at a decoded token, of a companion as long as the question and of a longer one."""
    model = small_model("architecture=slow_fast", *FUSIONS[kind])
    seen, ids = video(model), [prompt(model), prompt(model, companion)]
    together = {name: torch.cat([tensor, tensor]) for name, tensor in seen.items()}
    longest = max(row.shape[1] for row in ids)
    rows = [torch.nn.functional.pad(row, (longest - row.shape[1], 0)) for row in ids]
    mask = torch.cat([(torch.arange(longest) >= longest - row.shape[1])[None].long() for row in ids])
    control = OtherQuestion()
    control.prepare(model, None, 0)
    with control.asking(model):
        outputs = model(input_ids=torch.cat(rows), attention_mask=mask, **together)
        following = torch.tensor([[7], [9]])
        mask = torch.cat([mask, torch.ones(2, 1, dtype=torch.long)], dim=1)
        later = model(input_ids=following, attention_mask=mask, past_key_values=outputs.past_key_values)
    plain, asked = recorded(model, {"input_ids": ids[1], **seen})
    plain_later, asked_later = recorded(model, {"input_ids": following[1:], "past_key_values": plain.past_key_values})
    own = read_by_hand(model, {"input_ids": ids[0], **seen}, asked, monkeypatch)
    own_later = read_by_hand(
        model, {"input_ids": following[:1], "past_key_values": own.past_key_values}, asked_later, monkeypatch
    )
    for got, expected in (
        (outputs.logits[0, -ids[0].shape[1] :], own.logits[0]),
        (outputs.logits[1, -ids[1].shape[1] :], plain.logits[0]),  # the companion itself is asked as ever
        (later.logits[0], own_later.logits[0]),
        (later.logits[1], plain_later.logits[0]),
    ):
        torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-4)
    unasked = model(input_ids=ids[0], **seen)
    assert (own.logits - unasked.logits).abs().max() > 1e-2  # else nothing was shown


def test_hooks_are_there_while_asking_only(monkeypatch: pytest.MonkeyPatch) -> None:
    model = plugin(control="other_question")
    counts = []

    def generate(**inputs: Any) -> None:
        counts.append([len(fusion._forward_pre_hooks) for _, fusion in model.model.hybrid()])
        raise RuntimeError("out of memory")

    monkeypatch.setattr(model.model, "generate", generate)
    with pytest.raises(RuntimeError, match="out of memory"):
        answers(model)
    hybrid = model.model.hybrid()
    assert counts == [[1] * len(hybrid)]
    assert not any(fusion._forward_pre_hooks for _, fusion in hybrid)


def test_a_fusion_that_makes_its_own_queries_is_refused() -> None:
    model = small_model("architecture=slow_fast", "fusion=gated_block", "gate=static_tanh")
    with pytest.raises(UserError, match="control=other_question: GatedBlockFusion makes its queries within"):
        OtherQuestion().prepare(model, None, 8)


def test_rows_of_a_hook_by_hand() -> None:
    rows = torch.arange(4.0)
    hooked = query_by_companions(None, (rows, rows * 10, "memory", "readers", 0.5, None))
    assert hooked[1].tolist() == [20.0, 30.0, 20.0, 30.0]
    assert (hooked[0].tolist(), *hooked[2:]) == ([0.0, 1.0, 2.0, 3.0], "memory", "readers", 0.5, None)


# ------------------------------------------------------------------------------------------- non-question


def greedy_without_question(question: Question) -> str:
    """Alone, token by token, only the text before the video being allowed to read: by `may_read`, not the scope."""
    model, processor = tiny_model()
    seen = read_frames(question.path, FRAMES)
    inputs = dict(processor(text=[question.prompt], videos=[seen.frames_THWC], times=[seen.times_T]))
    ids = inputs["input_ids"][0].tolist()
    may_read = torch.tensor([[place < ids.index(model.config.video_token_id) for place in range(len(ids))]])
    assert may_read.any()
    cache, new = None, []
    while len(new) < question.max_new_tokens:
        outputs = model(**inputs, may_read=may_read, past_key_values=cache, use_cache=True)
        logits_V = outputs.logits[0, -1].clone()
        logits_V[model.config.video_token_id] = -torch.inf
        new.append(int(logits_V.argmax()))
        if new[-1] == model.config.text_config.eos_token_id:
            break
        inputs, cache, may_read = {"input_ids": torch.tensor([new[-1:]])}, outputs.past_key_values, torch.tensor(False)
    return processor.tokenizer.decode(new, skip_special_tokens=True).strip()


@torch.no_grad()
def test_non_question_against_questions_asked_alone() -> None:
    model = plugin(control="non_question")
    answered = answers(model)
    some = list(questions_of().items())[::3]
    assert {key: answered[key] for key, _ in some} == {k: greedy_without_question(q) for k, q in some}
    assert answered != plain()
    assert answered != closed()


def test_what_reads_before_the_question() -> None:
    row = "ptvvtvtp"  # padding, text, video, ...
    is_video_BL, is_padding_BL = (torch.tensor([[kind == letter for kind in row]]) for letter in "vp")
    for name, reading in {"text_only": "-t------", "all_tokens": "-tvv-v--", "text_after_video": "--------"}.items():
        scope = before_question(small_model("architecture=slow_fast", f"scope={name}").scope)
        reads_L = scope(is_video_BL, is_padding_BL)[0].tolist()
        assert "".join(kind if reads else "-" for kind, reads in zip(row, reads_L, strict=True)) == reading


def test_where_nothing_may_read_before_the_question_is_an_error() -> None:
    model = small_model("architecture=slow_fast", "scope=text_after_video")
    with pytest.raises(UserError, match="scope text_after_video lets nothing before the question read"):
        control_of("non_question").prepare(model, None, 8)
