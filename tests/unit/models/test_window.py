import torch

from recurra.models.window import Window


def test_reading_backwards_turns_each_rows_real_steps_and_leaves_its_padding():
    """The backward half of a bidirectional layer starts at each row's own end."""
    window = Window(4, torch.tensor([4, 2, 0]), None)
    values_BTD = torch.tensor([[1.0, 2, 3, 4], [1, 2, 9, 9], [9, 9, 9, 9]])[:, :, None]

    turned = window.turn(values_BTD)[:, :, 0]

    assert turned.tolist() == [[4, 3, 2, 1], [2, 1, 9, 9], [9, 9, 9, 9]]


def test_a_sequence_that_starts_at_s_is_left_at_s_when_read_backwards():
    """Row: two sequences of 2 and 1 real steps, then padding. Backwards the second one is met first."""
    window = Window(4, torch.tensor([3]), torch.tensor([[True, False, True, True]]))

    assert window.backward.reset_BT.tolist() == [[False, True, False, False]]
