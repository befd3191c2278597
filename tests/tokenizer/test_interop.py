"""Exactness on published vocabularies: the ids of `tiktoken` and of Hugging Face's `tokenizers`, both ways."""

import dataclasses
import functools
import inspect
import unicodedata

import pytest
import regex
from hypothesis import given
from hypothesis import strategies as st

from groundup.files import sha256
from groundup.tokenizer import Tokenizer, formats
from groundup.tokenizer.hugging_face import from_json, to_json
from groundup.tokenizer.pretokenize import PATTERNS, PORTABLE_PATTERNS, Pretokenizer
from groundup.tokenizer.spelling import spell
from groundup.tokenizer.tiktoken_ranks import ENCODINGS
from tests.tokenizer.awkward import FRAGMENTS
from tests.tokenizer.vocabularies import Reference, fuzzed, path_of

tokenizers = pytest.importorskip("tokenizers")
tiktoken = pytest.importorskip("tiktoken")
TEXTS = [*FRAGMENTS, *fuzzed(3000)]


def slow(name):
    return pytest.param(name, marks=pytest.mark.slow)


ENCODING_NAMES = ["r50k_base", slow("p50k_base"), slow("cl100k_base"), slow("o200k_base")]
RANK_FILES = [
    "r50k_base.tiktoken",
    *(slow(f"{name}_base.tiktoken") for name in ("p50k", "cl100k", "o200k")),
]
HUGGING_FACE = [slow("llama3"), slow("qwen2.5")]
ALL = ["gpt2", "smollm2.gguf", *RANK_FILES, *HUGGING_FACE]


@functools.cache
def parts_of(name):
    return formats.load(path_of(name))


@functools.cache
def reference(name):
    return Reference(parts_of(name))


@functools.cache
def published(name):
    """tiktoken's own encoding, with its own pattern and special tokens, over the file that is here."""
    from tiktoken.load import load_tiktoken_bpe
    from tiktoken_ext import openai_public

    path = str(path_of(f"{name}.tiktoken"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TIKTOKEN_CACHE_DIR", "")
        ranks = load_tiktoken_bpe(path)
        patch.setattr(openai_public, "load_tiktoken_bpe", lambda *_, **__: ranks)
        return tiktoken.Encoding(**getattr(openai_public, name)())


@functools.cache
def exported(name):
    """What Hugging Face makes of the file that we write."""
    return tokenizers.Tokenizer.from_str(to_json(parts_of(name)))


def other_ids(other, texts):
    """The ids of texts in which special tokens are ordinary text."""
    other.encode_special_tokens = True
    ids = [encoding.ids for encoding in other.encode_batch(texts, add_special_tokens=False)]
    other.encode_special_tokens = False
    return ids


def changed(one, other, ignored=()):
    """The fields of two Parts that differ: by name, because pytest takes minutes to show large ones."""
    names = (field.name for field in dataclasses.fields(one) if field.name not in ignored)
    return [name for name in names if getattr(one, name) != getattr(other, name)]


def differing(ours, theirs, texts):
    """The first three texts whose ids differ, for a message that can be read."""
    return [case for case in zip(texts, ours, theirs, strict=True) if case[1] != case[2]][:3]


@pytest.mark.parametrize("name", ["r50k_base", "cl100k_base", slow("p50k_base"), slow("o200k_base")])
def test_ranks_give_the_ids_of_tiktoken(name):
    parts, encoding = parts_of(f"{name}.tiktoken"), published(name)
    assert parts.special_tokens == encoding._special_tokens
    ours = [reference(f"{name}.tiktoken").encode(text) for text in TEXTS]
    assert differing(ours, encoding.encode_ordinary_batch(TEXTS), TEXTS) == []


@pytest.mark.parametrize("name", ENCODING_NAMES)
def test_ranks_exported_to_hugging_face_give_the_same_ids(name):
    theirs = other_ids(exported(f"{name}.tiktoken"), TEXTS)
    assert differing(published(name).encode_ordinary_batch(TEXTS), theirs, TEXTS) == []


@pytest.mark.parametrize("name", ENCODING_NAMES)
def test_special_tokens_have_the_ids_of_tiktoken(name):
    encoding, parts = published(name), parts_of(f"{name}.tiktoken")
    text = "a ".join([*parts.special_tokens, ""])
    assert exported(f"{name}.tiktoken").encode(text).ids == encoding.encode(text, allowed_special="all")


@pytest.mark.parametrize("name", HUGGING_FACE)
def test_hugging_face_files_give_the_same_ids(name):
    other = tokenizers.Tokenizer.from_file(str(path_of(name) / "tokenizer.json"))
    ours = [reference(name).encode(text) for text in TEXTS]
    assert differing(ours, other_ids(other, TEXTS), TEXTS) == []
    assert differing(ours, other_ids(exported(name), TEXTS), TEXTS) == []


def test_gpt2_files_give_the_ids_of_tiktoken_and_hugging_face():
    folder = path_of("gpt2")
    other = tokenizers.Tokenizer(
        tokenizers.models.BPE.from_file(str(folder / "vocab.json"), str(folder / "merges.txt"))
    )
    other.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    ours = [reference("gpt2").encode(text) for text in TEXTS]
    assert differing(ours, other_ids(other, TEXTS), TEXTS) == []
    assert differing(ours, published("r50k_base").encode_ordinary_batch(TEXTS), TEXTS) == []
    assert parts_of("gpt2").special_tokens == {"<|endoftext|>": 50256}


@functools.cache
def smollm_by_hugging_face():
    """SmolLM2's tokenizer put together by `tokenizers` from the strings of the GGUF file."""
    parts = parts_of("smollm2.gguf")
    special = {token_id: token for token, token_id in parts.special_tokens.items()}
    vocab = {special.get(token_id) or spell(token): token_id for token_id, token in parts.vocab.items()}
    merges = [(spell(left), spell(right)) for left, right in parts.listed_merges()]
    other = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocab, merges=merges))
    digits = tokenizers.pre_tokenizers.Digits(individual_digits=True)
    byte_level = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    other.pre_tokenizer = tokenizers.pre_tokenizers.Sequence([digits, byte_level])
    other.decoder = tokenizers.decoders.ByteLevel()
    other.add_special_tokens(list(parts.special_tokens))
    return other


