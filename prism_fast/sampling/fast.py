"""Levels 1 and 2 of the exactness ladder: a loop that owns its buffers, asks the host nothing, and can be captured.

A step is one function of a :class:`StepKind`: it reads which step it is from the device, so each kind is one CUDA graph
for all its steps. Without CUDA the same function is called.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from prism_fast.energy.terms import logit_weights
from prism_fast.errors import UserError
from prism_fast.ops.guided_step import guided_step, x0_change
from prism_fast.ops.image_norms import image_norms
from prism_fast.ops.predict_x0 import predict_x0
from prism_fast.ops.step_table import Column
from prism_fast.pipeline.attention import use_xformers
from prism_fast.pipeline.decoder import AutoencoderDecoder, decode, load_decoder, rows_at_once, to_uint8
from prism_fast.pipeline.denoiser import Denoiser
from prism_fast.pipeline.encoder import encode
from prism_fast.pipeline.feature_reuse import SplitUNet, compiled
from prism_fast.pipeline.tokens import with_tokens
from prism_fast.sampling.batch import RowReader, Rows, SampleBatch
from prism_fast.sampling.buffers import Sizes, allocate, check_sizes
from prism_fast.sampling.capture import Captured
from prism_fast.sampling.config import GuidanceConfig, SamplerConfig
from prism_fast.sampling.copies import Copies, copies_for, decoding_dtype, decoding_network, is_compiled
from prism_fast.sampling.energy import guidance_term
from prism_fast.sampling.guidance import (
    GateThresholds,
    check_gate,
    check_parts,
    gate_values,
)
from prism_fast.sampling.image_to_image_config import first_step
from prism_fast.sampling.noise import Noise, draw_noise, random_direction
from prism_fast.sampling.pending import Pending, done
from prism_fast.sampling.serving import check_term, is_capturable, serving
from prism_fast.sampling.start import Start, check_start
from prism_fast.sampling.state import State, text_state
from prism_fast.sampling.step_kind import StepKind
from prism_fast.sampling.trajectory import Trajectory, trajectory
from prism_fast.sampling.transfer import marked, to_device, to_host
from prism_fast.teachers.base import Teacher
from prism_fast.teachers.eager import EagerTeacher, power_of_two
from prism_fast.teachers.fused import RawGradient, raw_gradient


class FastSampler:
    """Rows (prompt, class, seed) to images, as ``ReferenceSampler`` makes them, in a fraction of the time.

    On CUDA it owns channels-last copies of UNet, autoencoders and teacher, which are renewed when the pipeline's
    networks change; the pipeline itself is left as it is.

    Args:
        pipe: a loaded pipeline; its dtype must be ``config.dtype``.
        config: how to sample; ``level`` is ``exact`` or ``fast``.
        teacher: what guides; needed with ``config.guidance``.
        gate: pilot thresholds; needed with ``config.guidance.gate == "pilot"``.
        sizes: of latents and text; None: the pipeline's own.
        copies: of the pipeline's networks, shared with its other samplers.

    Raises:
        UserError: something needed is missing or does not fit; the message names it.
    """

    def __init__(
        self,
        pipe: Any,
        config: SamplerConfig,
        teacher: Teacher | None = None,
        gate: GateThresholds | None = None,
        sizes: Sizes | None = None,
        copies: Copies | None = None,
    ) -> None:
        pipe = with_tokens(pipe, config.tokens)
        _check(pipe, config, teacher, gate)
        self.config = config
        self._pipe = pipe
        self._teacher = serving(teacher, config) if teacher is not None and config.guidance is not None else None
        self._term = guidance_term(config.guidance, teacher) if config.guidance is not None and teacher else None
        check_term(self._teacher, self._term)
        self.device: torch.device = pipe.unet.device
        self._cuda = self.device.type == "cuda"
        self._compile = is_compiled(config, self.device)
        self._copies = copies if copies is not None else copies_for(config, self.device)
        self._sizes = sizes if sizes is not None else Sizes.of(pipe)
        self._told = text_state(pipe)
        self._prepared = State()
        self._rows = RowReader(pipe, config.compute_batch, teacher.num_classes if teacher is not None else None)
        self._trajectories = {at: trajectory(pipe.scheduler, config, self.device, at) for at in _firsts(config)}
        self._take(whole := self._trajectories[0])
        # graphs are captured with this table, and each batch copies its trajectory's into it
        self._table = whole.coefficients.clone()
        self._timesteps, self.draws = whole.timesteps, whole.draws
        self._noisy = any(steps.table.noisy for steps in self._trajectories.values())
        gated = gate if config.guidance is not None and config.guidance.gate == "pilot" else None
        self._thresholds = None if gated is None else gated.on(self.device)
        self._decode_rows = rows_at_once(pipe, self._sizes.latents[1:], config.compute_batch)
        depth = max(steps.table.depth for steps in self._trajectories.values())
        self._buffers = allocate(pipe, config, self._sizes, depth, whole.steps, whole.draws)
        self._prepare()

    @torch.no_grad()
    def sample(self, prompts: Sequence[str], class_indices: Sequence[int], seeds: Sequence[int]) -> SampleBatch:
        """Up to ``compute_batch`` rows to images; shorter batches are padded inside.

        Args:
            prompts: [n].
            class_indices: [n], 0-based; what the energy's class term asks for.
            seeds: [n], 0 <= seed < 2**63.

        Raises:
            UserError: lengths differ, too many rows, an unknown class, a seed out of range, a prompt too long.
        """
        return self._sampled(prompts, class_indices, seeds, None)

    def _sampled(
        self, prompts: Sequence[str], class_indices: Sequence[int], seeds: Sequence[int], start: Start | None
    ) -> SampleBatch:
        check_start(self.config, start)
        rows, noise = self._prepared_rows(prompts, class_indices, seeds, start)
        self.run(rows, noise, start)
        return self._finish(rows.count).result()

    @torch.no_grad()
    def begin(
        self, prompts: Sequence[str], class_indices: Sequence[int], seeds: Sequence[int], start: Start | None = None
    ) -> Pending:
        """As :meth:`sample`, without waiting for a CUDA device: everything is queued, the copies to the host too.

        Rows that start from images say so in ``start``.

        A write through ``weight.data`` shows on the device alone. Where one came before, the batch is of the weights
        before it: that is found when the batch is there, and its ``result`` raises UserError.
        """
        if not self._cuda:
            return done(self._sampled(prompts, class_indices, seeds, start))
        check_start(self.config, start)
        now, told = self._state(), text_state(self._pipe)
        if now.seen != self._prepared.seen:
            self._renew()
            now = self._prepared
        if told.seen != self._told.seen:
            self._forget(told)
        rows = self._rows(prompts, class_indices, seeds)
        self.run(rows, self._noise(rows, start), start)
        pending, made_of = self._finish(rows.count), (self._prepared, self._told)

        def finish() -> SampleBatch:
            batch = pending.result()
            if (now, told) != made_of:
                self._prepared = State()
                self._forget(State())
                raise UserError(
                    "the pipeline's weights were written to through weight.data, which a batch that is begun ahead "
                    "cannot see: begin it again, or write to the weights themselves"
                )
            return batch

        return Pending(images=pending.images, finish=finish)

    @torch.no_grad()
    def follow(
        self,
        prompts: Sequence[str],
        class_indices: Sequence[int],
        seeds: Sequence[int],
        states: Sequence[Tensor],
        start: Start | None = None,
    ) -> list[tuple[Tensor | None, Tensor]]:
        """Every step from a given state instead of the one before it: where this sampler and another part.

        Args:
            prompts, class_indices, seeds: as :meth:`sample` takes them.
            states: fp32 [B, C, h, w] before each step, padding included (``ReferenceSampler`` shows them).
            start: where rows begin that start from images.

        Returns:
            Of each step the gradient that guided it (None where it was not) and the sample after it, [B, C, h, w].
        """
        check_start(self.config, start)
        self._fill(*self._prepared_rows(prompts, class_indices, seeds, start), start)
        found: list[tuple[Tensor | None, Tensor]] = []
        for kind, state in zip(self._kinds, states, strict=True):
            self._buffers.sample.copy_(state)
            self._graphs.run(kind, partial(self._advance, kind))
            gradient = self._buffers.gradient.clone() if kind.gradient != "none" else None
            found.append((gradient, self._buffers.sample.clone()))
        return found

    def guided_from(self, step: int) -> tuple[int, ...]:
        """The guided steps of rows that begin at ``step``."""
        return self._trajectories[step].guided

    def _prepared_rows(
        self, prompts: Sequence[str], class_indices: Sequence[int], seeds: Sequence[int], start: Start | None
    ) -> tuple[Rows, Noise]:
        """A batch and its noise, for the weights that the pipeline has now."""
        self.refresh()
        told = text_state(self._pipe)
        if told != self._told:
            self._forget(told)
        rows = self._rows(prompts, class_indices, seeds)
        return rows, self._noise(rows, start)

    def _noise(self, rows: Rows, start: Start | None) -> Noise:
        return draw_noise(rows.seeds, self._sizes.latents, draws=self._trajectories[start.step if start else 0].draws)

    # -- the parts of sample, for who has rows and noise already ------------------------------------------------------

    def refresh(self) -> None:
        """Networks anew where the pipeline's have changed.

        Raises:
            UserError: it was moved to another device or converted to another precision.
        """
        if self._state() != self._prepared:
            self._renew()

    def _renew(self) -> None:
        check_parts(self._pipe, self.config, self._teacher)
        if self._pipe.unet.device != self.device:
            raise UserError(f"the pipeline was moved from {self.device} to {self._pipe.unet.device}: move it back")
        self._prepare()

    def _forget(self, told: State) -> None:
        """The prompts: the text encoders are others now."""
        self._rows.forget()
        self._told = told

    @torch.no_grad()
    def run(self, rows: Rows, noise: Noise, start: Start | None = None) -> None:
        """The loop, whose results ``latents``, ``images`` and ``trace`` give until the next run.

        Args:
            rows: B = ``compute_batch`` of them, padding included.
            noise: of B images, with ``draws`` steps; fewer where they begin later.
            start: where rows begin that start from images.
        """
        self._fill(rows, noise, start)
        for kind in self._kinds:
            self._graphs.run(kind, partial(self._advance, kind))

    def latents(self, count: int) -> Tensor:
        """fp32 [count, C, h, w], scaled."""
        return self._buffers.sample[:count].clone()  # the next batch writes into this one

    @torch.no_grad()
    def images(self, count: int) -> Tensor:
        """At least fp32 [count, 3, H, W] in [0, 1]."""
        parts = self._buffers.sample.split(self._decode_rows)
        return torch.cat([decode(self._decoder, part) for part in parts])[:count]

    def trace(self, count: int) -> tuple[Tensor, Tensor, Tensor]:
        """Energy [S, count] and gate [S, count] at the guided steps, and how many guidances were dropped [count]."""
        buffers = self._buffers
        energy, norms = buffers.energies[self._taken.traced], buffers.norms[self._taken.traced]
        applied = energy.isfinite() & norms.isfinite() & (norms > 0)
        thresholds = None if self._thresholds is None else (buffers.tau, buffers.delta)
        gate = torch.where(applied, gate_values(energy, thresholds), 0.0)
        return energy[:, :count], gate[:, :count], (~applied[:, :count]).long().sum(0)

    # -- what is made once --------------------------------------------------------------------------------------------

    def _prepare(self) -> None:
        """Networks, gradient and graphs, for the weights that the pipeline has now."""
        self._prepared = self._state()
        check_sizes(self._pipe, self._sizes)
        unet = self._copies.of(f"unet, attention {self.config.attention}", self._pipe.unet)
        if self.config.attention == "xformers":
            use_xformers(unet)
        self._decoder = AutoencoderDecoder(decoding_network(self._pipe, self._copies))
        self._split = SplitUNet(unet) if self.config.reuse_features > 1 else None
        if self._split is not None and self._compile:
            self._split = compiled(self._split)
        self._denoiser = Denoiser(self._pipe, self.config.cfg_scale, unet, compile=self._compile)
        self._gradient = self._make_gradient()
        self._graphs = Captured(self._buffers.all(), self._cuda and is_capturable(self._teacher))

    def _state(self) -> State:
        """Of the networks that are copied."""
        unet, vae = self._pipe.unet, self._pipe.vae
        return self._copies.state(unet) + self._copies.state(vae, decoding_dtype(vae))

    def _make_gradient(self) -> RawGradient | None:
        guidance, teacher = self.config.guidance, self._teacher
        if guidance is None or teacher is None or self._term is None:
            return None
        self._guidance_decoder = load_decoder(
            self._pipe,
            guidance.decoder,
            guidance.tiny,
            network=decoding_network(self._pipe, self._copies),
            size=self._sizes.latents[1:],
            layout=self._copies.layout,
        )
        network = None
        if isinstance(teacher, EagerTeacher) and logit_weights(self._term) is not None:
            network = self._copies.of("teacher", teacher.model)
            network = torch.compile(network, dynamic=False) if self._compile else network
        return raw_gradient(
            teacher,
            network,
            low=self._guidance_decoder.low,
            high=self._guidance_decoder.high,
            term=self._term,
        )

    # -- one batch ----------------------------------------------------------------------------------------------------

    def _take(self, taken: Trajectory) -> None:
        """The trajectory of the batch that comes."""
        self._taken, self._kinds = taken, taken.kinds

    def _fill(self, rows: Rows, noise: Noise, start: Start | None = None) -> None:
        """Everything that the host knows about a batch, in one go before the loop."""
        buffers, unit = self._buffers, to_device(noise.init, self.device)
        first = start.step if start is not None else 0
        if first != self._taken.first:
            self._take(self._trajectories[first])
            self._table.copy_(self._taken.coefficients)
        if start is None:
            buffers.sample.copy_(unit).mul_(self._taken.scale)
        else:
            buffers.sample.copy_(self._taken.noised(self._encoded(start), unit))
        buffers.noise[first : first + len(noise.steps)].copy_(to_device(noise.steps, self.device))
        buffers.step.fill_(first)
        buffers.text.copy_(rows.text)
        buffers.unconditional.copy_(rows.unconditional)
        if rows.pooled is not None and rows.time_ids is not None:
            buffers.pooled.copy_(rows.pooled)
            buffers.time_ids.copy_(rows.time_ids)
        buffers.targets.copy_(rows.targets)
        buffers.energies.zero_()
        buffers.norms.zero_()
        if self._thresholds is not None:
            torch.index_select(self._thresholds[0], 0, buffers.targets, out=buffers.tau)
            torch.index_select(self._thresholds[1], 0, buffers.targets, out=buffers.delta)
        if self.config.guidance is not None and self.config.guidance.direction == "random":
            buffers.direction.copy_(to_device(random_direction(rows.seeds, self._sizes.latents), self.device))

    def _encoded(self, start: Start) -> Tensor:
        """Sources as latents, in calls of the decoder's shape."""
        images = to_device(start.padded(self.config.compute_batch), self.device)
        network = decoding_network(self._pipe, self._copies)
        return torch.cat([encode(network, part) for part in images.split(self._decode_rows)])

    def _advance(self, kind: StepKind) -> None:
        """One step, in place, whichever the device's counter says."""
        buffers = self._buffers
        row = self._table.index_select(0, buffers.step)[0]
        inputs = buffers.sample * row[Column.INPUT]
        if kind.moved:
            at_x0 = self.config.guidance is not None and self.config.guidance.at == "x0"
            first = self._predict(kind, inputs) if kind.gradient == "new" and at_x0 else None
            change = x0_change(row[Column.STRENGTH], **self._guidance(kind, first, inputs), dtype=torch.float32)
            buffers.sample.add_(change / row[Column.INPUT])
            inputs = buffers.sample * row[Column.INPUT]
        prediction = self._predict(kind, inputs)
        guidance = self._guidance(kind, prediction, inputs) if kind.gradient != "none" and not kind.moved else {}
        guided_step(
            buffers.sample,
            prediction,
            self._table,
            buffers.step,
            buffers.history,
            self.config.cfg_scale,
            noise=buffers.noise if self._noisy else None,
            **guidance,
        )
        buffers.step.add_(1)

    def _guidance(self, kind: StepKind, prediction: Tensor | None, inputs: Tensor) -> dict[str, Any]:
        """What the guidance of a step is made of, as ``guided_step`` takes it; its trace is kept."""
        buffers = self._buffers
        if kind.gradient == "new" and self._gradient is not None:
            self._take_gradient(self._gradient, prediction, inputs)
        energy, rms = buffers.last
        buffers.energies.index_copy_(0, buffers.step, energy[None])
        buffers.norms.index_copy_(0, buffers.step, rms[None])
        gated = self._thresholds is not None
        tau, delta = (buffers.tau, buffers.delta) if gated else (None, None)
        return {"gradient": buffers.gradient, "rms": rms, "energy": energy, "tau": tau, "delta": delta}

    def _predict(self, kind: StepKind, inputs: Tensor) -> Tensor:
        """[2B, C, h, w] under classifier-free guidance, unconditional half first, else [B, C, h, w]."""
        buffers, batch = self._buffers, self.config.compute_batch
        inputs, text = inputs.to(self._pipe.unet.dtype), buffers.text
        if kind.cfg:
            inputs, text = torch.cat([inputs, inputs]), torch.cat([buffers.unconditional, text])
        inputs = inputs.contiguous(memory_format=self._copies.layout)
        timestep, added = self._timesteps.index_select(0, buffers.step), buffers.added(kind.cfg)
        if self._split is None:
            return self._denoiser.predict(inputs, timestep, text, added)
        kept = buffers.features if kind.cfg else buffers.features[batch:]
        if kind.features == "kept":
            return self._split.outer(inputs, timestep, text, kept, added)
        prediction, features = self._split.whole(inputs, timestep, text, added)
        kept.copy_(features)
        return prediction

    def _take_gradient(self, gradient: RawGradient, prediction: Tensor | None, inputs: Tensor) -> None:
        """Energy, gradient and its norm into the buffers. Without a prediction x_t is decoded as it is."""
        guidance, buffers = self.config.guidance or GuidanceConfig(), self._buffers
        if guidance.at == "noisy" or prediction is None:
            latents = inputs
        else:
            latents = predict_x0(buffers.sample, prediction, self._table, buffers.step, self.config.cfg_scale)
        latents = latents.requires_grad_()
        with torch.enable_grad():
            raw = self._guidance_decoder.raw(latents)
        energy, along = gradient(raw.detach(), buffers.targets)
        pulled = _pulled_back(raw, latents, along)
        norms = image_norms(pulled)
        if guidance.step == "plain":  # a length of one: what is divided by it stays as it is
            norms = torch.where(norms.isfinite() & (norms > 0), 1.0, norms)
        if guidance.direction == "random":  # what is dropped is still decided by the gradient
            usable = norms.isfinite() & (norms > 0)
            pulled, norms = buffers.direction, torch.where(usable, image_norms(buffers.direction), 0.0)
        buffers.gradient.copy_(pulled)
        buffers.last[0].copy_(energy)
        buffers.last[1].copy_(norms)

    def _finish(self, count: int) -> Pending:
        energy, gate, skipped = self.trace(count)
        images = to_uint8(self.images(count))
        batch = SampleBatch(
            images=to_host(images),
            latents=to_host(self.latents(count)),
            guided_steps=self._taken.guided,
            energy=to_host(energy),
            gate=to_host(gate),
            skipped=to_host(skipped),
            compute_batch=self.config.compute_batch,
        )
        wait = marked(self.device)

        def finish() -> SampleBatch:
            wait()
            return batch

        return Pending(images=images, finish=finish)


def _pulled_back(raw: Tensor, latents: Tensor, along: Tensor) -> Tensor:
    """d energy_i / d latents_i fp32 [B, C, h, w] of the decoder's output [B, 3, H, W] and the gradient there, fp32."""
    if raw.dtype != torch.float16:
        (pulled,) = torch.autograd.grad(raw, latents, along.to(raw))
        return pulled
    # fp16 flushes small gradients to zero: each image's largest is brought to [1, 2), exactly
    scale = power_of_two(along.flatten(1)).view(-1, 1, 1, 1)
    (pulled,) = torch.autograd.grad(raw, latents, (along * scale).to(raw))
    return pulled / scale


def _check(pipe: Any, config: SamplerConfig, teacher: Teacher | None, gate: GateThresholds | None) -> None:
    if config.level == "reference":
        raise UserError("level: reference is ReferenceSampler's; this is exact and fast")
    check_parts(pipe, config, teacher)
    if config.guidance is not None and teacher is not None:
        check_gate(config.guidance, teacher, gate)


def _firsts(config: SamplerConfig) -> set[int]:
    """First steps of the rows that a sampler may be asked for."""
    own = config.image_to_image
    return {0} | ({first_step(strength, config.steps) for strength in own.strengths} if own is not None else set())
