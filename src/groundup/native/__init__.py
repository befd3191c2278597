"""Machine code for this machine: which processor it has (`processor`), LLVM's words to write loops in (`emit`).

Import a module of this folder only where code is compiled.
"""
