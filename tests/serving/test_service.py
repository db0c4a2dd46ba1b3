"""An edge without its network and without a network: who is lost, who is served twice, what stays behind."""

import asyncio
import random
from dataclasses import replace

import pytest

from splitpoint.serving.journal import Journal
from splitpoint.serving.protocol import Ask, Timings
from splitpoint.serving.service import Refused, Service, ServiceOptions, expected_on

from .pretend_engine import PretendEngine

PLENTY = ServiceOptions(policy="first_come", max_waiting=10_000, max_live=100_000, repeats=3)
TOOK = Timings(transfer_s=0.01, device_s=0.1, decode_s=0.02, total_s=0.5)


def ask_for(prompt="cat", seed=0, **more):
    return Ask(**{**dict(prompt=prompt, seed=seed, device_step_s=1.0, alpha=0.0), **more})


def with_service(scenario, options=PLENTY, journal=None, **engine):
    """Run a scenario on a service that starts and stops."""

    async def run():
        service = Service(PretendEngine(**engine), options, journal)
        await service.start()
        try:
            return await scenario(service)
        finally:
            await service.stop()

    return asyncio.run(asyncio.wait_for(run(), 60))


def test_a_request_from_asking_to_the_end():
    async def scenario(service):
        ticket = await service.ask("ann", ask_for(), None, "x")
        assert ticket.steps > 0
        assert await service.content(ticket, 10.0) == f"cat 0 {ticket.steps}".encode()
        row = service.acknowledge(ticket, TOOK)
        spans = ticket.spans()
        assert sum(spans.values()) == pytest.approx(ticket.ready_s - ticket.accepted_s)
        assert row["error_share"] == abs(row["predicted_total_s"] - 0.5) / 0.5
        assert service.acknowledge(ticket, TOOK) == {}  # twice is once
        with pytest.raises(Refused, match="is done") as refused:
            await service.content(ticket, 0.0)
        assert refused.value.status == 410

    with_service(scenario)


def test_a_hundred_duplicates_are_computed_once():
    async def scenario(service):
        asking = [service.ask("ann", ask_for(), "key", "same") for _ in range(100)]
        tickets = await asyncio.gather(*asking)
        assert len({id(ticket) for ticket in tickets}) == 1
        await service.content(tickets[0], 10.0)
        assert service.engine.computed == ["cat"]
        with pytest.raises(Refused, match="another body") as refused:
            await service.ask("ann", ask_for("dog"), "key", "other")
        assert refused.value.status == 422
        assert (await service.ask("ben", ask_for(), "key", "other")) is not tickets[0]

    with_service(scenario)


@pytest.mark.slow
def test_ten_thousand_races_between_cancel_and_finish_leave_nothing_behind():
    async def scenario(service):
        rng = random.Random(0)

        async def one(number):
            ticket = await service.ask("ann", ask_for(f"p{number}"), f"k{number}", "x")
            for _ in range(rng.randrange(12)):
                await asyncio.sleep(0)
            service.cancel(ticket)
            assert ticket.state == "cancelled" and ticket.content is None

        for start in range(0, 10_000, 500):
            await asyncio.gather(*(one(start + i) for i in range(500)))
        while service.conductor.core.members or service.conductor.core.waiting:
            await asyncio.sleep(0)
        last = await service.ask("ann", ask_for("last"), None, "x")
        await service.content(last, 10.0)
        assert not service.conductor.core.members and not service.conductor.core.waiting
        assert service._announced == set() and not service._open()[1:]
        await asyncio.sleep(0)
        assert not service.engine.rows and not service.engine.jobs

    with_service(scenario, max_batch=16)


def test_a_row_that_fails_fails_alone():
    async def scenario(service):
        service.engine.poisoned.add("bad")
        tickets = [await service.ask("ann", ask_for(p), None, "x") for p in ("cat", "bad", "dog")]
        assert await service.content(tickets[0], 10.0) and await service.content(tickets[2], 10.0)
        with pytest.raises(Refused, match="no longer finite") as refused:
            await service.content(tickets[1], 10.0)
        assert refused.value.status == 500

    with_service(scenario)


def test_no_room_is_said_before_the_engine_hears_of_it():
    async def scenario(service):
        service.engine.by_hand = True
        prepared = []
        service.engine.prepare, before = (
            lambda name, job: (prepared.append(name), before(name, job)),
            service.engine.prepare,
        )
        refused = 0
        for number in range(40):
            try:
                await service.ask("ann", ask_for(f"p{number}"), None, "x")
                await asyncio.sleep(0)
            except Refused as no:
                assert no.status == 429 and no.retry_after_s > 0
                refused += 1
        assert refused > 0 and len(prepared) + refused <= 40
        assert len(service.conductor.core.waiting) <= 3

    # a policy that grants whoever comes, also without room
    class Always:
        many = True

        def __call__(self, seen):
            from splitpoint.edge import Decision

            return Decision(0, 5)

    from splitpoint.edge import register_policy

    register_policy("always (test)", lambda system, arrivals: Always())
    with_service(scenario, ServiceOptions(policy="always (test)", max_waiting=3, repeats=3))


