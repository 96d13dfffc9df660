"""Tokenizers made from a word list, for bases that are not pretrained.

Both need nothing downloaded and tokenize any English text: a word of `words.txt` is one token, any
other text falls back on its characters.
"""

import itertools
import string
from pathlib import Path
from typing import Any

_SPACE = "▁"  # SentencePiece's sign for a preceding space
_WORD_END = "</w>"  # CLIP's sign for the end of a word
_CLIP_SPECIAL = ("<|startoftext|>", "<|endoftext|>")
_T5_SPECIAL = ("<pad>", "</s>", "<unk>")


def everyday_words() -> list[str]:
    """The word list, sorted: everyday objects, their parts, colours, materials and shapes."""
    return (Path(__file__).parent / "words.txt").read_text().split()


def make_clip_tokenizer(words: list[str], max_length: int) -> Any:
    """A `CLIPTokenizer` (byte-level BPE) in which each of the lower-case words is one token."""
    from tokenizers import pre_tokenizers
    from transformers import CLIPTokenizer

    merges = _byte_pairs(words)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*_CLIP_SPECIAL, *alphabet, *(letter + _WORD_END for letter in alphabet)]
    tokens += ["".join(pair) for pair in merges]
    vocabulary = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=max_length)


def _byte_pairs(words: list[str]) -> list[tuple[str, str]]:
    """Merges, in order of precedence, that make one token of every word.

    Each word adds the merges it still needs. They come after all earlier ones, so no earlier word
    is split differently. (The `tokenizers` trainer breaks ties by hash order, which differs from
    run to run.)
    """
    ranks: dict[tuple[str, str], int] = {}
    for word in words:
        parts = [*word[:-1], word[-1] + _WORD_END]
        while len(parts) > 1:
            pairs = list(itertools.pairwise(parts))
            at = min(range(len(pairs)), key=lambda i: (ranks.get(pairs[i], len(ranks)), i))
            ranks.setdefault(pairs[at], len(ranks))
            parts[at : at + 2] = ["".join(pairs[at])]
    return list(ranks)


def make_t5_tokenizer(words: list[str], max_length: int) -> Any:
    """A `T5TokenizerFast` (Unigram) in which a word is one token, capitalized or not.

    A Unigram model takes the split with the highest total score. The scores are set by hand, so
    that a whole word beats every way of splitting it; trained scores on so small a list split
    plain words ("re d").
    """
    from transformers import T5TokenizerFast

    whole = [*words, *(word.capitalize() for word in words), *string.digits]
    inside = [word for word in words if len(word) > 1]  # "four-legged", "tabletop"
    characters = [_SPACE, *string.digits, *string.ascii_letters, *string.punctuation]
    scored = dict.fromkeys(_T5_SPECIAL, 0.0)
    scored |= {_SPACE + word: -1.0 for word in whole}
    scored |= dict.fromkeys(inside, -4.0)
    scored |= dict.fromkeys(characters, -10.0)
    return T5TokenizerFast(vocab=list(scored.items()), extra_ids=0, model_max_length=max_length)
