from __future__ import annotations

import numpy as np
import pytest

from dpcomm import arrays


def test_numpy_array_is_described_by_elements() -> None:
    base = np.zeros((6, 8), np.float32)
    view = arrays.describe(base[::2, 1:5])
    assert view.pointer == base.ctypes.data + 4
    assert view.shape == (3, 4)
    assert view.strides == (16, 1)
    assert view.count == 12
    assert view.dtype == "float32"
    assert not view.contiguous
    assert arrays.describe(base).contiguous
    assert view.device == "cpu"


def test_torch_tensor_is_described_like_numpy() -> None:
    torch = pytest.importorskip("torch")
    base = torch.zeros((6, 8), dtype=torch.bfloat16)
    view = arrays.describe(torch.nn.Parameter(base)[::2, 1:5])
    assert view.pointer == base.data_ptr() + 2
    assert (view.shape, view.strides) == ((3, 4), (16, 1))
    assert (view.dtype, view.device, view.contiguous) == ("bfloat16", "cpu", False)


def test_stranger_comes_through_dlpack_without_a_copy() -> None:
    base = np.arange(5, dtype=np.float32)

    class Stranger:
        def __dlpack__(self, **options: object) -> object:
            return base.__dlpack__(**options)

        def __dlpack_device__(self) -> tuple[int, int]:
            return base.__dlpack_device__()

    assert arrays.describe(Stranger()).pointer == base.ctypes.data


def test_what_is_no_array_is_refused() -> None:
    with pytest.raises(TypeError, match="list is not an array"):
        arrays.describe([1.0])


@pytest.mark.parametrize(
    ("array", "reason"),
    [
        (np.zeros(4, np.int32), "has dtype int32: convert it to float32"),
        (np.zeros(8, np.float32)[::2], "contiguous"),
        (np.broadcast_to(np.float32(0), (4,))[:1], "read-only"),
    ],
)
def test_buffer_that_cannot_be_written_is_refused(array: np.ndarray, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        arrays.buffer(array, "buffer", ("float32",))


def test_empty_has_the_type_that_came_in() -> None:
    torch = pytest.importorskip("torch")
    made = arrays.empty(torch.zeros(1), (2, 3), "bfloat16")
    assert isinstance(made, torch.Tensor)
    assert made.dtype == torch.bfloat16
    assert isinstance(arrays.empty(np.zeros(1), (2, 3), "float32"), np.ndarray)
