"""Sampling of images: grids, regions of interest, boxes, and deformed convolution."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from graphopt.importing.table import operator
from graphopt.importing.values import NotImportable, as_tensor, number, sizes

_GRID_MODES = {"bilinear": "bilinear", "linear": "bilinear", "nearest": "nearest", "bicubic": "bicubic", "cubic": "bicubic"}


def _refuse_grid(attributes: dict[str, Any]) -> str | None:
    mode = attributes.get("mode", "linear")
    return None if mode in _GRID_MODES else f"its mode '{mode}' is not known"


@operator("GridSample", since=16, refuse=_refuse_grid)
def grid_sample(x: Tensor, grid: Tensor, *, align_corners: int = 0, mode: str = "linear", padding_mode: str = "zeros") -> Tensor:
    return functional.grid_sample(x, grid.to(x.dtype), _GRID_MODES[mode], padding_mode, bool(align_corners))


@operator("AffineGrid", since=20, hosts=True)
def affine_grid(theta: Any, size: Any, *, align_corners: int = 0) -> Tensor:
    return functional.affine_grid(as_tensor(theta), sizes(size), bool(align_corners))


def _corners(at: Tensor, size: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Both neighbours of positions along one axis, how far they are from the first, and which are within reach."""
    reachable = (at >= -1) & (at <= size)
    at = at.clamp(min=0)
    low = at.to(torch.int64)
    edge = low >= size - 1
    low = torch.where(edge, torch.full_like(low, 0) + (size - 1), low)
    high = torch.where(edge, low, low + 1)
    return low, high, torch.where(edge, torch.zeros_like(at), at - low), reachable


def _steps(start: Tensor, length: Tensor, outputs: int, ratio: int) -> tuple[Tensor, Tensor, Tensor]:
    """Positions [regions, outputs, steps] along one axis, how many steps of each region count, and a mask of those.

    With a ratio of 0 each region has as many steps as it has pixels for one element of the output.
    """
    each = length / outputs
    if ratio > 0:
        count, most = torch.full_like(length, ratio), ratio
    else:
        count = torch.ceil(each)
        if torch.compiler.is_compiling() or torch.compiler.is_exporting():
            raise NotImportable("RoiAlign without a sampling_ratio takes as many samples as its data say, and cannot be exported")
        most = max(int(count.max().item()), 1) if count.numel() else 1
    inner = torch.arange(most, device=start.device, dtype=start.dtype)
    cells = torch.arange(outputs, device=start.device, dtype=start.dtype)
    at = start[:, None, None] + cells[None, :, None] * each[:, None, None] + (inner + 0.5) * (each / count.clamp(min=1))[:, None, None]
    return at, count, inner[None, :] < count[:, None]


@operator("RoiAlign", since=10)
def roi_align_10(
    x: Tensor, rois: Tensor, batch: Tensor, *, mode: str = "avg", output_height: int = 1, output_width: int = 1, sampling_ratio: int = 0,
    spatial_scale: float = 1.0,
) -> Tensor:  # fmt: skip
    return _roi_align(x, rois, batch, "output_half_pixel", mode, output_height, output_width, sampling_ratio, spatial_scale)


@operator("RoiAlign", since=16)
def roi_align(
    x: Tensor, rois: Tensor, batch: Tensor, *, coordinate_transformation_mode: str = "half_pixel", mode: str = "avg",
    output_height: int = 1, output_width: int = 1, sampling_ratio: int = 0, spatial_scale: float = 1.0,
) -> Tensor:  # fmt: skip
    return _roi_align(x, rois, batch, coordinate_transformation_mode, mode, output_height, output_width, sampling_ratio, spatial_scale)


def _roi_align(x: Tensor, rois: Tensor, batch: Tensor, where: str, mode: str, height: int, width: int, ratio: int, scale: float) -> Tensor:
    """Samples [regions, height, steps, width, steps, channels], then their mean or their largest weighted corner."""
    shift = 0.5 if where == "half_pixel" else 0.0
    left, top, right, bottom = (rois * scale - shift).unbind(1)
    wide, high = right - left, bottom - top
    if where != "half_pixel":
        wide, high = wide.clamp(min=1), high.clamp(min=1)
    y, rows, row_counts = _steps(top, high, height, ratio)
    z, columns, column_counts = _steps(left, wide, width, ratio)
    y0, y1, dy, y_in = _corners(y, x.shape[2])
    z0, z1, dz, z_in = _corners(z, x.shape[3])
    image = batch.to(torch.int64)[:, None, None, None, None]

    def corner(ys: Tensor, zs: Tensor, weight_y: Tensor, weight_z: Tensor) -> Tensor:
        weight = (weight_y * y_in)[:, :, :, None, None] * (weight_z * z_in)[:, None, None, :, :]
        return x.movedim(1, -1)[image, ys[:, :, :, None, None], zs[:, None, None, :, :]] * weight[..., None]

    parts = [corner(y0, z0, 1 - dy, 1 - dz), corner(y0, z1, 1 - dy, dz), corner(y1, z0, dy, 1 - dz), corner(y1, z1, dy, dz)]
    counted = (row_counts[:, None, :, None, None] & column_counts[:, None, None, None, :])[..., None]
    if mode == "max":
        largest = torch.stack(parts).amax(0)
        found = torch.where(counted, largest, torch.full((), -torch.inf, dtype=x.dtype, device=x.device)).amax((2, 4))
    else:
        total = torch.where(counted, sum(parts), torch.zeros((), dtype=x.dtype, device=x.device)).sum((2, 4))
        found = total / (rows * columns).clamp(min=1)[:, None, None, None]
    return found.movedim(-1, 1)


