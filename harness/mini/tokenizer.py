"""A word-level ChatML tokenizer made from the suite's own texts.

Two choices keep prompts short enough to train on a laptop: punctuation and line breaks are dropped (so that
"A.", "(A)" and "A" are one token), and each fixed instruction of a benchmark's prompt is one token. What varies,
the question and its options, is one token per word.
"""

from collections.abc import Iterable

from tokenizers import AddedToken, Regex, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.normalizers import Replace, Sequence, Strip
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast

from architectures.processing import VIDEO_TOKEN

PAD, UNKNOWN, START, END = "<|pad|>", "<|unknown|>", "<|im_start|>", "<|im_end|>"
ROLES = ("user", "assistant")
LETTERS = ("A", "B", "C", "D", "E")


def build_tokenizer(texts: Iterable[str], instructions: Iterable[str]) -> PreTrainedTokenizerFast:
    """A tokenizer that knows every word of `texts` and holds each of `instructions` as a single token.

    The same texts in any order give the same tokenizer. A word it was not built with becomes `<|unknown|>`.
    """
    normalizer = Sequence([Replace(Regex(r"[().,:;?!\n]+"), " "), Replace(Regex(r" {2,}"), " "), Strip()])
    words = sorted({word for text in texts for word in normalizer.normalize_str(text).split()} - set(LETTERS))
    specials = (PAD, VIDEO_TOKEN, UNKNOWN, START, END)
    vocabulary = {word: i for i, word in enumerate((*specials, *ROLES, *LETTERS, *words))}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = WhitespaceSplit()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in specials])
    phrases = sorted({normalizer.normalize_str(text) for text in instructions} - set(vocabulary) - {""})
    tokenizer.add_tokens([AddedToken(phrase, normalized=True) for phrase in phrases])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PAD, unk_token=UNKNOWN, eos_token=END, padding_side="left"
    )
