"""The tokenizer and the stream of training questions: what is trained on is what lmms-eval will ask."""

import random
from functools import cache

import numpy as np
import pandas as pd
import pytest
from tiny import small_suite
from transformers import PreTrainedTokenizerBase

from architectures import SlowFastForConditionalGeneration, SlowFastProcessor
from harness.benchmarks import BENCHMARKS
from harness.compose import compose
from harness.mini.questions import FAMILIES, Question
from harness.mini.schema import packaged_doc_to_text
from harness.mini.stream import TEXT_ONLY, QuestionStream, suite_tokenizer
from harness.mini.suite import load_index
from harness.mini.tokenizer import END, LETTERS, START, UNKNOWN, build_tokenizer
from harness.mini.world import draw_clip
from harness.models import model_config

FRAMES = 16


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return suite_tokenizer()


@pytest.fixture(scope="module")
def stream(tokenizer: PreTrainedTokenizerBase) -> QuestionStream:
    return QuestionStream(tokenizer)


@pytest.fixture(scope="module")
def processor(tokenizer: PreTrainedTokenizerBase) -> SlowFastProcessor:
    """The processor of a model as the base stage saves it."""
    config = model_config(compose(["scale=test", "architecture=self_attention"]), tokenizer)
    return SlowFastProcessor.for_model(config, SlowFastForConditionalGeneration(config).encoder, tokenizer)


@cache
def asked() -> list[tuple[str, Question, str]]:
    """Every question of the small suite: (benchmark, question, lmms-eval's prompt of the document)."""
    index = load_index(small_suite())
    documents = {task: stored(task) for task in index["task"].unique()}
    return [
        (
            row.benchmark,
            Question(row.family, row.question, tuple(row.options), LETTERS.index(row.answer)),
            packaged_doc_to_text(row.task)(documents[row.task][row.doc_id]),
        )
        for row in index.itertuples()
    ]


def stored(task: str) -> list[dict]:
    """A task's documents, as they stand in the suite's parquet file."""
    (benchmark,) = (b for b in BENCHMARKS.values() if task in b.tasks)
    folder = small_suite() / "hub" / benchmark.hub / (benchmark.config_of(task) or "default")
    (path,) = folder.glob("*.parquet")
    return [
        {key: value.tolist() if isinstance(value, np.ndarray) else value for key, value in doc.items()}
        for doc in pd.read_parquet(path).to_dict("records")
    ]


def test_no_prompt_of_a_suite_holds_an_unknown_word(processor: SlowFastProcessor) -> None:
    unknown = processor.tokenizer.convert_tokens_to_ids(UNKNOWN)
    assert len(asked()) == 104
    for _, question, prompt in asked():
        (ids,) = processor(text=[prompt], n_frames=FRAMES)["input_ids"].tolist()
        assert unknown not in ids, prompt
        assert unknown not in processor.tokenizer(question.word)["input_ids"]
    assert unknown in processor.tokenizer("platypus")["input_ids"]  # it can be told


def test_training_sees_lmms_evals_own_prompt_and_then_the_answer(
    stream: QuestionStream, processor: SlowFastProcessor
) -> None:
    names = stream.tokenizer.convert_ids_to_tokens
    for benchmark, question, prompt in asked():
        (template,) = (
            t
            for t in stream.templates[question.family]
            if (t.benchmark, t.n_options) == (benchmark, len(question.options))
        )
        assert template.render(question) == prompt
        (branch,) = stream.branches([(question.family, question, template.render(question))])
        video = [processor.tokenizer.convert_tokens_to_ids("<video>")] * processor.fast_token_count(FRAMES)
        prefix = stream.tokenizer(f"{START}user")["input_ids"]
        (ids,) = processor(text=[prompt], n_frames=FRAMES)["input_ids"].tolist()
        assert [*prefix, *video, *branch.ids[:-3]] == ids
        assert names(branch.ids[-3:]) == [question.word, LETTERS[question.answer], END]


def test_the_answers_letter_is_the_one_before_its_word_in_the_prompt(stream: QuestionStream) -> None:
    """Read off the prompt's own tokens, whatever the question says of itself."""
    names = stream.tokenizer.convert_ids_to_tokens
    for _, question, prompt in asked():
        (branch,) = stream.branches([(question.family, question, prompt)])
        *tokens, word, letter, _ = names(branch.ids)
        offered = tokens[branch.question_end + 1 :]
        assert offered[offered.index(word) - 1] == letter
        assert offered.count(word) == 1


def test_the_questions_end_is_its_last_word(stream: QuestionStream) -> None:
    rng = random.Random(0)
    clip = draw_clip(5_000_000, 0)
    drawn = [stream.draw(rng, clip, family) for family in (*FAMILIES, TEXT_ONLY) for _ in range(40)]
    assert {template for _, _, template in drawn if not template.startswith(drawn[0][1].text)}
    for (_, question, _), branch in zip(drawn, stream.branches(drawn), strict=True):
        told = stream.tokenizer.convert_ids_to_tokens(branch.ids)
        words = question.text.rstrip("?").split()
        assert told[branch.question_end - len(words) + 1 : branch.question_end + 1] == words
        assert told[branch.question_end + 1] not in words


def test_a_question_that_is_not_in_its_prompt_is_an_error(stream: QuestionStream) -> None:
    with pytest.raises(ValueError, match="does not stand in its own prompt"):
        stream.end_of("Where is the ladder?", stream.tokenizer("Where is the plus?")["input_ids"])


def test_options_are_told_apart_from_letters_however_they_are_punctuated(stream: QuestionStream) -> None:
    ways = [stream.tokenizer(text)["input_ids"] for text in ("A. red", "(A) red", "A red", "A: red\n")]
    assert ways == [stream.tokenizer.convert_tokens_to_ids(["A", "red"])] * 4


def test_every_instruction_is_one_token(stream: QuestionStream) -> None:
    for family in FAMILIES:
        for template in stream.templates[family]:
            for text in (template.boilerplate[0], template.boilerplate[-1]):
                words = text.replace("Assistant:", "").split()
                assert len(stream.tokenizer(text)["input_ids"]) <= max(1, len(words) // 4), text


def test_the_same_texts_in_any_order_give_the_same_tokenizer() -> None:
    texts = ["What colour is the plus?", "red green", "Where is the plus?"]
    rules = ["Answer with the letter.", "Choose one:"]
    first = build_tokenizer(texts, rules)
    second = build_tokenizer(texts[::-1] * 2, rules[::-1])
    other = build_tokenizer(texts[:2], rules)
    saved = [each.backend_tokenizer.to_str() for each in (first, second, other)]
    assert saved[0] == saved[1] != saved[2]
    assert suite_tokenizer().backend_tokenizer.to_str() == suite_tokenizer().backend_tokenizer.to_str()
