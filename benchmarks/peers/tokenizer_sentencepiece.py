"""sentencepiece in the tokenizer benchmarks. Started by `groundup bench`.

It merges characters, not bytes, inside words that it finds by spaces, one line of the file at a time.
"""

import io
from importlib.metadata import version

import sentencepiece

VERSIONS = {"sentencepiece": version("sentencepiece")}


def train(task):
    def call():
        model = io.BytesIO()
        sentencepiece.SentencePieceTrainer.train(
            input=str(task.path),
            model_writer=model,
            model_type="bpe",
            vocab_size=task.vocab_size,
            num_threads=task.threads,
            byte_fallback=True,
            character_coverage=0.9995,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            max_sentence_length=1 << 20,  # by default it passes over lines of more than 4,192 bytes
            user_defined_symbols=[task.separator],
            minloglevel=2,
        )
        return model.getvalue()

    return call, tokens


def tokens(model):
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    pieces = (processor.id_to_piece(i) for i in range(processor.vocab_size()))
    return [piece.replace("\u2581", " ").encode() for piece in pieces]


WORKS = {"train": train}
