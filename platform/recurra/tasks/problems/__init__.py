"""The problems of the NTM paper as generators of sequences (Graves, Wayne, Danihelka 2014, arXiv 1410.5401, section 4). NumPy alone."""
