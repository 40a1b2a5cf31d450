from prometheus_client import CollectorRegistry, generate_latest

from moonshard.metrics import Buckets, HistogramFamily, ScrapeCollector


def test_a_value_on_a_bound_is_within_it() -> None:
    buckets = Buckets((1.0, 2.0))
    for value in (0.5, 1.0, 1.5, 2.5):
        buckets.observe(value)
    assert (buckets.counts, buckets.total) == ([2, 1, 1], 5.5)


def test_a_scraped_histogram_is_cumulative() -> None:
    registry = CollectorRegistry()
    samples = [(["a"], (1, 2.5), [2, 0, 1], 9.0)]
    registry.register(ScrapeCollector([HistogramFamily("some_seconds", "Some.", ["name"], lambda: samples)]))
    lines = generate_latest(registry).decode().splitlines()
    assert lines[2:] == [
        'some_seconds_bucket{le="1.0",name="a"} 2.0',
        'some_seconds_bucket{le="2.5",name="a"} 2.0',
        'some_seconds_bucket{le="+Inf",name="a"} 3.0',
        'some_seconds_count{name="a"} 3.0',
        'some_seconds_sum{name="a"} 9.0',
    ]