@operator("NonMaxSuppression", since=10, hosts=True)
def non_max_suppression(
    boxes: Any, scores: Any, most: Any = None, iou_threshold: Any = None, score_threshold: Any = None, *, center_point_box: int = 0
) -> Tensor:
    """Boxes in the order of their scores, without those that one before them overlaps by more than the threshold."""
    if torch.compiler.is_compiling() or torch.compiler.is_exporting():
        raise NotImportable("NonMaxSuppression decides on data box by box, and cannot be exported")
    boxes, scores = as_tensor(boxes), as_tensor(scores)
    limit = 0 if most is None else int(number(most))
    overlap = 0.0 if iou_threshold is None else float(number(iou_threshold))
    found = []
    corners = _corner_boxes(boxes, bool(center_point_box))
    for b in range(scores.shape[0]):
        for c in range(scores.shape[1]):
            row = scores[b, c]
            order = torch.argsort(row, descending=True, stable=True)
            if score_threshold is not None:
                order = order[row[order] > float(number(score_threshold))]
            chosen = 0
            while chosen < limit and order.numel():
                first = order[0]
                found.append([b, c, int(first)])
                chosen += 1
                order = order[1:]
                order = order[_iou(corners[b, first], corners[b, order]) <= overlap]
    return torch.tensor(found, dtype=torch.int64, device=boxes.device).reshape(-1, 3)


def _corner_boxes(boxes: Tensor, centers: bool) -> Tensor:
    """Boxes as their least and greatest corner."""
    if centers:
        middle, half = boxes[..., :2], boxes[..., 2:] / 2
        return torch.cat([middle - half, middle + half], -1)
    return torch.cat([torch.minimum(boxes[..., :2], boxes[..., 2:]), torch.maximum(boxes[..., :2], boxes[..., 2:])], -1)


def _iou(box: Tensor, others: Tensor) -> Tensor:
    """Shared area over the area of both; 0 where one of them has none."""
    sides = (torch.minimum(box[2:], others[:, 2:]) - torch.maximum(box[:2], others[:, :2])).clamp(min=0)
    shared = sides.prod(-1)
    union = (box[2:] - box[:2]).prod() + (others[:, 2:] - others[:, :2]).prod(-1) - shared
    return torch.where(shared > 0, shared / union, torch.zeros_like(shared))


def _between_pixels(images: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """Bilinear values of images [n, channels, height, width] at positions [n, points]; a neighbour outside is 0."""
    height, width = images.shape[2:]
    flat = images.flatten(2)
    found = torch.zeros((), dtype=images.dtype, device=images.device)
    for row, at_y in ((torch.floor(y), 1 - (y - torch.floor(y))), (torch.floor(y) + 1, y - torch.floor(y))):
        for column, at_x in ((torch.floor(x), 1 - (x - torch.floor(x))), (torch.floor(x) + 1, x - torch.floor(x))):
            inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
            place = torch.where(inside, row * width + column, torch.zeros_like(row)).to(torch.int64)
            picked = flat.gather(2, place[:, None, :].expand(-1, flat.shape[1], -1))
            found = found + picked * torch.where(inside, at_y * at_x, torch.zeros_like(y))[:, None, :]
    return found


@operator("DeformConv", since=19)
def deform_conv(
    x: Tensor,
    w: Tensor,
    offset: Tensor,
    b: Tensor | None = None,
    mask: Tensor | None = None,
    *,
    dilations: list[int] | None = None,
    group: int = 1,
    kernel_shape: list[int] | None = None,
    offset_group: int = 1,
    pads: list[int] | None = None,
    strides: list[int] | None = None,
) -> Tensor:
    """Each element of the kernel looks where its offset moves it, between pixels; outside of the image is 0."""
    if x.dim() != 4:
        raise NotImportable("a deformed convolution over other than two spatial axes is not supported")
    strides, dilations, pads = strides or [1, 1], dilations or [1, 1], pads or [0] * 4
    batch, channels, height, width = x.shape
    kernel = w.shape[2:]
    outputs = offset.shape[2:]
    moved = offset.reshape(batch * offset_group, kernel[0], kernel[1], 2, *outputs)
    place = []
    for axis in range(2):
        inside = torch.arange(kernel[axis], device=x.device) * dilations[axis]
        start = torch.arange(outputs[axis], device=x.device) * strides[axis] - pads[axis]
        at = inside.reshape([-1, 1, 1, 1] if axis == 0 else [1, -1, 1, 1]) + start.reshape([1, 1, -1, 1] if axis == 0 else [1, 1, 1, -1])
        place.append((at + moved[:, :, :, axis]).reshape(batch * offset_group, -1))
    seen = _between_pixels(x.reshape(batch * offset_group, channels // offset_group, height, width), *place)
    seen = seen.reshape(batch, offset_group, channels // offset_group, kernel[0] * kernel[1], *outputs)
    if mask is not None:
        seen = seen * mask.reshape(batch, offset_group, 1, kernel[0] * kernel[1], *outputs)
    seen = seen.reshape(batch, group, -1, outputs[0] * outputs[1])
    weights = w.reshape(group, w.shape[0] // group, -1)
    found = torch.matmul(weights, seen).reshape(batch, w.shape[0], *outputs)
    return found if b is None else found + b.reshape(-1, 1, 1)
