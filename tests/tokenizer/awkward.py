"""Texts that tokenizers get wrong, and a strategy that mixes them."""

import unicodedata

from hypothesis import strategies as st

FRAGMENTS = [
    *[
        "",
        " ",
        "  ",
        "   ",
        "\t",
        "\n",
        "\n\n",
        "\r\n",
        " \n ",
        "\u00a0",
        "\u2003",
        "\u3000",
        "\x85",
        "\u2028",
    ],
    *["'s", "'S", "'ll", "'re", "'", "''", "'\u017f", "it's", "DON'T", "we'Ve", "\u2019s"],
    *["a", "Z", "aaaa", "the", " the", "hello world", "HelloWorld", "camelCase", "x1y2"],
    *["1", "12", "123", "1234567", "\u0663\u0664", "\u00bd", "\u2167", "3.14", "1,000"],
    *["!", "?!", "...", "--", "/", "//\n", "!\n\n", " #", "$5", "(a)", "_x_", "<|", "|>"],
    *["é", "e\u0301", "ü\u0308\u0308", "ß", "\u01c5", "ʰ", "ﬁ", "İ", "\u0130s"],
    *["你好", "世界。", "こんにちは", "한국어", "नमस्ते", "مرحبا", "שלום", "ไทย", "\U00020000"],
    *[
        "🌍",
        "👨‍👩‍👧‍👦",
        "🏳️‍🌈",
        "🇩🇪",
        "👍🏽",
        "\u200d",
        "\ufe0f",
        "\ufeff",
        "\u202e",
        "\x00",
        "\x7f",
        "\ufffd",
    ],
    *["<|endoftext|>", "<|end|>", "<|user|>", "<|endof", "text|>", "<|user|><|user|>"],
]
# Unicode versions differ between regex engines: characters older than all of them, and no surrogates.
_OLD = "".join(c for c in map(chr, range(0x3000)) if unicodedata.category(c) not in ("Cn", "Cs"))

texts = st.lists(st.sampled_from(FRAGMENTS) | st.text(st.sampled_from(_OLD), max_size=4), max_size=12).map("".join)
