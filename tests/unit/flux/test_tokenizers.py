import re

import pytest

from kiss3d_infer.flux.prompt import t5_prompt
from kiss3d_infer.flux.tokenizers import everyday_words, make_clip_tokenizer, make_t5_tokenizer

WORDS = everyday_words()


@pytest.fixture(scope="module")
def clip():
    return make_clip_tokenizer(WORDS, 77)


@pytest.fixture(scope="module")
def t5():
    return make_t5_tokenizer(WORDS, 64)


def test_the_word_list_is_sorted_and_unique():
    assert sorted(set(WORDS)) == WORDS


def test_every_listed_word_is_one_token(clip, t5):
    assert [word for word in WORDS if len(clip.tokenize(word)) != 1] == []
    assert [word for word in WORDS if len(t5.tokenize(word)) != 1] == []
    assert t5.tokenize("A Chair") == ["▁A", "▁Chair"]


def test_unknown_words_fall_back_on_pieces_and_lose_nothing(clip, t5):
    text = "Zyzzyx's 37-legged tabletop (qwerty)!"
    assert t5.unk_token_id not in t5(text).input_ids
    assert t5.decode(t5(text).input_ids, skip_special_tokens=True) == text
    assert clip.eos_token_id not in clip(text).input_ids[1:-1]


def test_the_prefix_leaves_room_for_a_caption(t5):
    assert len(t5(t5_prompt("")).input_ids) <= 20


def test_words_of_a_toys_caption_are_whole(t5):
    from kiss3d_train.data.sources.toybox import make

    captions = [make(number).caption for number in range(120)]
    words = {word for caption in captions for word in re.findall("[a-z]+", caption)}
    assert words <= set(WORDS)
    prompts = [t5_prompt(caption) for caption in captions]
    assert max(len(t5(prompt).input_ids) for prompt in prompts) <= 64


def test_the_same_words_give_the_same_vocabulary(clip, t5):
    assert make_clip_tokenizer(WORDS, 77).get_vocab() == clip.get_vocab()
    assert make_t5_tokenizer(WORDS, 64).get_vocab() == t5.get_vocab()
