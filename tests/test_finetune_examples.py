"""A conversation's tokens are those that evaluation asks with; a loss on answers alone; what is too long is cut so."""

from pathlib import Path

import pytest
from small_models import small_config, small_model, tokenizer
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from architectures import SlowFastProcessor
from architectures.processing import IGNORED, SlowFastVideoProcessor
from harness.finetune.annotations import Example, Medium, Turn
from harness.finetune.examples import TURN_END, ExampleError, Piece, Tokens, fit, tokenize

VIDEO = Medium("video", Path("a.mp4"))
FAST = 7


def byte_level(bos: bool) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer as Qwen2's, trained on these tests' own words; with `bos`, sequences begin with one.

    It has no `<video>`.
    """
    bare = Tokenizer(models.BPE())
    bare.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    specials = ["<|pad|>", "<|bos|>", "<|im_start|>", TURN_END]
    texts = ["user assistant system\n What colour is the ball? red green A. B. It is red, one two three"] * 3
    trainer = trainers.BpeTrainer(
        vocab_size=330, special_tokens=specials, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    bare.train_from_iterator(texts, trainer)
    if bos:
        bare.post_processor = processors.TemplateProcessing(
            single="<|bos|> $A", special_tokens=[("<|bos|>", bare.token_to_id("<|bos|>"))]
        )
    return PreTrainedTokenizerFast(tokenizer_object=bare, pad_token="<|pad|>", eos_token=TURN_END)


TOKENIZERS = {
    "words": tokenizer,
    "bytes": lambda: byte_level(bos=False),
    "bytes after a beginning": lambda: byte_level(bos=True),
}


def processor(name: str, system: str | None = None) -> SlowFastProcessor:
    """A processor of one of the tokenizers; where that has no `<video>`, its placeholder is beyond the vocabulary."""
    own = TOKENIZERS[name]()
    known = own.convert_tokens_to_ids("<video>") if name == "words" else None
    return SlowFastProcessor(
        SlowFastVideoProcessor(),
        own,
        compressor=small_config().compressor,
        video_token_id=known if known is not None else len(own) + 5,
        system=system,
    )


def example(*said: str, media: int = 1, system: str | None = None) -> Example:
    """Questions and answers in turn."""
    pairs = zip(said[::2], said[1::2], strict=True)
    return Example(tuple(Turn(*pair) for pair in pairs), (VIDEO,) * media, system, "test.json, entry 0")


def asked(tokens: Tokens, place: int) -> list[int]:
    """All tokens before answer number `place`."""
    before = [token for piece in tokens.pieces[:place] for token in piece.ids]
    return before + tokens.pieces[place].prompt


@pytest.mark.parametrize("system", [None, "Be short"])
@pytest.mark.parametrize("name", list(TOKENIZERS))
@pytest.mark.parametrize("question", ["What colour is the ball?", "\nred\n", "red A.\n B.\n", " one"])
def test_the_question_is_what_the_processor_asks_at_evaluation(question: str, name: str, system: str | None) -> None:
    """Placeholders spread included: the very `input_ids` of a call."""
    ours = processor(name, system)
    frames = 12
    fast = ours.fast_token_count(frames)
    ids, labels = tokenize(example(f"<video>\n{question}", "red"), ours).spread(ours.placeholder(), [fast])
    wanted = ours(text=[question], n_frames=frames)["input_ids"][0].tolist()
    assert ids[: len(wanted)] == wanted
    assert set(labels[: len(wanted)]) == {IGNORED}
    assert ids.count(ours.placeholder()) == fast
    answer = ours.tokenizer("red" + TURN_END, add_special_tokens=False)["input_ids"]
    assert ids[len(wanted) :] == labels[len(wanted) :] == answer


@pytest.mark.parametrize("name", list(TOKENIZERS))
def test_two_videos_and_none_are_asked_alike(name: str) -> None:
    ours = processor(name)
    two = tokenize(example("<video> or <video>", "one", media=2), ours).spread(ours.placeholder(), [3, 5])[0]
    single = [ours.fast_token_count(n) for n in (1, 9)]
    wanted = ours(text=["<video> or <video>"], n_frames=[[1, 9]])["input_ids"][0].tolist()
    again = tokenize(example("<video> or <video>", "one", media=2), ours).spread(ours.placeholder(), single)[0]
    assert again[: len(wanted)] == wanted
    assert len(again) - len(two) == sum(single) - 8
    none = tokenize(example("What colour", "red", media=0), ours)
    assert asked(none, 0) == ours(text=["What colour"])["input_ids"][0].tolist()


@pytest.mark.parametrize("name", list(TOKENIZERS))
def test_later_turns_continue_the_chat(name: str) -> None:
    """Slow truth: the whole chat written out by hand, and what is learned read back from the labels."""
    ours = processor(name, system="Ignored")
    said = ["<video>\nWhat colour is the ball?", "red green", "one?", "two", "A. <video> B.", "three"]
    tokens = tokenize(example(*said, media=2, system="Be"), ours)
    text = "<|im_start|>system\nBe<|im_end|>\n"
    for question, answer in zip(said[::2], said[1::2], strict=True):
        text += f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n{answer}<|im_end|>\n"
    assert tokens.input_ids == ours.tokenize(text.removesuffix("\n"))
    assert [piece.videos for piece in tokens.pieces] == [1, 0, 1]
    learned = [label for label in tokens.labels if label != IGNORED]
    assert learned == [
        token
        for answer in said[1::2]
        for token in ours.tokenizer(answer + TURN_END, add_special_tokens=False)["input_ids"]
    ]
    assert tokens.labels.count(learned[-1]) == 3, "the end of each answer is learned, that of a question is not"
    assert all(label in (IGNORED, token) for label, token in zip(tokens.labels, tokens.input_ids, strict=True))


def slow_fit(turns: list[tuple[int, int, int]], fast: int, room: int) -> list[int] | None:
    """Tokens left of each answer, by dropping one token after the other; `turns` are (prompt, answer, videos)."""
    left = [answer for _, answer, _ in turns]
    prompts = [prompt + videos * (fast - 1) for prompt, _, videos in turns]

    def total() -> int:
        return sum(left) + sum(prompts[: len(left)])

    while total() > room:
        if len(left) > 1 and not turns[len(left) - 1][2]:
            left.pop()
        elif left[-1] > 1:
            left[-1] -= 1
        else:
            return None
    return left


@pytest.mark.parametrize(
    "turns", [[(5, 4, 1)], [(5, 4, 1), (3, 2, 0), (3, 6, 0)], [(4, 3, 1), (3, 2, 1), (2, 5, 0)], [(3, 5, 0)]]
)
def test_turns_go_from_the_end_and_then_the_answers_tail(turns: list[tuple[int, int, int]]) -> None:
    tokens = piecewise(turns)
    videos = sum(shown for *_, shown in turns)
    whole = len(tokens.input_ids) + videos * (FAST - 1)
    for room in range(1, whole + 3):
        wanted = slow_fit(turns, FAST, room)
        if wanted is None:
            with pytest.raises(ExampleError, match=rf"here: .*max_length={room}$"):
                fit(tokens, [FAST] * videos, room, "here")
            continue
        kept = fit(tokens, [FAST] * videos, room, "here")
        assert [len(piece.answer) for piece in kept.pieces] == wanted
        for piece, before in zip(kept.pieces, tokens.pieces, strict=False):
            assert (piece.prompt, piece.videos) == (before.prompt, before.videos)
            assert piece.answer == before.answer[: len(piece.answer)]
        assert len(kept.spread(-1, [FAST] * videos)[0]) <= room
    assert fit(tokens, [FAST] * videos, None) == tokens


def piecewise(turns: list[tuple[int, int, int]]) -> Tokens:
    """A conversation of numbered tokens; a placeholder is -1."""
    number, pieces = iter(range(1000)), []
    for prompt, answer, videos in turns:
        ids = [-1] * videos + [next(number) for _ in range(prompt - videos)]
        pieces.append(Piece(ids, [next(number) for _ in range(answer)], videos))
    return Tokens(tuple(pieces))


def test_the_models_own_processor_makes_the_same_tokens() -> None:
    model = small_model()
    ours = SlowFastProcessor.for_model(model.config, model.encoder, tokenizer())
    same: PreTrainedTokenizerBase = ours.tokenizer
    ids = tokenize(example("<video>\nWhat colour is the ball", "red"), ours).input_ids
    words = "<|im_start|> user <video> What colour is the ball <|im_end|> <|im_start|> assistant red <|im_end|>"
    assert same.convert_ids_to_tokens(ids) == words.split()
