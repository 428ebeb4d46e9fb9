"""Second stage of a translation: normalised conditions, the base, and the box to sample, on the device."""

from __future__ import annotations

import torch
from torch import Tensor

from scorefusion.data import Box, least_box, prepare_conditions, sampling_box, warnings_of
from scorefusion.degradations import Inpainting, Operator
from scorefusion.errors import BadInput
from scorefusion.io import Scan
from scorefusion.pipeline.footprint import Room
from scorefusion.pipeline.job import Job


def prepare(job: Job, room: Room, operator: Operator | None = None) -> None:
    """Bring a job's images to the output's grid; see :meth:`scorefusion.Pipeline.prepare`."""
    config, device, settings, mask = room.config, room.engines.device, job.settings, job.mask
    with job.stage("prepare", "preparing it"):
        _check_room(job, room, operator)
        measured = operator
        if mask is not None:
            measured = Inpainting(volume_of(mask, device)[0, 0] == 0)
        volumes = [volume_of(scan, device) for scan in job.scans]
        job.prepared = prepare_conditions(volumes, config, operator=measured)
        job.box = Box.whole(job.prepared.base.shape[2:])
        if settings.crop and operator is None:
            job.box = sampling_box(job.prepared.condition, config, job.prepared.levels)
        shapes = [scan.values.shape for scan in job.scans]
        job.footprint = room.footprint(
            shapes, job.box.size, settings, operator=operator is not None, walk=False
        )
    problems = [
        BadInput(scan.name, *text)
        for scan, texts in zip(job.scans, job.prepared.found, strict=True)
        for text in texts
    ]
    job.warnings += warnings_of(problems, strict=settings.strict)
    job.scans, job.mask = job.scans[:1], None


def volume_of(scan: Scan, device: torch.device | str = "cpu") -> Tensor:
    """Return an image's voxels as ``[1, 1, d, h, w]`` on a device."""
    return torch.from_numpy(scan.values)[None, None].to(device)


def _check_room(job: Job, room: Room, operator: Operator | None) -> None:
    """Refuse what cannot be sampled before anything is put on the output's grid."""
    shapes, settings, config = [scan.values.shape for scan in job.scans], job.settings, room.config
    if room.roomy(shapes, settings):
        return
    box: Box | None = Box.whole(config.degradation.grid(shapes[0]))
    if settings.crop and operator is None:
        box = least_box([volume_of(scan) for scan in job.scans], config)
    size = shapes[0] if box is None else box.size
    least = room.footprint(shapes, size, settings, operator=operator is not None)
    own = job.scan.own_factors
    room.check(job.scan.name, least, settings, done=("read",), sample=box is not None, own_order=own)
