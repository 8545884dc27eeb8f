"""Epsilon of composed Poisson-subsampled Gaussians, by a way that no accountant here takes.

With L the privacy loss of all steps and M(z) = E[exp(zL)], the hockey-stick divergence
E[(1 - exp(eps - L))+] is the contour integral of M(z) exp(-z eps) / (z (z + 1)) along Re z = c > 0,
over 2 pi. M is a product of one-dimensional Gaussian integrals. Nothing is put on a grid of losses:
both integrals are of analytic functions, for which the trapezoid rule converges exponentially. At c
near the saddle point no digits cancel, so that the result is right to about ten digits of delta.
"""

import math
from collections.abc import Sequence

import mpmath
import numpy as np
from scipy.optimize import brentq

Part = tuple[float, float, int]  # sample rate, noise multiplier, steps
MOST_POINTS = 3e3
DIGITS = 28.0  # of the natural logarithm: e-28 is 7e-13


def log_moment(part: Part, powers: np.ndarray, finer: float = 1.0) -> np.ndarray:
    """log E[r(x)^s] at each s, of x ~ N(0, noise^2) and r = 1 - q + q exp((2x - 1)/(2 noise^2)).

    All s have one real part.
    """
    rate, noise, _ = part
    real, wave = float(powers[0].real), float(np.abs(powers.imag).max())
    step = min(noise / 6, 0.4 * noise**2, 2.0 * noise**2 / max(wave, 1e-9)) / finer
    x = np.arange(-11 * noise, max(real, 0.0) + 11 * noise + step, step)
    exponent = (2 * x - 1) / (2 * noise**2)
    ratio = exponent if rate == 1 else np.logaddexp(np.log1p(-rate), np.log(rate) + exponent)
    density = -(x**2) / (2 * noise**2) + math.log(step / (noise * math.tau**0.5)) + real * ratio
    top = density.max()
    seen = density > top - 45
    weight, ratio = np.exp(density[seen] - top), ratio[seen]
    out = np.empty(len(powers), complex)
    for start in range(0, len(powers), 256):
        imaginary = powers[start : start + 256].imag
        out[start : start + 256] = np.exp(1j * np.outer(imaginary, ratio)) @ weight
    return np.log(out) + top


def log_transform(
    parts: Sequence[Part], z: np.ndarray, adding: bool, finer: float = 1.0
) -> np.ndarray:
    """log M(z) up to multiples of 2 pi i: losses of removing a unit, or of `adding` one."""
    return sum(part[2] * log_moment(part, -z if adding else z + 1, finer) for part in parts)


class Curve:
    """delta as a function of epsilon near `guess`, for one direction of neighbours."""

    def __init__(self, parts: Sequence[Part], guess: float, adding: bool, finer: float = 1.0):
        places = np.exp(np.arange(-6.0, 8.0, 0.1))
        heights = np.array(
            [log_transform(parts, np.array([c + 0j]), adding)[0].real for c in places]
        ) - np.log(places * (places + 1))  # Chernoff bounds of log delta, but for -c epsilon
        bounds = heights - places * guess
        best = int(bounds[:-20].argmin())  # larger ones bound the tails
        c, lowest = places[best], bounds[best] - DIGITS
        # neighbours one period off leak in: exp(-c period) from below, far tails from above
        period = (DIGITS - min(bounds[best], 0)) / c
        while (bounds - (places - c) * period).min() > lowest:
            period *= 1.5
        step = math.tau / (finer * period)
        top, reached = 16 / guess, math.inf
        while reached > lowest:
            top *= 1.5
            if top / step > MOST_POINTS:
                raise ArithmeticError("the integrand falls too slowly")
            edge = np.linspace(0.9, 1.0, 20) * top
            logs = log_transform(parts, c + 1j * edge, adding).real - c * guess
            reached = float(logs.max() - math.log(top))
        y = np.arange(0.0, finer * top, step)
        self.z = c + 1j * y
        self.logs = log_transform(parts, self.z, adding, finer)
        self.weights = np.where(y == 0, 0.5, 1.0) * step / math.pi / (self.z * (self.z + 1))

    def log_delta(self, epsilon: float) -> float:
        """The natural logarithm; -inf where rounding leaves nothing."""
        exponents = self.logs - self.z * epsilon
        top = exponents.real.max()
        total = float((np.exp(exponents - top) * self.weights).real.sum())
        return math.log(total) + top if total > 0 else -math.inf


def epsilon(parts: Sequence[Part], delta: float, guess: float, finer: float = 1.0) -> float:
    """The epsilon at which the worse of both directions has `delta`; `guess` within a factor 1.5.

    Raises ArithmeticError where the integral would take too long (few steps, small rates).
    """
    curves = [Curve(parts, guess, adding, finer) for adding in (False, True)]

    def excess(eps: float) -> float:
        return max(-1e3, *(curve.log_delta(eps) for curve in curves)) - math.log(delta)

    return float(brentq(excess, guess / 1.5, guess * 1.5, rtol=1e-10))


def one_step_delta(rate: float, noise: float, epsilon: float, adding: bool) -> mpmath.mpf:
    """The hockey-stick divergence of one step, by quadrature of densities to forty digits."""
    with mpmath.workdps(40):
        q, s, e = mpmath.mpf(rate), mpmath.mpf(noise), mpmath.mpf(epsilon)

        def alone(x: mpmath.mpf) -> mpmath.mpf:
            return mpmath.npdf(x, 0, s)

        def mixed(x: mpmath.mpf) -> mpmath.mpf:
            return (1 - q) * mpmath.npdf(x, 0, s) + q * mpmath.npdf(x, 1, s)

        first, second = (alone, mixed) if adding else (mixed, alone)
        inner = mpmath.exp(-e if adding else e) - (1 - q)
        if inner <= 0:  # adding: the loss never exceeds -log(1 - q)
            return mpmath.mpf(0)
        edge = s**2 * mpmath.log(inner / q) + mpmath.mpf(1) / 2
        far = [edge + sign * s * width for sign in [-1 if adding else 1] for width in (1, 4, 40)]
        found = mpmath.quad(lambda x: first(x) - mpmath.exp(e) * second(x), [edge, *far])
        return -found if adding else found
