"""Recipes: whole runs that are written down, with the public result that each is to reproduce.

`groundup recipe` lists them. They bring no data: each says what it wants and works on the files that it is given.
"""

from groundup.recipes.recipe import Recipe
from groundup.recipes.run import run
from groundup.recipes.table import RECIPES, find
from groundup.recipes.text import Prepared, prepare

__all__ = ["RECIPES", "Prepared", "Recipe", "find", "prepare", "run"]
