from __future__ import annotations

from collections.abc import Callable
from typing import Any

from aihwkit_nabn.studies.grid import all_measurements, chip_jobs, parse_spec

Small = Callable[..., dict[str, Any]]


def test_the_grid_has_every_measurement_once(small: Small) -> None:
    methods = ["none", "online", "paired", {"method": "paired", "reference": "clean"}]
    content = small(methods=methods, jpeg=["none", 30], calibration=["representative", "one_class"])
    jobs = all_measurements(parse_spec(content))
    # Two chips; without images 1 + 1; per method with images 2 x 2, the clean reference only where it differs.
    assert len(jobs) == 2 * ((2 + 4) + (2 + 8)) == len({job.key() for job in jobs})


def test_keys_do_not_depend_on_the_order_of_the_file(small: Small) -> None:
    content = small(noise=["pcm", "gaussian:sigma=0.1"], time=["1h", "1d"], jpeg=["none", 30])
    turned = {key: value[::-1] if isinstance(value, list) else value for key, value in reversed(content.items())}
    one, other = all_measurements(parse_spec(content)), all_measurements(parse_spec(turned))
    assert {job.key() for job in one} == {job.key() for job in other} and one != other


def test_times_that_look_alike_have_keys_of_their_own(small: Small) -> None:
    jobs = all_measurements(parse_spec(small(noise=["pcm"], time=[86_400.0, 86_400.001, 1234567.1, 1234567.2])))
    assert len({job.key() for job in jobs}) == len(jobs)


def test_chips_hold_what_is_left(small: Small, small_stream: Small) -> None:
    spec = parse_spec(small())
    jobs = all_measurements(spec)
    assert sorted(job.key() for chip in chip_jobs(spec, ()) for job in chip) == sorted(job.key() for job in jobs)
    done = {job.key() for job in jobs if job.chip_seed == 0} | {jobs[-1].key()}
    (chip,) = chip_jobs(spec, done)
    assert {job.chip_seed for job in chip} == {1}
    assert [job.key() for job in chip] == [j.key() for j in jobs if j.key() not in done]
    spec = parse_spec(small_stream())
    keys = all_measurements(spec)[0].keys(spec)
    assert len(keys) == 3 and len(chip_jobs(spec, keys)[0]) == 2
    assert len(chip_jobs(spec, keys[:2])[0]) == 3, "cut off, it runs again from its beginning"
