"""What Numba compiles for the CPU. Import a module of this folder only where its functions are to run."""