def test_what_is_over_is_kept_for_a_minute_only_and_the_rest_is_bounded():
    async def scenario(service):
        for number in range(3):
            ticket = await service.ask("ann", ask_for(f"p{number}"), None, "x")
        with pytest.raises(Refused, match="not over yet") as refused:
            await service.ask("ann", ask_for(), None, "x")
        assert refused.value.status == 503
        service.cancel(ticket)
        assert ticket.id in service.tickets  # for who asks again with the same key
        service._forget(ticket)
        await service.ask("ann", ask_for(), None, "x")

    with_service(scenario, replace(PLENTY, max_live=3))


def test_another_users_request_is_not_there():
    async def scenario(service):
        ticket = await service.ask("ann", ask_for(), None, "x")
        for user, name in (("ben", ticket.id), ("ann", "nothing"), ("", "")):
            with pytest.raises(Refused, match="there is no such request") as refused:
                service.ticket(user, name)
            assert refused.value.status == 404

    with_service(scenario)


def test_an_engine_that_dies_loses_nobody():
    async def scenario(service):
        service.engine.die_at = 3
        tickets = [await service.ask("ann", ask_for(f"p{i}", i), None, "x") for i in range(6)]
        for i, ticket in enumerate(tickets):
            if ticket.steps:
                assert await service.content(ticket, 10.0) == f"p{i} {i} {ticket.steps}".encode()
        assert service.deaths == 1 and service.engine.starts == 2

    with_service(scenario)


def test_a_killed_edge_goes_on_from_its_journal(tmp_path):
    file = tmp_path / "journal"

    async def before(service):
        service.engine.by_hand = True
        tickets = [await service.ask("ann", ask_for(f"p{i}", i), f"k{i}", f"d{i}") for i in range(7)]
        service.engine.gate.release()
        service.cancel(tickets[0])
        return [(t.id, t.steps) for t in tickets]

    async def after(service):
        assert len(service.tickets) == 6
        found = []
        for i, (name, steps) in list(enumerate(known))[1:]:
            again = await service.ask("ann", ask_for(f"p{i}", i), f"k{i}", f"d{i}")
            assert (again.id, again.steps) == (name, steps)
            if steps:
                found.append(await service.content(again, 10.0))
                assert found[-1] == f"p{i} {i} {steps}".encode()
            service.acknowledge(again, TOOK)
        assert found

    known = with_service(before, journal=Journal(file))
    with_service(after, journal=Journal(file))
    assert list(Journal(file).live()) == []


def test_nothing_is_promised_that_cannot_be_written_down(tmp_path, monkeypatch):
    async def scenario(service):
        ticket = await service.ask("ann", ask_for(), None, "x")
        await service.content(ticket, 10.0)

        def full(line):
            raise OSError(28, "No space left on device")

        service.journal.write = full
        with pytest.raises(Refused, match="nothing can be written down") as refused:
            await service.ask("ann", ask_for("dog"), "key", "x")
        assert refused.value.status == 503
        assert not service.conductor.core.waiting and "dog" not in service.engine.computed

    with_service(scenario, journal=Journal(tmp_path / "journal"))


def test_a_packet_that_nobody_fetches_expires():
    async def scenario(service):
        ticket = await service.ask("ann", ask_for(), None, "x")
        await service.content(ticket, 10.0)
        while ticket.state == "granted":
            await asyncio.sleep(0.01)
        with pytest.raises(Refused, match="is expired"):
            await service.content(ticket, 0.0)

    with_service(scenario, replace(PLENTY, keep_s=0.05))


@pytest.mark.parametrize("name", ["posted_price", pytest.param("state_price", marks=pytest.mark.slow)])
def test_the_policy_is_served_as_it_is_simulated(name):
    """Decisions of a service = decisions of the simulator's core on the service's own log."""
    from splitpoint.edge import make_policy
    from splitpoint.serving.conductor import Event, replay

    async def scenario(service):
        rng = random.Random(1)
        for number in range(200):
            ask = ask_for(f"p{number}", alpha=rng.uniform(0, 5), device_step_s=rng.choice([0.01, 0.1]))
            await service.ask("ann", ask, None, "x")
            for _ in range(rng.randrange(4)):
                await asyncio.sleep(0)
        log = [Event.from_dict(line) for line in service.log()]
        policy = make_policy(name, service.system.edges, expected_on(service.system), service.system.parameters)
        answers = replay(log, service.system, policy)
        assert len(answers) == 200 and all(then == now for _, then, now in answers)
        assert len({then for _, then, _ in answers}) > 1

    with_service(scenario, replace(PLENTY, policy=name))


@pytest.mark.parametrize(
    "wrong",
    [
        dict(transfer_s=-1.0), dict(max_waiting=0), dict(max_live=1.5), dict(keep_s=0.0), dict(repeats=0),
        dict(expected_hz=float("nan")), dict(min_split=-1), dict(table=[1.0]),
    ],
)  # fmt: skip
def test_bad_options_are_refused_by_name(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        ServiceOptions(**wrong)


def test_an_edge_takes_a_pipeline_from_its_folder():
    from splitpoint.files import data_path
    from splitpoint.serving.engine import EngineOptions, Worker

    folder = str(data_path("models", "mini"))
    with_folder, ours = (Worker(EngineOptions(model, max_batch=2), print).facts() for model in (folder, "mini"))
    assert with_folder == ours | {"guidance_scale": 7.5}
