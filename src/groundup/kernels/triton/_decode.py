def is_decode(*a): return False
decode=None
