"""Sessions: turn a command line into a run that is ready to go."""

import contextlib
import importlib
from collections.abc import Callable
from typing import Any, NamedTuple

from experiments import environment, options, run_dir
from experiments.training import hosts
from experiments.training.checkpoints import check_path
from experiments.training.devices import WAYS, Devices
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
    """Parse the options, connect the hosts, load the data, create or reopen the run directory.

    A run to resume is reopened before the data is loaded. A new run directory is created only after
    that, so that missing or insufficient data leaves none behind.

    A study whose config.py sets `MANY_DEVICES` trains on several devices and hosts. `Config.needs`
    names the data sets that a study uses, and how many images of each. A study whose data is more
    than arrays in memory opens it itself, with `open_data` in measure.py. A study that does not
    support every number of devices refuses the others in `Config.check_devices`.

    Raises:
      ValueError, FileNotFoundError: invalid options or data.
    """
    settings = importlib.import_module(f"experiments.studies.{name}.config")
    many = getattr(settings, "MANY_DEVICES", False)
    kind = options.ExecutionOptions if many else options.IOOptions
    config, how = options.parse(name, settings, arguments, kind)

    # Slow to import, and needed only to run a study.
    from experiments.ledger import collect as ledger
    from experiments.study import Study, load_all

    claims, experiment = (
        importlib.import_module(f"experiments.studies.{name}.{part}")
        for part in ("claims", "measure")
    )
    execution = None
    if isinstance(how, options.ExecutionOptions):
        config, execution = connect(settings, config, how, graceful_exit)
        hosts.on_first(lambda: check_path(how.run or how.runs))
    execution = execution or Execution(graceful_exit=graceful_exit)
    where = str(execution.devices)
    with contextlib.ExitStack() as stack:
        run = hosts.on_first(lambda: reopen(name, config, how)) if how.resume is not None else None
        if run:
            stack.enter_context(run)
        if hasattr(experiment, "open_data"):
            loaded = experiment.open_data(config, how.data_dir)
        else:
            loaded = load_all(config.needs(), how.data_dir) if hasattr(config, "needs") else {}
        if how.resume is None:
            run = hosts.on_first(lambda: run_dir.create(how.runs, name, config))
        if run:
            stack.enter_context(run)
            run_dir.keep_environment(run, {**environment.describe(), "spread": where})
        stack.pop_all()  # Success: keep the run locked for the rest of the session.
    path = hosts.broadcast_from_first(str(run.path) if run else None)
    study = Study(
        name,
        run,
        preset=options.preset_of(settings.PRESETS, config),
        data_dir=how.data_dir,
        execution=execution,
    )

    def work() -> str:
        for each, dataset in loaded.items():
            study.add_dataset(each, dataset)
        experiment.measure(config, study)
        study.finish()
        if run is None:
            return ""
        verdicts = [ledger.as_text(ledger.result_of(run.path, name))] if claims.CLAIMS else []
        return "\n\n".join([*study.tables, *verdicts])

    return Session(run, path, where, work, options.to_go_on(name, path, how))


def connect(
    settings: Any, config: Any, how: options.ExecutionOptions, graceful_exit: GracefulExit
) -> tuple[Any, Execution]:
    """Connect the hosts; return the first host's config, and how to execute training."""
    wanted = hosts.expected(how.coordinator, how.num_processes, how.process_id)
    if wanted.processes > 1:
        graceful_exit.start_watchdog()
        graceful_exit.say(
            f"Expected {wanted.processes} processes to connect and load the data, but not all did. "
            "Start one on every host, with the same options except --process-id."
        )
    ways = getattr(settings, "WAYS", WAYS)
    if how.parallel not in ways:
        raise ValueError(f"Expected --parallel to be one of {', '.join(ways)}, got {how.parallel}.")
    hosts.connect(wanted, how.devices)
    of_first = hosts.broadcast_from_first(run_dir.to_json(config))
    devices = Devices(how.devices or hosts.default_devices(), how.parallel)
    config = run_dir.to_config(settings.Config, of_first)
    if hasattr(config, "check_devices"):
        config.check_devices(devices.count)
    return config, Execution(devices, how.checkpoint_every, graceful_exit)


def reopen(name: str, config: Any, how: options.IOOptions) -> run_dir.Run:
    """Lock the run to resume: the one that is named, or the newest with these options.

    Raises:
      ValueError: there is none, or another process is using it.
    """
    if how.run is not None:
        return run_dir.open_run(how.run)
    return run_dir.newest_unfinished(how.runs, name, config)
