"""Recurrent cores, attention, Neural Turing Machine and their state as a value. Torch only: no I/O, no clock, no Ray."""
