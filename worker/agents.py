"""How an agent is put together: its ports, and where training is, in a process of its own or in this one.

Decides that real workers train apart, and simulations, whose hooks cannot reach another process, here; only then is
torch imported.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from peering.keeping import RecordKeeper
from peering.serving import Uplink
from protocol.joinlink import JoinLink
from protocol.text import human_bytes
from worker.agent import Agent
from worker.apart.hands import DistantHands
from worker.apart.keeper import ProcessKeeper
from worker.apart.ruled import Ruled
from worker.apart.trainer import ApartTrainer
from worker.archivist import Archivist
from worker.finding import Finder
from worker.handiwork import HERE, Handiwork
from worker.home import RunHome
from worker.joining import Joining
from worker.machine.machine import Machine
from worker.neighbours import line_to
from worker.options import WorkerOptions
from worker.p2p import WorkerNetwork
from worker.policy import Policy
from worker.ports import Measurer, Trainer
from worker.progress import Reporter
from worker.receipts import ReceiptKeeper
from worker.rules.house import House
from worker.sharing import Sharing
from worker.timing import Timing
from worker.words import foreign, say


def make_agent(
    options: WorkerOptions,
    machine: Machine | None,
    link: JoinLink,
    home: RunHome,
    reporter: Reporter,
    house: House | None = None,
    turn: Callable[[Policy], Policy] = lambda policy: policy,
) -> tuple[Agent, Joining]:
    """An agent with its real ports (gRPC, this disk, a trainer, the system's clock), and its membership.

    With a `machine` it trains in this process; without, in one of its own, which finds out what the machine is. It
    works under the volunteer's rules (`house`), and in its `turn` among several runs; without them by `options.policy`.
    """
    ruled: dict[str, Any] = {"policy": options.policy}
    timing = Timing()
    finder = Finder(link, home, timing)
    sharing = sharing_of(options, home, finder.keeper, house)
    network = _network_of(options, link, home, reporter, finder, sharing)
    finder.elsewhere = network
    joined: dict[str, Any] = {"timing": timing, "finder": finder}
    if house is not None:
        disk = home.disk
        disk.ruled, disk.short = lambda: house.disk_bytes, house.short_of_disk_bytes
        joined |= {"counted": house.counted, "licensed": house.learn_licence}
        joined["dial_holder"] = lambda holder: house.taking(line_to(holder, home.identity(), network, link.host))
        ruled = {
            "policy": turn(house.policy),
            "circumstances": lambda: house.look(disk.make_room),
            "unwanted": house.unwanted,
        }

    def threads() -> int:
        return 0 if house is None else house.rules.cpu.threads

    if machine is not None:
        hands = _hands_here(options, machine, home, reporter, threads)
    else:
        hands = _hands_apart(options, home, reporter, house)
    joining = Joining(options, link, home, reporter, handiwork=hands.handiwork, **joined)
    joining.network = network
    agent = Agent(
        hands.machine,
        joining,
        home.outbox,
        hands.trainer,
        reporter,
        pauses=options.pauses,
        measurer=hands.measurer,
        receipts=ReceiptKeeper(home, reporter),
        sharing=sharing,
        archivist=Archivist(joining, reporter) if options.archive else None,
        **ruled,
    )
    return agent, joining


def _network_of(
    options: WorkerOptions, link: JoinLink, home: RunHome, reporter: Reporter, finder: Finder, sharing: Sharing | None
) -> WorkerNetwork | None:
    if not options.p2p:
        return None
    return WorkerNetwork(
        home.folder,
        home,
        finder.keeper,
        through=link.through,
        listens=sharing is not None,
        port=options.p2p_port,
        tell=lambda why: reporter.say("p2p", say("p2p.ended", why=foreign(why))),
        pass_on=sharing.pass_on if sharing is not None and options.be_relay else None,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Hands:
    """Whatever computes, in this process or apart."""

    machine: Machine | Callable[[], Machine]
    trainer: Trainer
    measurer: Measurer
    handiwork: Handiwork


def _hands_here(
    options: WorkerOptions, machine: Machine, home: RunHome, reporter: Reporter, threads: Callable[[], int]
) -> _Hands:
    from worker.train.measuring import LossMeasurer
    from worker.train.training import TrainingRoom

    measurer = LossMeasurer(home.disk.blocks, machine.device)
    room = TrainingRoom(options, machine, home.disk, home.outbox, reporter, threads=threads, make_way=measurer.let_go)
    return _Hands(machine=machine, trainer=room, measurer=measurer, handiwork=HERE)


def _hands_apart(options: WorkerOptions, home: RunHome, reporter: Reporter, house: House | None) -> _Hands:
    keeper = ProcessKeeper(options, home, reporter)
    ruled = Ruled()
    if house is not None:
        ruled = Ruled(threads=lambda: house.rules.cpu.threads, memory_bytes=lambda kind: house.rules.memory_bytes(kind))  # noqa: PLW0108
    distant = DistantHands(keeper, options, ruled=ruled)

    def find_out() -> Machine:
        machine = distant.probe()
        tell_machine(machine, reporter, house)
        return machine

    trainer = ApartTrainer(keeper, lambda: distant.machine, home.outbox, reporter, ruled=ruled)
    return _Hands(machine=find_out, trainer=trainer, measurer=distant, handiwork=distant.handiwork)


def tell_machine(machine: Machine, reporter: Reporter, house: House | None) -> None:
    """What was found is told, and the rules about a GPU learn which one it is."""
    memory = human_bytes(machine.memory_bytes)
    text = say("machine", device=machine.device, name=machine.device_name, memory=memory)
    reporter.say("machine", text, device=machine.device)
    if machine.notice:
        reporter.say("gpu_not_used", machine.notice)
    if house is not None:
        house.learn_gpu(machine.gpu, machine.gpu_uuid)


def sharing_of(
    options: WorkerOptions, home: RunHome, records: RecordKeeper | None = None, uplink: Uplink | None = None
) -> Sharing | None:
    """What other workers are given of this one's blocks; None unless the volunteer said `--share`."""
    rate = options.share_bytes_per_s
    if rate is None:
        return None
    return Sharing(home.disk.blocks, rate, port=options.share_port, records=records, uplink=uplink)
