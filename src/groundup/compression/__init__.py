"""Smaller and faster models from trained ones: quantisation, pruning, distillation, and what each costs."""
