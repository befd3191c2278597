"""Texts that have to be one of several, match a regular expression, or be JSON of a schema."""

from groundup.inference.constraint.constraint import KINDS, Constraint, Kind, compile_constraint

__all__ = ["KINDS", "Constraint", "Kind", "compile_constraint"]
