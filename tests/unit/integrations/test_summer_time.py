"""What APScheduler's triggers do when clocks change, on which labkit's page about scheduled jobs relies. No broker."""

import datetime
import itertools
from zoneinfo import ZoneInfo

import pytest
from apscheduler.triggers.cron import CronTrigger
from apscheduler.triggers.interval import IntervalTrigger

BERLIN = ZoneInfo("Europe/Berlin")  # 2026: forward on 29 March at 2:00, back on 25 October at 3:00


def times(trigger, start, count):
    """The next *count* run times after *start*, in UTC."""
    return [each.strftime("%d %H:%M") for each in moments(trigger, start, count)]


def moments(trigger, start, count):
    found, previous, now = [], None, start
    for _ in range(count):
        previous = trigger.get_next_fire_time(previous, now)
        now = (previous.astimezone(datetime.UTC) + datetime.timedelta(microseconds=1)).astimezone(previous.tzinfo)
        found.append(previous.astimezone(datetime.UTC))
    return found


@pytest.mark.parametrize(
    ("month", "day", "expected"),
    [
        (3, 28, ["28 03:00", "29 02:00", "30 02:00"]),  # 4:00 at the wall each day: 23 hours between two of them
        (10, 24, ["24 02:00", "25 03:00", "26 03:00"]),  # 25 hours
    ],
)
def test_a_time_of_day_stays_the_time_at_the_wall(month, day, expected):
    trigger = CronTrigger(hour=4, timezone=BERLIN)
    assert times(trigger, datetime.datetime(2026, month, day, tzinfo=BERLIN), 3) == expected


def test_in_utc_there_is_no_change():
    trigger = CronTrigger(hour=2, minute=30, timezone=datetime.UTC)
    assert times(trigger, datetime.datetime(2026, 3, 28, tzinfo=datetime.UTC), 3) == [
        "28 02:30",
        "29 02:30",
        "30 02:30",
    ]


@pytest.mark.parametrize(("month", "day"), [(3, 29), (10, 25)])
def test_an_interval_of_hours_goes_on_in_real_hours(month, day):
    start = datetime.datetime(2026, month, day, 0, 0, tzinfo=BERLIN)
    trigger = IntervalTrigger(hours=1, start_date=start, timezone=BERLIN)
    found = moments(trigger, start, 6)
    assert {later - earlier for earlier, later in itertools.pairwise(found)} == {datetime.timedelta(hours=1)}


def test_a_time_in_the_hour_that_changes_runs_once_in_spring_and_twice_in_autumn():
    trigger = CronTrigger(hour=2, minute=30, timezone=BERLIN)
    spring = times(trigger, datetime.datetime(2026, 3, 28, tzinfo=BERLIN), 3)
    autumn = times(trigger, datetime.datetime(2026, 10, 24, tzinfo=BERLIN), 4)
    assert spring == ["28 01:30", "29 01:30", "30 00:30"]  # on the 29th at 3:30 at the wall
    assert autumn == ["24 00:30", "25 00:30", "25 01:30", "26 01:30"]
