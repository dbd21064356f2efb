"""Calibration error, and temperatures: closed forms, and what cannot be fitted."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from sklearn.metrics import log_loss

from scfm.metrics import calibrated, calibration_error, fit_temperature


def drawn(seed: int = 0, n: int = 300, n_classes: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """Logits, and classes drawn from their softmax."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(scale=2, size=(n, n_classes))
    codes = np.array([rng.choice(n_classes, p=row) for row in calibrated(logits, 1.0)])
    return logits, codes


def test_calibration_error_bin_by_bin() -> None:
    logits, codes = drawn()
    probabilities = calibrated(logits, 0.5)
    top, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == codes
    expected = 0.0
    for at in range(15):
        inside = (top > at / 15) & (top <= (at + 1) / 15)
        if inside.any():
            expected += inside.mean() * abs(right[inside].mean() - top[inside].mean())
    assert 0.05 < expected < 1
    assert calibration_error(probabilities, codes) == pytest.approx(expected)
    shuffled = np.random.default_rng(1).permutation(len(codes))
    assert calibration_error(probabilities[shuffled], codes[shuffled]) == pytest.approx(expected)
    assert calibration_error(probabilities.astype(np.float16), codes) == pytest.approx(expected, abs=0.01)


def test_edges_of_bins_belong_to_the_lower_one() -> None:
    """0.6 is the upper edge of the third of five bins; 0.61 is in the fourth, where one is wrong."""
    sides = [[0.6, 0.4], [0.61, 0.39]]
    assert calibration_error(sides, [0, 1], n_bins=5) == pytest.approx((0.4 + 0.61) / 2)
    assert calibration_error(sides, [0, 1], n_bins=1) == pytest.approx(abs(0.5 - 0.605))
    assert calibration_error([[1.0, 0.0], [0.0, 1.0]], [0, 1]) == 0


@pytest.mark.parametrize("factor", [0.1, 1.0, 5.0, 1e6])
def test_the_temperature_has_the_least_log_loss(factor: float) -> None:
    logits, codes = drawn()

    def loss(log_temperature: float) -> float:
        return log_loss(codes, calibrated(logits, float(np.exp(log_temperature))), labels=range(4))

    plain = float(np.exp(minimize_scalar(loss, bounds=(-3, 3), method="bounded", options={"xatol": 1e-9}).x))
    assert 0.8 < plain < 1.2
    assert fit_temperature(logits * factor, codes) == pytest.approx(plain * factor, rel=1e-5)


def test_the_temperature_of_two_classes_in_closed_form() -> None:
    """Three of four cells are right with one margin m: softmax gives 3/4 at m / T = log 3."""
    logits = np.array([[2.0, 0.0]] * 3 + [[2.0, 0.0]])
    assert fit_temperature(logits, [0, 0, 0, 1]) == pytest.approx(2 / np.log(3))
    np.testing.assert_allclose(calibrated(logits, 2 / np.log(3))[0], [0.75, 0.25])


@given(st.integers(0, 2**31), st.integers(1, 40), st.integers(2, 5))
def test_any_fitted_temperature_is_no_worse(seed: int, n: int, n_classes: int) -> None:
    rng = np.random.default_rng(seed)
    logits, codes = rng.normal(size=(n, n_classes)), rng.integers(0, n_classes, n)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        temperature = fit_temperature(logits, codes)
    assert 0 < temperature < np.inf

    def loss(at: float) -> float:
        return -np.log(np.maximum(calibrated(logits, at)[np.arange(n), codes], 1e-300)).mean()

    assert loss(temperature) <= loss(1.0) + 1e-9
    shuffled = rng.permutation(n)
    if temperature != 1:
        assert fit_temperature(logits[shuffled] + 7, codes[shuffled]) == pytest.approx(temperature, rel=1e-6)
        assert max(loss(temperature * 1.01), loss(temperature / 1.01)) >= loss(temperature)


@pytest.mark.parametrize(
    ("logits", "codes", "why"),
    [
        (np.empty((0, 3)), [], "no cell"),
        ([[1.0, 0.0], [0.0, 2.0]], [0, 1], "highest logit at its class"),
        ([[3.0, 3.0], [3.0, 3.0]], [0, 1], "highest logit at its class"),
        ([[1.0, 0.0], [0.0, 2.0]], [1, 0], "no more than chance"),
        ([[1.0, 0.0], [1.0, 0.0]], [1, 0], "no more than chance"),
    ],
)
def test_without_a_best_temperature_it_stays_1(logits: Any, codes: Any, why: str) -> None:
    with pytest.warns(UserWarning, match=why):
        assert fit_temperature(logits, codes) == 1.0


def test_large_logits_do_not_overflow() -> None:
    found = calibrated([[1e5, 0.0], [-1e300, 1e300]], 1e-3)
    np.testing.assert_array_equal(found, [[1, 0], [0, 1]])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: calibrated([[1.0, 0.0]], 0.0), "temperature must be finite and above 0, got 0.0"),
        (lambda: calibrated([[1.0, 0.0]], float("nan")), "temperature must be finite"),
        (lambda: calibrated([1.0, 0.0], 1.0), r"logits must be a matrix .* got float64 of shape \(2,\)"),
        (lambda: calibrated([[1.0]], 1.0), "two or more classes"),
        (
            lambda: fit_temperature([[1.0, np.nan]], [0]),
            "logits has 1 of 1 rows with NaN or infinity, the first is row 0",
        ),
        (lambda: fit_temperature([[1.0, 0.0]], [0, 1]), r"codes must be a whole number for each of 1 cells; got int64"),
        (lambda: fit_temperature([[1.0, 0.0]], [0.0]), "codes must be a whole number"),
        (
            lambda: fit_temperature([[1.0, 0.0]], [-1]),
            "codes must be between 0 and 1.* Leave cells without a label out",
        ),
        (lambda: calibration_error([[1.0, 0.0]], [2]), "got 2 to 2"),
        (lambda: calibration_error(np.empty((0, 2)), []), "probabilities has no cell"),
        (lambda: calibration_error([[1.0, 0.0]], [0], n_bins=0), "n_bins must be at least 1"),
        (lambda: calibration_error([[2.0, 1.0]], [0]), r"a sum other than 1.*calibrated\(logits, 1.0\)"),
        (lambda: calibration_error([[1.5, -0.5]], [0]), "1 of 1 rows with negative values"),
    ],
)
def test_what_is_refused(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