def test_smollm2_from_gguf_gives_the_ids_of_hugging_face():
    other, parts = smollm_by_hugging_face(), parts_of("smollm2.gguf")
    assert len(parts.vocab) == 49152
    assert list(parts.special_tokens)[:3] == ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    ours = [reference("smollm2.gguf").encode(text) for text in TEXTS]
    assert differing(ours, other_ids(other, TEXTS), TEXTS) == []
    assert differing(ours, other_ids(exported("smollm2.gguf"), TEXTS), TEXTS) == []


def test_smollm2_written_by_hugging_face_is_read_as_the_same():
    assert changed(from_json(smollm_by_hugging_face().to_str()), parts_of("smollm2.gguf")) == []


def test_bytes_without_a_token_disappear_as_in_hugging_face():
    texts = ["!\x04!", "\x06", "x\U00040000y\U000bffff", "a\x13\x14 th\x16e"]
    ours = [reference("smollm2.gguf").encode(text) for text in texts]
    assert ours == other_ids(smollm_by_hugging_face(), texts)
    assert ours[0] == reference("smollm2.gguf").encode("!!")


@pytest.mark.parametrize("name", ALL)
def test_what_we_write_we_read_back(name, tmp_path):
    parts = parts_of(name)
    formats.export(parts, tmp_path, "hugging-face")
    again = formats.load(tmp_path)
    assert changed(again, parts, ignored=("merges",)) == []
    same_merges = again.merges == parts.listed_merges()
    assert same_merges


@pytest.mark.parametrize("name", RANK_FILES)
def test_a_rank_file_comes_back_byte_for_byte(name, tmp_path):
    formats.export(parts_of(name), tmp_path / "out", "tiktoken")
    assert sha256(tmp_path / "out") == sha256(path_of(name))


@pytest.mark.slow
def test_gpt2_files_and_r50k_ranks_are_each_other_exported(tmp_path):
    formats.export(parts_of("gpt2"), tmp_path / "ranks", "tiktoken")
    assert ENCODINGS[sha256(tmp_path / "ranks")].name == "r50k_base"
    formats.export(parts_of("r50k_base.tiktoken"), tmp_path / "gpt2", "gpt2")
    assert sha256(tmp_path / "gpt2" / "merges.txt") == sha256(path_of("gpt2") / "merges.txt")
    assert changed(formats.load(tmp_path / "gpt2"), parts_of("gpt2")) == []


