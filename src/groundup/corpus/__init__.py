"""Corpus: from files to documents, and from documents to a training set and a held-out set."""

from groundup.corpus.document import Document, Problem, Tally, Unreadable
from groundup.corpus.held_out import Split, split_held_out
from groundup.corpus.reading import discover, read_documents
from groundup.corpus.stream import Limits

__all__ = [
    "Document",
    "Limits",
    "Problem",
    "Split",
    "Tally",
    "Unreadable",
    "discover",
    "read_documents",
    "split_held_out",
]
