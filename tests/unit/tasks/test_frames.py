import numpy as np
import torch

from recurra.tasks.frames import mask_spans, stack_frames, standardise


def test_each_recording_has_mean_0_and_deviation_1_by_its_own_frames():
    """By hand: 1, 3 and padding become -1, 1 and 0; a feature that never changes becomes 0."""
    frames = np.array([[[1, 7], [3, 7], [99, 99]], [[0, 0], [0, 0], [6, 3]]], np.float32)
    found = standardise(frames, np.array([2, 3]))
    np.testing.assert_allclose(found[0], [[-1, 0], [1, 0], [0, 0]])
    np.testing.assert_allclose(found[1].mean(0), 0, atol=1e-6)
    np.testing.assert_allclose(found[1].std(0), 1, rtol=1e-6)


def test_neighbours_are_stacked_and_the_last_step_is_filled():
    """Five frames in steps of two."""
    frames = np.arange(1, 11, dtype=np.float32).reshape(1, 5, 2)
    assert stack_frames(frames, 2)[0].tolist() == [[1, 2, 3, 4], [5, 6, 7, 8], [9, 10, 0, 0]]


def test_masks_blank_bands_and_spans_and_nothing_else():
    """A mask keeps to a fifth of features and of steps; what stands is unchanged, and rows differ."""
    torch.manual_seed(0)
    inputs = torch.ones(64, 40, 30)
    found = mask_spans(inputs, torch.full((64,), 40), features=10, count=1)
    assert set(found.unique().tolist()) == {0.0, 1.0}
    dead_steps = (found.sum(2) == 0).sum(1)
    dead_features = (found.sum(1) == 0).view(64, 3, 10)
    assert int(dead_steps.max()) == 8 and int(dead_steps.min()) == 0
    assert int(dead_features.sum(2).max()) == 2
    assert torch.equal(dead_features[:, 0], dead_features[:, 2])
    assert len({tuple(row.tolist()) for row in dead_features[:, 0]}) > 5
