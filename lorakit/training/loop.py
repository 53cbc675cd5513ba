"""The training algorithm: a run goes from its newest state to its end, as a stream of events."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, suppress
from typing import TYPE_CHECKING, Any

from lorakit import events, optimizers, schedules
from lorakit.config import to_dict
from lorakit.data.feed import Feed
from lorakit.errors import UserError
from lorakit.events import Event, Failed, Finished, Sampled, Saved, Started, Stepped, Stopped, Warned
from lorakit.lora import export, warm_start
from lorakit.lora.adapter import Adapter
from lorakit.machine.device import Precision, choose_precision, keep_freed_memory, make_deterministic, peak_memory_gb
from lorakit.models import family
from lorakit.project import Run, disk_full_errors
from lorakit.project.lock import lock_run
from lorakit.randomness import generator, seed_of
from lorakit.run import checkpoint
from lorakit.run.config import RunConfig, read_config
from lorakit.run.memory import OutOfMemory, explained
from lorakit.run.resume import check_unchanged, current_inputs, load_record, save_record
from lorakit.run.sampling import generate_image, save_image
from lorakit.run.stages import cut_captions, stages
from lorakit.training.metadata import metadata
from lorakit.training.signals import stop_signals
from lorakit.training.sizes import check_room

if TYPE_CHECKING:
    import torch

BAD_STEPS_IN_A_ROW = 20
NOTES = 20  # about the dataset, in the log at each start


class TrainingDiverged(UserError):
    """Losses or gradients were not finite for many steps in a row; the last good state is kept."""


def train(run: Run) -> Iterator[Event]:
    """Train a run (made with `lorakit.run.create.save_config`) from its newest whole state to its end.

    Yields events and appends them to the run's log. SIGINT and SIGTERM finish the step, save and end with `Stopped`.
    Raises RunBusy while another trainer has the run; with `Failed` at the end of the log RunChanged, DataError,
    ModelFileError, ConfigError before the first step, TrainingDiverged later, OutOfMemory and DiskFull at any time.
    """
    with lock_run(run), stop_signals() as stop:
        try:
            with disk_full_errors(run):
                session = Session(run)
                for event in session.events(stop):
                    events.append(run.log, event, time=time.time())
                    yield event
        except UserError as error:
            with suppress(OSError):  # of a disk that is full to the last byte
                events.append(run.log, Failed(reason=str(error)), time=time.time())
            raise


class Session:
    """One sitting of a run: what is in memory between its steps."""

    def __init__(self, run: Run):
        self.run = run
        self.config: RunConfig = read_config(run)
        self.precision: Precision = choose_precision(self.config.loop.precision)
        make_deterministic(self.precision.device)
        if self.precision.device.type == "cpu":
            keep_freed_memory()
        config = self.config
        self.found = checkpoint.latest_state(run)
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
        self._turn_to(max(1, self.found.step))
        self.bad_steps = 0  # in a row without a finite gradient, up to now
        self.has_warned = False  # of numbers that are not finite

    def events(self, stop: threading.Event) -> Iterator[Event]:
        """The whole sitting, top to bottom."""
        inputs = self._inputs()
        check_unchanged(self.run, inputs, self.stage.number)
        notes = [
            *dict.fromkeys(str(note) for stage in self.stages for note in stage.scan.notes),
            *cut_captions(self.stages, self.model),
        ]
        if notes:
            more = f"\nand {len(notes) - NOTES} more" if len(notes) > NOTES else ""
            yield Warned(text="\n".join(notes[:NOTES]) + more)
        with self._explained("while encoding images and captions"):
            for progress in self._encode():
                yield progress
                if stop.is_set():
                    yield Stopped(step=0, reason="stop was asked for; what is encoded is kept, train again to go on")
                    return
        with self._explained(f"while loading the {self.model.denoiser}"):
            self._attach()
        if self.found.step < self.steps:
            check_room(self.run, self.adapter, self.model, self.stages, self.stage)
        save_record(self.run, inputs, [stage.plan.steps_per_epoch for stage in self.stages])
        done = yield from self._resume()
        yield Started(
            step=done,
            steps=self.steps,
            steps_per_epoch=self.stage.plan.steps_per_epoch,
            images=len(self.stage.scan.samples),
            precision=self.precision.name,
            device=str(self.precision.device),
        )
        saved_at, last_saved = time.monotonic(), done
        for step in range(done + 1, self.steps + 1):
            if step > self.stage.plan.last:
                yield from self._next_stage(step)
            with self._explained(f"in step {step}"):
                stepped = self._step(step)
            yield stepped
            yield from self._watch(stepped)
            exports, samples = (self.stage.due(step, when) for when in (self.config.save, self.config.sample))
            minutes = self.config.save.every_minutes
            if exports or stop.is_set() or (minutes and time.monotonic() - saved_at >= 60 * minutes):
                yield self._save(step, exports)
                saved_at, last_saved = time.monotonic(), step
            if samples:
                yield from self._sample(step)
            if stop.is_set() and step < self.steps:
                yield Stopped(step=last_saved, reason="stop was asked for; train again to go on from here")
                return
        yield Finished(step=self.steps, lora=str(self.run.lora_file(self.steps).relative_to(self.run.folder)))

    def _explained(self, doing: str, otherwise: str = "") -> AbstractContextManager[None]:
        return explained(self.stage.config, self.precision.device, doing, otherwise=otherwise)

    # ---- before the first step -----------------------------------------------------------------------------------

    def _inputs(self) -> dict[str, Any]:
        """What the run is made of; the file that it started from is not read again once there is a state."""
        base = {part: self.model.fingerprint(part) for part in self.model.parts}
        inputs = current_inputs(self.config, [stage.scan for stage in self.stages], base, self.precision.name)
        if self.config.adapter.network_weights:
            known = load_record(self.run)["network_weights"] if self.found.folder else None
            inputs["network_weights"] = known or warm_start.digest(self.config.adapter.network_weights)
        return inputs

    def _encode(self) -> Iterator[Event]:
        """Fill the caches for all stages to come, then let go of everything that training does not need."""
        sample = self.config.sample
        for feed in self.feeds[self.stage.number - 1 :]:
            yield from feed.fill_caches((*sample.prompts, sample.negative_prompt) if sample.prompts else ())
        self._release()

    def _release(self) -> None:
        """Let go of what made the caches, where no stage makes anything anew."""
        if all(stage.config.data.cache_latents for stage in self.stages):
            self.model.release("vae")
        if all(stage.config.data.cache_text for stage in self.stages):
            self.model.release(*(part for part in self.model.text_parts if part not in self.config.trained))

    def _attach(self) -> None:
        """Put the adapter on the model, with the file that the run starts from, and the optimizer on the adapter."""
        import torch

        config, self.notes = self.config, []
        starts_from = config.adapter.network_weights if not self.found.folder else ""
        weights = warm_start.read(starts_from, self.model) if starts_from else None
        self.adapter = Adapter(config.adapter, self.model, list(config.trained), config.loop.seed)
        if weights:
            self.notes = warm_start.put(weights, self.adapter)
            self._release()  # text parts that the file names were read
        if config.memory.gradient_checkpointing:
            self.model.enable_gradient_checkpointing()
        self._begin_optimizer()
        self.scaler = torch.amp.GradScaler(self.precision.device.type, enabled=self.precision.scales_loss)

    def _begin_optimizer(self) -> None:
        """A new optimizer over the parts that the stage trains; the adapter's other parts stand still."""
        rates = self.stage.config.rates
        for part in self.config.trained:
            for weight in self.adapter.parameters(part):
                weight.requires_grad_(part in rates)
        self.optimizer = optimizers.build(
            self.stage.config.optimizer, {part: (self.adapter.parameters(part), rate) for part, rate in rates.items()}
        )

    def _resume(self) -> Iterator[Event]:
        """Put back the newest whole state; returns how many steps it has behind it."""
        yield from (Warned(text=text) for text in (*self.found.problems, *self.notes))
        if (state := self.found.state) is None:
            return 0
        self.adapter.load(state["adapter"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.bad_steps = state["bad_steps"]
        return state["step"]

    # ---- stages --------------------------------------------------------------------------------------------------

    def _turn_to(self, step: int) -> None:
        """Take up the stage that step `step` belongs to; the last one for steps after its end."""
        self.stage = next((stage for stage in self.stages if step <= stage.plan.last), self.stages[-1])
        self.feed = self.feeds[self.stage.number - 1]

    def _next_stage(self, step: int) -> Iterator[Warned]:
        """Go over to the stage that begins with this step; its optimizer is the one before while that is the same."""
        before = self.stage.config
        self._turn_to(step)
        now = self.stage.config
        others = [name for name in ("name", "args") if getattr(before.optimizer, name) != getattr(now.optimizer, name)]
        if not others and before.rates.keys() == now.rates.keys():
            for group in self.optimizer.param_groups:
                group["base_lr"] = now.rates[group["part"]]
            return
        self._begin_optimizer()
        why = " and ".join(f"optimizer.{name}" for name in others) or "what is trained"
        yield Warned(
            text=f"Stage {self.stage.number} begins with step {step} and a new optimizer, as {why} changes there; an "
            "optimizer that adapts itself needs 50 to 200 steps to find its rate again."
        )

    # ---- one step ------------------------------------------------------------------------------------------------

    def _step(self, step: int) -> Stepped:
        """One optimizer step: the mean loss over all samples of its micro-batches, whatever their sizes."""
        begun, plan = time.perf_counter(), self.stage.plan
        micro_batches = plan.micro_batches(step)
        count = sum(map(len, micro_batches))
        factor = schedules.factor(self.stage.config.schedule, step - plan.steps_before, plan.steps)
        optimizers.set_rates(self.optimizer, factor)
        self._stop_text_encoders(step)
        total, good = 0.0, 0
        for micro, indexes in enumerate(micro_batches):
            loss = self._loss(indexes, step, micro, first_place=sum(map(len, micro_batches[:micro]))) / count
            if math.isfinite(value := loss.item()):
                self.scaler.scale(loss).backward()
                total, good = total + value, good + len(indexes)
        grad_norm = self._update(count / good) if good else None
        return Stepped(
            step=step,
            epoch=plan.epoch_of(step),
            loss=total * count / good if good else None,
            lr=optimizers.effective_rate(self.optimizer),
            grad_norm=grad_norm,
            skipped=count - good,
            images_per_second=count / (time.perf_counter() - begun),
            memory_gb=peak_memory_gb(self.precision.device),
        )

    def _loss(self, indexes: list[int], step: int, micro: int, first_place: int) -> torch.Tensor:
        """Sum of the weighted losses of one micro-batch."""
        import torch

        seed, loss = self.config.loop.seed, self.stage.config.loss
        batch = self.feed.batch(indexes, step, first_place)
        draws = generator(seed, step, micro, "noise")
        x0 = self.model.latents(batch.images, draws)
        eps, t = self.model.sample_noise(x0, draws, loss)
        # the modules' own dropout draws from torch's global generator
        torch.manual_seed(seed_of(seed, step, micro, "dropout"))
        text = self.model.condition(self.feed.encode_texts(batch.captions), batch.sizes)
        losses = self.model.loss(x0, eps, t, text, loss, batch.masks)
        return (losses * torch.tensor(batch.weights, device=losses.device)).sum()

    def _update(self, share: float) -> float | None:
        """Clip and step; returns the gradient's norm, None when it was not finite and the step was left out.

        `share` is all samples over those with a finite loss, so that the gradient is the mean over the latter.
        """
        import torch

        self.scaler.unscale_(self.optimizer)
        weights = [p for group in self.optimizer.param_groups for p in group["params"] if p.grad is not None]
        if share != 1:
            torch._foreach_mul_([p.grad for p in weights], share)
        norm = torch.nn.utils.clip_grad_norm_(weights, self.stage.config.optimizer.max_grad_norm or math.inf).item()
        # an enabled scaler leaves a step that is not finite out by itself, and learns from it
        if math.isfinite(norm) or self.scaler.is_enabled():
            self.scaler.step(self.optimizer)
            self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        return norm if math.isfinite(norm) else None

    def _stop_text_encoders(self, step: int) -> None:
        """Freeze the text encoders' adapters after their last step; without gradients an optimizer passes them over."""
        last = self.stage.config.optimizer.text_encoder_stop_step
        for name in self.stage.config.rates.keys() & {*self.model.text_parts}:
            for weight in self.adapter.parameters(name):
                weight.requires_grad_(not last or step <= last)  # also on again, in a stage that stops later or never

    def _watch(self, stepped: Stepped) -> Iterator[Warned]:
        """Report what was not finite, once a sitting; raise TrainingDiverged when many steps in a row were so."""
        self.bad_steps = self.bad_steps + 1 if stepped.grad_norm is None else 0
        if (stepped.grad_norm is None or stepped.skipped) and not self.has_warned:
            self.has_warned = True
            yield Warned(
                text=f"Step {stepped.step}: {stepped.skipped} samples had a loss that is not finite, or the gradient "
                "overflowed; they are left out. Now and then this is harmless; the log counts what follows."
            )
        if self.bad_steps >= BAD_STEPS_IN_A_ROW:
            overflow = "fp16 overflows in this base (try precision bf16 or fp32), " if self.scaler.is_enabled() else ""
            raise TrainingDiverged(
                f"{self.bad_steps} steps in a row, up to step {stepped.step}, had no finite gradient. Likely causes: "
                f"the learning rate is too high (it is {stepped.lr:g}: try a tenth), {overflow}a broken base or VAE. "
                "The last saved state is kept; start a new run with other settings."
            )

    # ---- now and then --------------------------------------------------------------------------------------------

    def _save(self, step: int, exports: bool) -> Saved:
        """Save the state; with `exports` write a LoRA file first, and prove that it loads."""
        lora, matched = "", ""
        if exports:
            file = self.run.lora_file(step)
            described = metadata(self.stages, self.model, step, self.run.name)
            modules = export.write(file, self.adapter, self.model, described, self.config.save.dtype, self.config.form)
            matched = str(modules)
            lora = str(file.relative_to(self.run.folder))
        state = {
            "step": step,
            "adapter": self.adapter.weights(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "bad_steps": self.bad_steps,
        }
        folder = checkpoint.write(self.run.states, step, state, self.config.save.keep_states)
        return Saved(step=step, state=str(folder.relative_to(self.run.folder)), lora=lora, matched=matched)

    def _sample(self, step: int) -> Iterator[Sampled | Warned]:
        """Paint the sample prompts; nothing here draws from a generator that training draws from.

        Samples that do not fit into memory are left out, and training goes on.
        """
        otherwise = "These samples are left out and training goes on; paint none with sample.prompts=[]."
        try:
            with self._explained(f"while painting after step {step}", otherwise), self.model.eval_mode():
                yield from self._painted(step)
        except OutOfMemory as error:
            yield Warned(text=str(error))
        self._release()

    def _painted(self, step: int) -> Iterator[Sampled]:
        config = self.config.sample
        for index, prompt in enumerate(config.prompts):
            text, negative = self.feed.encode_texts([prompt, config.negative_prompt])
            image = generate_image(self.model, text, negative, config, config.seed)
            file = self.run.samples / f"{step:06d}-{index:02d}.png"
            save_image(image, file, {"prompt": prompt, "step": step, **to_dict(config)})
            yield Sampled(step=step, prompt=prompt, image=str(file.relative_to(self.run.folder)))
