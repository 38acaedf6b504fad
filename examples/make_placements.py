"""Generate placements.csv: 1,000 invented students, their grade average, IQ, and whether they found a job.

Generated data, not real: placed is drawn from a logistic curve in cgpa and iq, so no model can be right every time.

    python examples/make_placements.py
"""

from pathlib import Path

import numpy as np
import pandas as pd

STUDENTS = 1000


def make_placements() -> pd.DataFrame:
    """Return the table: cgpa from 4 to 10, iq about 100, placed 0 or 1."""
    rng = np.random.default_rng(2015)
    cgpa = np.clip(rng.normal(7.0, 1.2, STUDENTS), 4.0, 10.0).round(2)
    iq = rng.normal(100.0, 15.0, STUDENTS).round()
    logit = 2.2 * (cgpa - 7.0) + 0.08 * (iq - 100.0)
    placed = (rng.random(STUDENTS) < 1.0 / (1.0 + np.exp(-1.5 * logit))).astype(int)
    return pd.DataFrame({"cgpa": cgpa, "iq": iq.astype(int), "placed": placed})


if __name__ == "__main__":
    make_placements().to_csv(Path(__file__).with_name("placements.csv"), index=False)
