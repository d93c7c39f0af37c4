"""A three-year forecast for a few well-known shares, written for multiprocessing."""

import csv
import random
import statistics
from multiprocessing import Pool

import matplotlib.cbook

MONTHS = 36
FUTURES = 4_000


class Forecast:
    """The possible futures of one share, drawn from the months of its past."""

    def __init__(self, id, prices):
        self.id, self.prices = id, prices

    def execute(self):
        """The prices in three years: the 10th, 50th and 90th percentile of all futures."""
        chance = random.Random(self.id)
        growth = [after / before for before, after in zip(self.prices, self.prices[1:])]
        ends = []
        for _ in range(FUTURES):
            price = self.prices[-1]
            for step in chance.choices(growth, k=MONTHS):
                price *= step
            ends.append(price)
        deciles = statistics.quantiles(ends, n=10)
        return self.id, deciles[0], deciles[4], deciles[8]


def execute(task):
    return task.execute()


def read():
    """Monthly prices since 1990, which come with matplotlib."""
    with matplotlib.cbook.get_sample_data("Stocks.csv") as file:
        rows = list(csv.DictReader(line for line in file if not line.startswith("#")))
    for name in ("AAPL", "ADBE", "AMZN", "IBM", "MSFT", "XRX"):
        yield Forecast(name, [float(row[name]) for row in rows if row[name]])


if __name__ == "__main__":
    with Pool() as pool:
        for name, low, middle, high in pool.imap(execute, read()):
            print(f"{name:5} {middle:9,.0f}   ({low:,.0f} to {high:,.0f})")
