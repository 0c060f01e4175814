"""Base classes of aihwkit's tests."""

from __future__ import annotations

import os
from unittest import SkipTest, TestCase

from aihwkit.simulator.rpu_base import cuda
from numpy.testing import assert_array_almost_equal
from torch import Tensor

SKIP_CUDA_TESTS = bool(os.getenv("SKIP_CUDA_TESTS")) or not cuda.is_compiled()


class AihwkitTestCase(TestCase):
    """Compares tensors."""

    def assertTensorAlmostEqual(self, tensor_a: Tensor, tensor_b: Tensor, decimal: int = 4) -> None:
        """Fail unless the two agree to so many decimals."""
        assert_array_almost_equal(tensor_a.detach().cpu(), tensor_b.detach().cpu(), decimal=decimal)

    def assertNotAlmostEqualTensor(self, tensor_a: Tensor, tensor_b: Tensor, decimal: int = 4) -> None:
        """Fail if the two agree to so many decimals."""
        with self.assertRaises(AssertionError):
            self.assertTensorAlmostEqual(tensor_a, tensor_b, decimal)


class ParametrizedTestCase(AihwkitTestCase):
    """Repeated over kinds of tiles or layers, whose attributes a decorator sets."""

    use_cuda = False
    bias = False
    digital_bias = False
    analog_bias = False
    simulator_tile_class: type | None = None
    first_hidden_field: str | None = None
    parameter = ""

    def setUp(self) -> None:
        """Skip what needs a GPU where aihwkit is built without CUDA."""
        if self.use_cuda and SKIP_CUDA_TESTS:
            raise SkipTest("aihwkit is built without CUDA")
        super().setUp()