@pytest.mark.slow
def test_llama_3_exported_as_ranks_gives_the_same_ids(tmp_path):
    formats.export(parts_of("llama3"), tmp_path / "ranks", "tiktoken")
    special_tokens = parts_of("llama3").special_tokens
    again = formats.load(tmp_path / "ranks", "llama3", special_tokens)
    assert changed(again, parts_of("llama3"), ignored=("merges",)) == []
    ours = [reference("llama3").encode(text) for text in TEXTS]
    from_ranks = Reference(again)
    assert differing([from_ranks.encode(text) for text in TEXTS], ours, TEXTS) == []


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        pytest.param("qwen2.5", "tiktoken", "normalizer NFC", marks=pytest.mark.slow),
        ("smollm2.gguf", "tiktoken", "21 of the 256 bytes"),
        ("smollm2.gguf", "gpt2", "pattern 'smollm'"),
        pytest.param("cl100k_base.tiktoken", "gpt2", "pattern 'cl100k'", marks=pytest.mark.slow),
        ("gpt2", "gguf", "expected one of hugging-face, tiktoken, gpt2"),
    ],
)
def test_what_a_kind_of_file_cannot_say_is_refused(name, kind, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        formats.export(parts_of(name), tmp_path / "out", kind)
    assert not (tmp_path / "out").exists()


def test_the_names_of_tiktokens_cache_are_accepted(tmp_path):
    (tmp_path / "9b5ad71b2ce5302211f9c61530b329a4922fc6a4").write_bytes(path_of("cl100k_base.tiktoken").read_bytes())
    again = formats.load(tmp_path / "9b5ad71b2ce5302211f9c61530b329a4922fc6a4")
    assert changed(again, parts_of("cl100k_base.tiktoken")) == []


@pytest.mark.parametrize("name", ALL)
def test_a_loaded_tokenizer_gives_these_ids(name):
    tokenizer = Tokenizer.load(path_of(name))
    ours = [reference(name).encode(text) for text in TEXTS]
    assert differing([tokenizer.encode(text) for text in TEXTS], ours, TEXTS) == []
    if tokenizer.lossless:
        assert [tokenizer.decode(ids) for ids in ours] == TEXTS
    assert changed(tokenizer.parts(), parts_of(name)) == []


@pytest.mark.slow
def test_nfc_comes_between_special_tokens_as_in_hugging_face():
    tokenizer = Tokenizer.load(path_of("qwen2.5"))
    other = tokenizers.Tokenizer.from_file(str(path_of("qwen2.5") / "tokenizer.json"))
    for text in ("e\u0301", "e<|im_end|>\u0301", "<|im_start|>\u0301x\u0915\u093c", "\u212b\u1100\u1161\u0958!"):
        assert tokenizer.encode(text, allowed_special="all") == other.encode(text).ids
        assert list(tokenizer.encode_iterable(text, allowed_special="all")) == other.encode(text).ids


abc = st.lists(st.text("abc", min_size=2, max_size=6), max_size=25, unique=True)


@st.composite
def grown(draw):
    """Tokens each made of two earlier ones, as training makes them, though not by counts."""
    tokens = dict.fromkeys("abc")
    for left, right in draw(st.lists(st.tuples(st.integers(0, 99), st.integers(0, 99)), max_size=12)):
        known = list(tokens)
        tokens[known[left % len(known)] + known[right % len(known)]] = None
    return [token for token in tokens if 1 < len(token) < 40]


def ranks_of(tokens, pattern="none"):
    """A vocabulary of ranks in any order, as no training makes it: bytes first, then these tokens."""
    listed = [bytes([byte]) for byte in range(256)] + [token.encode() for token in tokens]
    return formats.Parts(dict(enumerate(listed)), None, {}, pattern, ignore_merges=True)


def by_tiktoken(parts):
    ranks = {token: token_id for token_id, token in parts.ordinary().items()}
    return tiktoken.Encoding("x", pat_str=r"[\s\S]+", mergeable_ranks=ranks, special_tokens={})


@given(abc | grown(), st.text("abc", min_size=1, max_size=30))
def test_any_ranks_exported_to_hugging_face_give_the_ids_of_tiktoken(tokens, text):
    parts = ranks_of(tokens)
    expected = by_tiktoken(parts).encode_ordinary(text)
    assert Reference(parts).encode(text) == expected
    assert tokenizers.Tokenizer.from_str(to_json(parts)).encode(text).ids == expected


@given(grown(), st.text("abc", min_size=1, max_size=30))
def test_any_ranks_exported_to_gpt2_files_give_the_same_ids_or_are_refused(tmp_path_factory, tokens, text):
    folder, parts = tmp_path_factory.mktemp("gpt2"), ranks_of(tokens, "gpt2")
    try:
        formats.export(parts, folder, "gpt2")
    except ValueError as error:
        assert f"token {parts.unreached()!r}: no merge leads to it" in str(error)
        return
    again = formats.load(folder)
    assert len(again.listed_merges()) == len(tokens)
    assert Reference(again).encode(text) == Reference(parts).encode(text)


@given(grown(), st.randoms(use_true_random=False), st.text("abc", min_size=1, max_size=30))
def test_any_merges_exported_as_ranks_give_the_same_ids_or_are_refused(tmp_path_factory, tokens, chooser, text):
    path, every = tmp_path_factory.mktemp("ranks") / "x", ranks_of(tokens)
    merges = [merge for merge in every.listed_merges() if chooser.random() < 0.9]
    parts = dataclasses.replace(every, merges=merges, ignore_merges=chooser.random() < 0.5)
    try:
        formats.export(parts, path, "tiktoken")
    except ValueError as error:
        assert "its bytes encode to other tokens here" in str(error)
        return
    expected = by_tiktoken(formats.load(path, "none")).encode_ordinary(text)
    assert Reference(parts).encode(text) == expected


def test_known_encodings_are_those_of_tiktoken():
    from tiktoken_ext import openai_public

    for digest, encoding in ENCODINGS.items():
        assert f'expected_hash="{digest}"' in inspect.getsource(getattr(openai_public, encoding.name))


@functools.cache
def unique_pieces(pattern):
    """Hugging Face's cutting of a text by a regular expression, of which every stretch is kept."""
    split = tokenizers.pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated")
    return lambda text: [piece for piece, _ in split.pre_tokenize_str(text)]


@pytest.mark.parametrize("name", list(PATTERNS))
def test_the_portable_form_means_the_same_to_hugging_face(name):
    for text in TEXTS:
        assert Pretokenizer(name).split(text) == unique_pieces(PORTABLE_PATTERNS[name])(text)


@pytest.mark.parametrize(
    ("name", "text", "pieces"),
    [
        ("cl100k", "a\n  ", ["a", "\n  "]),
        ("llama3", "a\n  ", ["a", "\n", "  "]),
        ("cl100k", "it'\u017f", ["it", "'\u017f"]),  # the long s is an s to all three engines when case is ignored
        ("llama3", "it'\u017f", ["it", "'\u017f"]),
        ("o200k", "it'\u017f", ["it'\u017f"]),
        ("gpt2", "it'\u017f", ["it", "'", "\u017f"]),
        ("smollm", "it'S 12  3  \n", ["it", "'", "S", " ", "1", "2", "  ", "3", "  \n"]),
        ("smollm", "a  b  1", ["a", " ", " b", "  ", "1"]),
        ("qwen2", "12 34", ["1", "2", " ", "3", "4"]),
    ],
)
def test_where_patterns_and_engines_might_part(name, text, pieces):
    assert Pretokenizer(name).split(text) == pieces
    assert unique_pieces(PORTABLE_PATTERNS[name])(text) == pieces


def test_smollm_is_digits_and_then_gpt2():
    digits = tokenizers.pre_tokenizers.Digits(individual_digits=True)
    byte_level = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    both = tokenizers.pre_tokenizers.Sequence([digits, byte_level])
    for text in TEXTS:
        spelled = [spell(piece.encode()) for piece in Pretokenizer("smollm").split(text)]
        assert spelled == [piece for piece, _ in both.pre_tokenize_str(text)]


def test_a_safe_cut_is_safe_before_and_after_nfc():
    """At a boundary, NFC of the parts is NFC of the whole, and it is a boundary still."""
    characters = [chr(code) for code in range(0x30000) if not 0xD800 <= code < 0xE000]
    compose = {unicodedata.normalize("NFD", character)[1:2] for character in characters}
    assert not any(regex.fullmatch(r"[^\p{L}\p{N}\p{M}']", second) for second in compose if second)
    pretokenizer = Pretokenizer("qwen2")
    for text in [*(character + "!" for character in characters), *("a" + character for character in characters)]:
        composed = unicodedata.normalize("NFC", text)
        if composed != text and pretokenizer.last_boundary(text, 0, 1) == 1:
            assert pretokenizer.last_boundary(composed, 0, 1) == 1
