"""Sessions: from the words of a command line to a run that is ready to go."""

import importlib
from collections.abc import Callable
from typing import Any, NamedTuple

from experiments import options, run_dir
from experiments.tasks import data
from experiments.training import hosts
from experiments.training.devices import Devices
from experiments.training.loop import Execution
from experiments.training.signals import GracefulExit


class Session(NamedTuple):
    """A run that is ready to go; `run` is None on hosts other than the first."""

    run: run_dir.Run | None
    path: str
    where: str
    work: Callable[[], str]
    resume_command: str


def prepare(name: str, arguments: list[str], graceful_exit: GracefulExit) -> Session:
    """Prepare an experiment, by its kind: one that trains on many devices, or a study."""
    experiment = importlib.import_module(f"experiments.studies.{name}.measure")
    if hasattr(experiment, "measure"):
        return prepare_study(name, experiment, arguments)
    return prepare_training(name, experiment, arguments, graceful_exit)


def prepare_study(name: str, experiment: Any, arguments: list[str]) -> Session:
    """Parse the options, make or reopen the run directory."""
    # Slow to import, and only for a study.
    from experiments.ledger import collect as ledger
    from experiments.study import Study

    config, how = options.parse(name, experiment, arguments, options.IOOptions)
    run = open_run(name, config, how, run_dir.environment())
    preset = options.preset_of(experiment.PRESETS, config)
    study = Study(name, run, preset=preset, data_dir=how.data_dir)

    def work() -> str:
        experiment.measure(config, study)
        study.finish()
        return ledger.as_text(name, study.estimates)

    again = options.to_go_on(name, str(run.path), how)
    return Session(run, str(run.path), "1 device", work, again)


def prepare_training(
    name: str, experiment: Any, arguments: list[str], graceful_exit: GracefulExit
) -> Session:
    """Parse the options, connect the hosts, load the data, make or reopen the run directory."""
    config, how = options.parse(name, experiment, arguments)
    wanted = hosts.expected(how.coordinator, how.num_processes, how.process_id)
    if wanted.processes > 1:
        graceful_exit.start_watchdog()
        graceful_exit.say(
            f"Expected {wanted.processes} processes to connect and load the data, but not all did. "
            "Start one on every host, with the same options but for --process-id."
        )
    hosts.connect(wanted, how.devices)

    config = run_dir.to_config(
        experiment.Config, hosts.broadcast_from_first(run_dir.to_json(config))
    )
    devices = Devices(how.devices or hosts.default_devices(), how.parallel)
    dataset = hosts.run_on_all(lambda: data.load(config.dataset, data_dir=how.data_dir))
    hosts.check_same("examples", dataset.describe()["sha256"])
    environment = {**run_dir.environment(), "data": dataset.describe(), "spread": str(devices)}

    run = hosts.on_first(lambda: open_run(name, config, how, environment))
    path = hosts.broadcast_from_first(str(run.path) if run else None)
    execution = Execution(devices, how.checkpoint_every, graceful_exit)
    return Session(
        run,
        path,
        str(devices),
        lambda: experiment.run(config, dataset, run, execution),
        options.to_go_on(name, path, how),
    )


def open_run(
    name: str, config: Any, how: options.IOOptions, environment: dict[str, Any]
) -> run_dir.Run:
    """Make a run directory, or reopen the one to go on with."""
    if how.run is not None:
        run = run_dir.open_run(how.run)
    elif how.resume is not None:
        run = run_dir.newest_unfinished(how.runs, name, config)
    else:
        run = run_dir.create(how.runs, name, config)
    try:
        run_dir.keep_environment(run, environment)
    except ValueError:
        run.__exit__()
        raise
    return run
