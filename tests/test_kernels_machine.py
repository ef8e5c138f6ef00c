"""The machine in words."""

from glmcpu.kernels.machine import machine


def test_the_machine_is_described() -> None:
    found = machine()
    assert set(found) == {"cpu", "isa", "isas", "cores", "threads", "threading_layer"}
    assert found["isa"] in found["isas"]
    assert 1 <= found["threads"] <= found["cores"]
    assert found["cpu"]
