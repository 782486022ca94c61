"""ComBat: remove differences between sites from features (Johnson, Li and Rabinovic 2007).

A feature f of subject j at site i is taken as alpha_f + sigma_f (gamma_if + delta_if e). The shift
gamma and the variance delta of each site and feature are drawn towards their mean over features by
empirical Bayes with a normal and an inverse gamma prior (Biostatistics 8:118, section 3.2; Fortin
et al. 2018, NeuroImage 167:104, for measures of brain images), and

    harmonised = alpha_f + sigma_f (z - gamma*_if) / sqrt(delta*_if),   z = (x - alpha_f) / sigma_f

No covariate is kept: what sites differ in because their subjects do (age, diagnosis) is removed as
well. Everything is estimated on the subjects that are fitted, and applied to others of the same
sites, so that no test subject has a part in it.

Written here because no library that applies a fit to other subjects can be required: neuroHarmonize
2.5.2 asks for numpy below 2, combatlearn 2.3.0 brings plotly and umap-learn. The numbers are
compared with those of neuroCombat 0.2.12.

Shapes: S subjects, F features, n subjects of a site.
"""

from __future__ import annotations

import numpy as np

FEWEST = 3  # subjects of a site; with fewer its variance is not known
_CONVERGED = 1e-4  # largest relative change of an iteration, as in the authors' code
_ITERATIONS = 500


class Combat:
    """Shift and scale of each site, by the subjects that are fitted.

    Args:
        x: [S, F].
        site: [S] names.

    Attributes:
        sites: names of those with ``FEWEST`` subjects or more; others are left as they are.
    """

    def __init__(self, x: np.ndarray, site: np.ndarray) -> None:
        names, counts = np.unique(site, return_counts=True)
        self.sites = tuple(names[counts >= FEWEST].tolist())
        known = np.isin(site, self.sites)
        wide, of = x[known].astype(np.float64), site[known]
        parts = {name: of == name for name in self.sites}
        if not parts:
            self._center, self._scale = np.zeros(x.shape[1]), np.ones(x.shape[1])
            self._shift_and_scale: dict[str, tuple[np.ndarray, np.ndarray]] = {}
            return
        means = {name: wide[rows].mean(0) for name, rows in parts.items()}
        self._center = np.sum([rows.mean() * means[name] for name, rows in parts.items()], axis=0)
        residual = wide - np.stack([means[name] for name in of])
        spread = np.sqrt((residual**2).mean(0))
        self._scale = np.where(spread > 0, spread, 1.0)  # a constant feature stays as it is
        z = (wide - self._center) / self._scale
        varies = spread > 0
        self._shift_and_scale = {}
        for name, rows in parts.items():
            shift, scale = np.zeros(x.shape[1]), np.ones(x.shape[1])
            shift[varies], scale[varies] = _empirical_bayes(z[rows][:, varies])
            self._shift_and_scale[name] = shift, np.sqrt(scale)

    def transform(self, x: np.ndarray, site: np.ndarray) -> np.ndarray:
        """Harmonised features, float32 [S, F]; those of unknown sites unchanged."""
        found = x.astype(np.float32)
        for name, (shift, scale) in self._shift_and_scale.items():
            rows = site == name
            z = (x[rows] - self._center) / self._scale
            found[rows] = self._center + self._scale * (z - shift) / scale
        return found


def _empirical_bayes(z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """gamma* and delta* [F] of a site's standardised features [n, F]."""
    n = len(z)
    gamma, delta = z.mean(0), z.var(0, ddof=1)
    if z.shape[1] < 2:  # nothing to draw them towards
        return gamma, np.where(delta > 0, delta, 1.0)
    gamma_bar, tau2 = gamma.mean(), gamma.var(ddof=1)
    m, s2 = delta.mean(), delta.var(ddof=1)
    if s2 == 0:
        return gamma, np.where(delta > 0, delta, 1.0)
    a, b = (2 * s2 + m**2) / s2, (m * s2 + m**3) / s2
    shift, scale = gamma, delta
    for _ in range(_ITERATIONS):
        new_shift = (n * tau2 * gamma + scale * gamma_bar) / (n * tau2 + scale)
        squares = ((z - new_shift) ** 2).sum(0)
        new_scale = (squares / 2 + b) / (n / 2 + a - 1)
        changes = [
            np.abs(new - old) / np.maximum(np.abs(old), 1e-12)
            for new, old in ((new_shift, shift), (new_scale, scale))
        ]
        shift, scale = new_shift, new_scale
        if max(float(change.max()) for change in changes) < _CONVERGED:
            break
    return shift, scale
