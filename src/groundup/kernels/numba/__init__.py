"""What Numba, or the LLVM that it brings, compiles for the CPU.

Import a module of this folder only where its functions are to run.
"""
