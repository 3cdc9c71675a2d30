"""Namespaces of arrays, the choice of a device, and moves; a missing GPU is said, and is no error by itself."""

import sys

import array_api_strict
import numpy as np
import pytest
import scipy.fft

from cloudem.backend import arrays
from cloudem.backend.arrays import array_namespace, choose_device, fft_namespace, on_device, to_device, to_host
from cloudem.errors import ParameterError


def test_an_array_of_the_host_names_its_namespace():
    assert array_namespace(np.zeros(3)) is np
    assert array_namespace(array_api_strict.zeros(3)) is array_api_strict
    assert fft_namespace(np.zeros(3)) is scipy.fft


def test_an_array_of_the_device_names_its_namespace(cupy):
    assert array_namespace(cupy.asarray(np.zeros(3))) is cupy


def test_arrays_come_and_go_unchanged(cupy):
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    there = to_device(values, "gpu")
    assert on_device(there)
    assert not on_device(values)
    assert to_device(there, "gpu") is there
    back = to_host(there)
    assert type(back) is np.ndarray
    assert back.dtype == np.float32
    np.testing.assert_array_equal(back, values)


def test_an_array_that_stays_is_not_copied():
    values = np.zeros(3)
    assert to_device(values, "cpu") is values
    assert to_host(values) is values


def test_without_a_gpu_the_cpu_is_chosen(monkeypatch):
    monkeypatch.setattr(arrays, "why_no_gpu", lambda: "there is none")
    assert choose_device("auto") == "cpu"
    with pytest.raises(ParameterError, match=r"device gpu: there is none; choose device cpu or auto"):
        choose_device("gpu")


def test_a_gpu_is_chosen_where_there_is_one(monkeypatch):
    monkeypatch.setattr(arrays, "why_no_gpu", lambda: None)
    assert [choose_device(wanted) for wanted in ("auto", "gpu", "cpu")] == ["gpu", "gpu", "cpu"]


def test_without_cupy_the_reason_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    assert "cloudem[gpu]" in arrays.why_no_gpu()
