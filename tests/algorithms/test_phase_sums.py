"""What images say beside the model: the factor on a map."""

import numpy as np

from cloudem.algorithms.phase_sums import model_gain


def test_a_map_that_is_too_faint_is_lengthened_and_an_empty_shell_left_alone() -> None:
    model = np.array([4.0, 9.0, 0.0, 1.0])
    match = np.array([[1.2 * model, model], [0.8 * model, model], [1.3 * model, model]])
    np.testing.assert_allclose(model_gain(match), [1.1, 1.1, 1.0, 1.1])
