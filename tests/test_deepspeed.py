"""DeepSpeed through the Trainer: two processes end in the weights of one without it."""

import sys

import pytest
from commands import saved_by
from deepspeed_run import train

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="DeepSpeed needs Linux")


@pytest.mark.parametrize(
    ("version", "stage", "accumulation", "keep"),
    [("v1.1", 1, 1, 0), ("v1.1", 2, 2, 60), ("v1.1", 3, 2, 0), ("v1", 3, 1, 0)],
)
def test_five_steps_end_in_the_weights_of_one_process(rows, tmp_path, version, stage, accumulation, keep):
    settings = {"version": version, "rows": str(rows), "accumulation": accumulation, "keep": keep}
    batch = 8 // accumulation
    one = train(folder=tmp_path / "one", batch=batch, **settings)
    two = saved_by("deepspeed_run.py", 2, tmp_path / "two.pt", settings | {"batch": batch // 2, "stage": stage})
    assert two.keys() == one.keys()
    for name, weight in one.items():
        assert (two[name] - weight).abs().max() < 1e-4, name
