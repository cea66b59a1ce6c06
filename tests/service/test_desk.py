"""Desks."""

import threading

from alertprod.service.desk import Desk, Inbox


def test_tasks_are_done_in_order_and_reported_with_their_subject():
    inbox = Inbox()
    desk = Desk("clerk", inbox)
    for number in range(20):
        desk.submit(number, lambda number=number: number * 2)

    assert desk.close(timeout_s=5.0)
    reports = [inbox.get_nowait() for _ in range(20)]
    assert [(report.subject, report.value) for report in reports] == [(n, 2 * n) for n in range(20)]


def test_an_exception_is_reported_with_its_traceback_and_the_desk_goes_on():
    inbox = Inbox()
    desk = Desk("clerk", inbox)
    desk.submit("bad", lambda: {}["missing"])
    desk.submit("good", lambda: "value")
    desk.close(timeout_s=5.0)

    bad, good = inbox.get_nowait(), inbox.get_nowait()
    assert isinstance(bad.error, KeyError)
    assert "missing" in bad.traceback
    assert good.value == "value"
    assert good.error is None


def test_a_desk_that_hangs_is_given_up():
    desk, never = Desk("clerk", Inbox()), threading.Event()
    desk.submit("hang", never.wait)

    assert not desk.close(timeout_s=0.05)
    never.set()
