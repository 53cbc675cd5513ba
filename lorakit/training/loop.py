"""Training a run, from its newest training state to its last step, as a stream of events; `step.py` is one step."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, suppress
from typing import Any

from lorakit import events, optimizers
from lorakit.config import to_dict
from lorakit.data.feed import Feed
from lorakit.diffusion.prompts import parse
from lorakit.errors import UserError
from lorakit.events import Event, Failed, Finished, Progress, Sampled, Saved, Started, Stepped, Stopped, Warned
from lorakit.lora import export, warm_start
from lorakit.lora.adapter import Adapter
from lorakit.machine.device import Precision, choose_precision, keep_freed_memory, make_deterministic, peak_memory_gb
from lorakit.models import family
from lorakit.project import Run, run_disk_errors
from lorakit.project.lock import lock_run
from lorakit.run import checkpoint
from lorakit.run.advice import prompt_warnings, setting_warnings
from lorakit.run.config import RunConfig, read_config
from lorakit.run.memory import OutOfMemory, explained
from lorakit.run.resume import check_unchanged, current_inputs, load_record, save_record
from lorakit.run.sampling import generate_image, prompts_of, requested, save_image
from lorakit.run.stages import Stage, cut_captions, stages
from lorakit.training.metadata import Origins, metadata
from lorakit.training.nonfinite import NonfiniteSteps
from lorakit.training.prediction import check_prediction
from lorakit.training.signals import stop_signals
from lorakit.training.sizes import check_room

MAX_NOTES = 20  # about the dataset, in the log at each start


def train(run: Run) -> Iterator[Event]:
    """Train a run (made with `lorakit.create_run`) from its newest valid state to its last step.

    Yields events and appends them to the run's log. SIGINT and SIGTERM finish the step, save and end with `Stopped`.
    Raises RunBusy while another trainer has the run; with `Failed` at the end of the log RunChanged, DataError,
    ModelFileError, ConfigError before the first step, TrainingDiverged later, OutOfMemory and DiskFull at any time.

    >>> [type(event).__name__ for event in train(open_run("my-project"))]
    ['Started', 'Finished']
    """
    _refuse_several_processes()
    with lock_run(run), stop_signals() as stop:
        try:
            with run_disk_errors(run):
                run.remove_leftovers()
                session = Session(run)
                for event in session.events(stop):
                    # logged before anyone sees it: what was shown is also on disk
                    events.append(run.log, event, time=time.time())
                    yield event
        except UserError as error:
            # the disk may be full to the last byte
            with suppress(OSError):
                events.append(run.log, Failed(reason=str(error)), time=time.time())
            raise


def _refuse_several_processes() -> None:
    """Raise UserError in a process that torchrun or accelerate started with others: one process trains a run."""
    if (count := os.environ.get("WORLD_SIZE", "1")) not in ("", "0", "1"):
        raise UserError(
            f"{count} processes were started to train together (WORLD_SIZE={count}), and a run is trained by one, on "
            "one GPU. Start it without torchrun or accelerate launch: lorakit train PROJECT."
        )


class Session:
    """One training session of a run: its model, adapter, optimizer and data in memory.

    `events` does all of it; `prepare`, `step` and `save` are its parts, for callers that do other things in between.
    """

    def __init__(self, run: Run):
        self.run = run
        self.config: RunConfig = read_config(run)
        config = self.config
        self.precision: Precision = choose_precision(config.loop.precision)
        make_deterministic(self.precision.device)
        if self.precision.device.type == "cpu":
            keep_freed_memory()
        # Its step decides the stage that is selected below.
        self.latest = checkpoint.latest_state(run)
        self.model = family(config.model.family).Model(
            config.model, self.precision.device, self.precision.dtype, config.trained
        )
        self.model.offload = config.memory.offload
        self.stages = stages(config, run.project.folder)
        self.feeds = [
            Feed(
                stage.scan.samples,
                stage.config.data,
                self.model,
                run.project.cache,
                seed=config.loop.seed,
                prior_loss_weight=stage.config.loss.prior_loss_weight,
            )
            for stage in self.stages
        ]
        self.steps = self.stages[-1].plan.last
        # A run that was not trained yet begins at step 1.
        self._select_stage(max(1, self.latest.step))
        self.record: dict[str, Any] = {}  # of its inputs, copied beside each training state
        self.nonfinite = NonfiniteSteps()
        self.origins = Origins(run, self.model, self.config.save)
        self.notes: list[str] = []  # about the base model, and the LoRA file that the run starts from

    def events(self, stop: threading.Event) -> Iterator[Event]:
        """The whole session. Setting `stop` ends it after the current step, saved."""
        inputs = self._inputs()
        # Before any encoding, which may take minutes.
        check_unchanged(self.run, inputs, self.stage.number)
        yield from _other_threads(self.run, inputs, self.precision.device, self.latest.folder is not None)
        # prompts may change between sessions, what else is warned of may not
        per_epoch = [stage.plan.steps_per_epoch for stage in self.stages]
        doubts = prompt_warnings(self.config) if self.latest.folder else setting_warnings(self.config, per_epoch)
        yield from (Warned(text=text) for text in doubts)
        yield from _dataset_notes(self.stages, self.model)
        for event in self.prepare():
            yield event
            if isinstance(event, Progress) and stop.is_set():
                yield Stopped(step=0, reason="stopped on request; what is encoded is kept, train again to continue")
                return
        if self.latest.step < self.steps:
            check_room(self.run, self.adapter, self.model, self.stages, self.stage)
        self.record = save_record(self.run, inputs, [stage.plan.steps_per_epoch for stage in self.stages])
        yield Started(
            step=self.latest.step,
            steps=self.steps,
            steps_per_epoch=self.stage.plan.steps_per_epoch,
            images=len(self.stage.scan.samples),
            precision=self.precision.name,
            device=str(self.precision.device),
            prediction=self.model.prediction_type,
        )
        yield from self._train(stop)

    def _train(self, stop: threading.Event) -> Iterator[Event]:
        """The steps that are left, with saves and samples between them."""
        # For every_minutes; the monotonic clock does not jump.
        saved_at, last_saved = time.monotonic(), self.latest.step
        if last_saved and self.stage.due(last_saved, self.config.sample):
            # those that a kill prevented; the weights are still those of that step
            yield from self._sample(last_saved, only_missing=True)
        for step in range(self.latest.step + 1, self.steps + 1):
            if step > self.stage.plan.last:
                yield from self._next_stage(step)
            with self._explained(f"in step {step}"):
                stepped = self.step(step)
            yield stepped
            yield from self.nonfinite.check(stepped, scales_loss=self.scaler.is_enabled())
            exports, samples = (self.stage.due(step, when) for when in (self.config.save, self.config.sample))
            minutes = self.config.save.every_minutes
            if exports or stop.is_set() or (minutes and time.monotonic() - saved_at >= 60 * minutes):
                yield self.save(step, exports)
                saved_at, last_saved = time.monotonic(), step
            if samples:
                yield from self._sample(step)
            if stop.is_set() and step < self.steps:
                # a stop that came while samples were generated finds a step that need not be saved
                yield Stopped(step=last_saved, reason="stopped on request; train again to continue from here")
                return
        yield Finished(step=self.steps, lora=str(self.run.lora_file(self.steps).relative_to(self.run.folder)))

    def prepare(self) -> Iterator[Progress | Warned]:
        """Everything before the first step: fill the caches, attach the adapter, restore the newest state.

        Yields Progress while encoding, then Warned about skipped states, the base model, and the LoRA file that the run
        starts from. Raises ConfigError when the base predicts something else than the run trains.
        """
        with self._explained("while encoding images and captions"):
            yield from self._encode()
        with self._explained(f"while loading the {self.model.denoiser}"):
            self._attach()
        yield from (Warned(text=text) for text in (*self.latest.problems, *self.notes))
        self._restore()

    def step(self, step: int) -> Stepped:
        """Do optimizer step `step` (from 1); any step may follow any other, as all randomness depends on its number."""
        # imported here, as it loads torch: not before signals are caught
        from lorakit.training.step import train_step

        started = time.perf_counter()
        _stop_text_encoders(step, self.adapter, self.model.text_parts, self.stage.config)
        done = train_step(step, self.stage, self.feed, self.model, self.optimizer, self.scaler)
        return Stepped(
            step=step,
            epoch=self.stage.plan.epoch_of(step),
            loss=done.loss,
            lr=optimizers.effective_rate(self.optimizer),
            grad_norm=done.grad_norm,
            skipped=done.skipped,
            images_per_second=done.samples / (time.perf_counter() - started),
            memory_gb=peak_memory_gb(self.precision.device),
        )

    def save(self, step: int, exports: bool) -> Saved:
        """Save the training state of `step`; with `exports` write a LoRA file first, and verify that it loads."""
        lora, matched = "", ""
        if exports:
            file = self.run.lora_file(step)
            described = metadata(self.stages, self.model, step, self.origins.of(step))
            modules = export.write(
                file, self.adapter, self.model, described, self.config.save.dtype, self.config.key_layout
            )
            matched = str(modules)
            lora = str(file.relative_to(self.run.folder))
        state = {
            "step": step,
            "adapter": self.adapter.weights(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            # Stored name of nonfinite.consecutive.
            "bad_steps": self.nonfinite.consecutive,
        }
        folder = checkpoint.write(self.run.states, step, state, self.config.save.keep_states, self.record)
        return Saved(step=step, state=str(folder.relative_to(self.run.folder)), lora=lora, matched=matched)

    # ---- before the first step -----------------------------------------------------------------------------------

    def _inputs(self) -> dict[str, Any]:
        """What the run is made of; the file that it started from is not read again once there is a state."""
        base = {part: self.model.fingerprint(part) for part in self.model.parts}
        inputs = current_inputs(self.config, [stage.scan for stage in self.stages], base, self.precision.name)
        if self.config.adapter.network_weights:
            recorded = load_record(self.run)["network_weights"] if self.latest.folder else None
            inputs["network_weights"] = recorded or warm_start.digest(self.config.adapter.network_weights)
        return inputs

    def _encode(self) -> Iterator[Progress]:
        """Fill the caches for this stage and all later ones, then free what only encodes."""
        sample = self.config.sample
        for feed in self.feeds[self.stage.number - 1 :]:
            yield from feed.fill_caches(prompts_of(sample.prompts, sample, self.config.model))
        self._release_encoders()

    def _release_encoders(self) -> None:
        """Free the VAE and the frozen text encoders, unless a stage trains without caches."""
        if all(stage.config.data.cache_latents for stage in self.stages):
            self.model.release("vae")
        if all(stage.config.data.cache_text for stage in self.stages):
            self.model.release(*(part for part in self.model.text_parts if part not in self.config.trained))

    def _attach(self) -> None:
        """Put the adapter on the model, with the weights that the run starts from, and the optimizer on the adapter."""
        import torch

        config = self.config
        if not self.latest.folder:
            # before there is an adapter, which may hold the weights of a file
            self.notes += check_prediction(self.model, self.feed, self.stage)
        starts_from = config.adapter.network_weights if not self.latest.folder else ""
        weights = warm_start.read(starts_from, self.model) if starts_from else None
        self.adapter = Adapter(config.adapter, self.model, list(config.trained), config.loop.seed)
        if weights:
            self.notes += warm_start.put(weights, self.adapter)
            # the file may name modules of text encoders, which were loaded to match them
            self._release_encoders()
        if config.memory.gradient_checkpointing:
            self.model.enable_gradient_checkpointing()
        self._create_optimizer()
        # scales the loss in fp16 only
        self.scaler = torch.amp.GradScaler(self.precision.device.type, enabled=self.precision.scales_loss)

    def _create_optimizer(self) -> None:
        """Create the optimizer for the parts that this stage trains; freeze the rest of the adapter."""
        rates = self.stage.config.rates
        for part in self.config.trained:
            for weight in self.adapter.parameters(part):
                weight.requires_grad_(part in rates)
        self.optimizer = optimizers.build(
            self.stage.config.optimizer, {part: (self.adapter.parameters(part), rate) for part, rate in rates.items()}
        )

    def _restore(self) -> None:
        """Load the newest valid training state, if there is one."""
        if (state := self.latest.state) is None:
            return
        self.adapter.load(state["adapter"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.nonfinite.consecutive = state["bad_steps"]

    # ---- stages --------------------------------------------------------------------------------------------------

    def _select_stage(self, step: int) -> None:
        """Make the stage that step `step` belongs to the current one; the last stage for later steps."""
        self.stage = next((stage for stage in self.stages if step <= stage.plan.last), self.stages[-1])
        self.feed = self.feeds[self.stage.number - 1]

    def _next_stage(self, step: int) -> Iterator[Warned]:
        """Switch to the stage starting at this step. Keep the optimizer unless its name, args or parts change."""
        before = self.stage.config
        self._select_stage(step)
        now = self.stage.config
        changed = [name for name in ("name", "args") if getattr(before.optimizer, name) != getattr(now.optimizer, name)]
        if not changed and before.rates.keys() == now.rates.keys():
            for group in self.optimizer.param_groups:
                group["base_lr"] = now.rates[group["part"]]
            return
        self._create_optimizer()
        why = " and ".join(f"optimizer.{name}" for name in changed) or "what is trained"
        yield Warned(
            text=f"Stage {self.stage.number} begins with step {step} and a new optimizer, as {why} changes there; an "
            "optimizer that adapts its rate needs 50 to 200 steps to find it again."
        )

    # ---- samples -------------------------------------------------------------------------------------------------

    def _sample(self, step: int, only_missing: bool = False) -> Iterator[Sampled | Warned]:
        """Generate the sample images, or only those that are not there; no random generator that training uses is
        touched.

        Samples that do not fit into memory are skipped, and training continues.
        """
        config = self.config.sample
        files = {index: self.run.samples / f"{step:06d}-{index:02d}.png" for index in range(len(config.prompts))}
        files = {index: file for index, file in files.items() if not (only_missing and file.exists())}
        if not files:
            return
        otherwise = "These samples are skipped and training continues; to generate none, set sample.prompts=[]."
        try:
            with self._explained(f"while generating samples after step {step}", otherwise), self.model.eval_mode():
                for index, file in files.items():
                    prompt = config.prompts[index]
                    sampling, _ = requested(parse(prompt), config, self.config.model)
                    text, negative = map(self.feed.encode_prompt, (parse(prompt), parse(sampling.negative_prompt)))
                    image = generate_image(self.model, text, negative, sampling, sampling.seed)
                    save_image(image, file, {"prompt": prompt, "step": step, **to_dict(sampling)})
                    yield Sampled(step=step, prompt=prompt, image=str(file.relative_to(self.run.folder)))
        except OutOfMemory as error:
            yield Warned(text=str(error))
        self._release_encoders()

    def _explained(self, doing: str, otherwise: str = "") -> AbstractContextManager[None]:
        return explained(self.stage.config, self.precision.device, doing, otherwise=otherwise)


def _other_threads(run: Run, inputs: dict[str, Any], device: Any, has_state: bool) -> Iterator[Warned]:
    """Add the number of CPU threads to the inputs; a warning, once, when the run was trained with another one."""
    import torch

    if device.type != "cpu":
        return
    inputs["threads"] = now = torch.get_num_threads()
    before = load_record(run).get("threads", now)
    if has_state and now != before:
        yield Warned(
            text=f"This session computes with {now} CPU threads, the one before it with {before}: sums are rounded in "
            "another order, so the last digits of the result may differ. For the same bits stop, set "
            f"OMP_NUM_THREADS={before} and train again."
        )


def _dataset_notes(stages: Sequence[Stage], model: Any) -> Iterator[Warned]:
    """One warning with the first MAX_NOTES notes about the dataset and about captions that are too long."""
    notes = [
        *dict.fromkeys(str(note) for stage in stages for note in stage.scan.notes),
        *cut_captions(stages, model),
    ]
    if notes:
        more = f"\nand {len(notes) - MAX_NOTES} more" if len(notes) > MAX_NOTES else ""
        yield Warned(text="\n".join(notes[:MAX_NOTES]) + more)


def _stop_text_encoders(step: int, adapter: Adapter, text_parts: Sequence[str], config: RunConfig) -> None:
    """Freeze the text encoders' adapters after `optimizer.text_encoder_stop_step`.

    Their gradients are None from then on, and optimizers skip such parameters.
    """
    last = config.optimizer.text_encoder_stop_step
    for part in config.rates.keys() & {*text_parts}:
        for weight in adapter.parameters(part):
            # also switched on again, in a stage that stops later or never
            weight.requires_grad_(not last or step <= last)
