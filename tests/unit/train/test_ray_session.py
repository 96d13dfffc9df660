import pytest
from ray.exceptions import RayTaskError

from kiss3d_infer.errors import InputError
from kiss3d_train.ray_session import unwrapped


def from_a_task(cause: Exception) -> Exception:
    """What `ray.get` raises when a task raised the cause."""
    error = RayTaskError(
        "f", "Traceback (most recent call last):\n...", cause, proctitle="ray::f()", pid=1, ip="::1"
    )
    return error.as_instanceof_cause()


def test_a_workers_failure_is_told_by_its_reason() -> None:
    with pytest.raises(RuntimeError) as caught, unwrapped():
        raise from_a_task(OSError(28, "No space left on device"))
    assert str(caught.value) == "a worker failed: OSError: [Errno 28] No space left on device"
    with pytest.raises(RuntimeError, match=r"a worker failed: KeyError$"), unwrapped():
        raise from_a_task(KeyError())


def test_a_workers_bad_input_is_bad_input() -> None:
    with pytest.raises(InputError) as caught, unwrapped():
        raise from_a_task(InputError("it is flat", where="a.obj", fix="mend it"))
    assert type(caught.value) is InputError
    assert str(caught.value) == "it is flat (a.obj): mend it"


def test_an_error_of_this_process_is_left_as_it_is() -> None:
    with pytest.raises(OSError, match=r"^the disk is full$"), unwrapped():
        raise OSError("the disk is full")
