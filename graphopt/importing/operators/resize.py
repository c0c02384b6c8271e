"""Resize and Upsample: torch's interpolation where it computes the same, and one axis after the other elsewhere."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from graphopt.importing import resampling
from graphopt.importing.resampling import Resampling
from graphopt.importing.table import operator
from graphopt.importing.values import as_tensor, numbers, sizes

_MODES = ("half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric", "tf_crop_and_resize", "half_pixel_symmetric",
          "tf_half_pixel_for_nn")  # fmt: skip


def _refuse(attributes: dict[str, Any]) -> str | None:
    if attributes.get("coordinate_transformation_mode", "half_pixel") not in _MODES:
        return f"its coordinates '{attributes['coordinate_transformation_mode']}' are not known"
    if attributes.get("mode", "nearest") not in ("nearest", "linear", "bilinear", "cubic"):
        return f"its mode '{attributes['mode']}' is not known"
    return None


@operator("Upsample", refuse=_refuse)
def upsample_sides(x: Tensor, *, height_scale: float, width_scale: float, mode: str = "nearest") -> Tensor:
    return _upsampled(x, [1.0, 1.0, height_scale, width_scale], mode)


@operator("Upsample", since=7, refuse=_refuse)
def upsample_attribute(x: Tensor, *, scales: list[float], mode: str = "nearest") -> Tensor:
    return _upsampled(x, scales, mode)


@operator("Upsample", since=9, hosts=True, refuse=_refuse)
@operator("Resize", since=10, hosts=True, refuse=_refuse)
def upsample(x: Any, scales: Any, *, mode: str = "nearest") -> Tensor:
    return _upsampled(as_tensor(x), numbers(scales), mode)


def _upsampled(x: Tensor, scales: list[Any], mode: str) -> Tensor:
    plan = [Resampling(i, x.shape[i], _floor(x.shape[i] * s), s) for i, s in enumerate(scales)]
    return _resized(x, plan, "linear" if mode == "bilinear" else mode, "asymmetric", "floor", True)


def _floor(size: Any) -> Any:
    return torch.sym_int(size) if isinstance(size, torch.SymFloat) else int(size)


@operator("Resize", since=11, hosts=True, refuse=_refuse)
def resize(
    x: Any,
    roi: Any = None,
    scales: Any = None,
    target: Any = None,
    *,
    antialias: int = 0,
    axes: list[int] | None = None,
    coordinate_transformation_mode: str = "half_pixel",
    cubic_coeff_a: float = -0.75,
    exclude_outside: int = 0,
    extrapolation_value: float = 0.0,
    keep_aspect_ratio_policy: str = "stretch",
    mode: str = "nearest",
    nearest_mode: str = "round_prefer_floor",
) -> Tensor:
    x = as_tensor(x)
    along = [a % x.dim() for a in axes] if axes is not None else list(range(x.dim()))
    regions = [(0.0, 1.0)] * len(along)
    if coordinate_transformation_mode == "tf_crop_and_resize" and roi is not None:
        bounds = numbers(roi)
        regions = list(zip(bounds[: len(along)], bounds[len(along) :], strict=True))
    by_scales = scales is not None and tuple(scales.shape) != (0,)
    if by_scales:
        factors = numbers(scales)
        plan = [
            Resampling(a, x.shape[a], _floor(x.shape[a] * (end - start) * f), f, (start, end))
            for a, f, (start, end) in zip(along, factors, regions, strict=True)
        ]
    else:
        plan = _by_sizes(x, along, sizes(target), regions, keep_aspect_ratio_policy)
        by_scales = keep_aspect_ratio_policy != "stretch"
    return _resized(
        x, plan, mode, coordinate_transformation_mode, nearest_mode, by_scales, cubic_coeff_a, bool(antialias), bool(exclude_outside),
        extrapolation_value,
    )  # fmt: skip


def _by_sizes(x: Tensor, along: list[int], wanted: list[Any], regions: list[Any], policy: str) -> list[Resampling]:
    dims = [x.shape[a] for a in along]
    factors = [w / d for w, d in zip(wanted, dims, strict=True)]
    if policy != "stretch":  # one scale for all axes, so that none is larger (smaller) than asked for
        one = factors[0]
        for factor in factors[1:]:
            one = torch.sym_min(one, factor) if policy == "not_larger" else torch.sym_max(one, factor)
        factors = [one] * len(dims)
        wanted = [_floor(one * d + 0.5) for d in dims]
    return [Resampling(a, d, w, f, r) for a, d, w, f, r in zip(along, dims, wanted, factors, regions, strict=True)]


def _resized(
    x: Tensor, plan: list[Resampling], mode: str, where: str, nearest: str, by_scales: bool, a: float = -0.75,
    antialias: bool = False, exclude_outside: bool = False, outside: float = 0.0,
) -> Tensor:  # fmt: skip
    work = plan if where == "tf_crop_and_resize" else resampling.changed(plan)
    if not work:
        return x
    special = antialias or exclude_outside
    found = None if special else _through_torch(x, work, mode, where, nearest, by_scales, a)
    if found is not None:
        return found
    at = {how.axis: resampling.coordinates(how, where, x.device) for how in work}
    exact = x if x.is_floating_point() or mode == "nearest" else x.float()
    for how in work:
        if mode == "nearest":
            places = resampling.nearest(at[how.axis], nearest)
            low = torch.zeros_like(places[:1])
            exact = exact.index_select(how.axis, places.clamp(low, low + (how.size - 1)))
        else:
            neighbours, weights = resampling.taps(at[how.axis], how, mode, a, antialias, exclude_outside)
            exact = resampling.weighted(exact, how.axis, neighbours, weights)
    if where == "tf_crop_and_resize":
        for how in work:
            exact = resampling.blank_outside(exact, how, at[how.axis], outside)
    return exact.to(x.dtype)


_LINEAR = {3: "linear", 4: "bilinear", 5: "trilinear"}


def _through_torch(x: Tensor, work: list[Resampling], mode: str, where: str, nearest: str, by_scales: bool, a: float) -> Tensor | None:
    """torch's interpolation over all spatial axes, or None where it computes something else."""
    rank = x.dim()
    if not 3 <= rank <= 5 or any(h.axis < 2 for h in work):
        return None
    if not x.is_floating_point() and not (mode == "nearest" and x.dtype == torch.uint8):
        return None
    half = where == "half_pixel" or (where == "pytorch_half_pixel" and not any(isinstance(h.target, int) and h.target == 1 for h in work))
    if mode == "nearest" and where == "asymmetric" and nearest == "floor":
        options: dict[str, Any] = {"mode": "nearest"}
    elif mode == "linear" and (half or where == "align_corners"):
        options = {"mode": _LINEAR[rank], "align_corners": where == "align_corners"}
    elif mode == "cubic" and rank == 4 and a == -0.75 and (half or where == "align_corners"):
        options = {"mode": "bicubic", "align_corners": where == "align_corners"}
    else:
        return None
    by_axis = {h.axis: h for h in work}
    if by_scales and where != "align_corners":
        scales = [by_axis[i].scale if i in by_axis else 1.0 for i in range(2, rank)]
        if not all(isinstance(s, float) for s in scales):
            return None
        if not all(h.target == _floor(h.size * h.scale) for h in work if isinstance(h.target, int)):
            return None
        return functional.interpolate(x, scale_factor=scales, recompute_scale_factor=False, **options)
    return functional.interpolate(x, size=[by_axis[i].target if i in by_axis else x.shape[i] for i in range(2, rank)], **options)
