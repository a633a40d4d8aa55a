"""Words in, words out: the gms-lmm command line."""
