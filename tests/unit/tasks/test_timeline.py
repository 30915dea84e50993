from datetime import datetime

import numpy as np
import pytest

from recurra.tasks.timeline import SEASONS, calendar_one_hots, calendar_width, parse_time, step_time


def test_months_go_on_over_the_end_of_a_year():
    """A month is no fixed number of days: adding 30 days at a time would drift."""
    hots = calendar_one_hots(datetime(1982, 11, 30), "month", 4)

    assert hots.argmax(1).tolist() == [10, 11, 0, 1]
    assert hots.shape == (4, calendar_width("month"))


def test_days_know_their_weekday_and_month():
    """1982-04-01 was a Thursday (Monday is 0), three days later it was Sunday."""
    hots = calendar_one_hots(datetime(1982, 4, 1), "day", 4)

    assert hots[:, :7].argmax(1).tolist() == [3, 4, 5, 6]
    assert hots[:, 7:].argmax(1).tolist() == [3, 3, 3, 3]


def test_hours_know_their_hour_and_weekday():
    """The daily and the weekly season of energy and traffic."""
    hots = calendar_one_hots(datetime(1982, 4, 4, 23), "hour", 2)

    assert hots[:, :24].argmax(1).tolist() == [23, 0]
    assert hots[:, 24:].argmax(1).tolist() == [6, 0]


@pytest.mark.parametrize("frequency", SEASONS)
def test_a_later_stretch_sees_the_same_calendar(frequency):
    """A session asks for steps in the middle: they must look as they did in the whole series."""
    start = datetime(2015, 12, 30, 22)

    whole = calendar_one_hots(start, frequency, 40)
    assert np.array_equal(calendar_one_hots(start, frequency, 10, first=30), whole[30:])


@pytest.mark.parametrize(
    ("frequency", "time"),
    [("month", "1984-01-31"), ("day", "1982-02-24"), ("hour", "1982-02-01T12:30:00"), ("quarter", "1988-01-31")],
)
def test_the_time_of_a_step(frequency, time):
    """The answer says which time its first value is for."""
    assert step_time(datetime(1982, 1, 31, 12, 30), frequency, 24) == time


def test_a_month_end_stays_the_end_of_a_shorter_month():
    """Series stamped with the last day of the month are common; there is no 31st of February."""
    assert step_time(datetime(1982, 1, 31), "month", 1) == "1982-02-28"


def test_times_are_read_as_people_write_them():
    """Months without a day, and offsets, which become UTC."""
    assert parse_time("1982-04") == datetime(1982, 4, 1)
    assert parse_time("1982-04-01T02:00:00+10:00") == datetime(1982, 3, 31, 16)
    with pytest.raises(ValueError, match="April"):
        parse_time("April 1982")
