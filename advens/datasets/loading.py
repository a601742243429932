"""From a name such as ``"folder:photos?size=224&limit=500"`` to a `Dataset`."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from importlib import import_module
from importlib.metadata import EntryPoint
from pkgutil import resolve_name
from typing import Any

from advens.datasets.classes import mapped
from advens.datasets.dataset import Dataset
from advens.datasets.decoding import Crop
from advens.datasets.source import Source
from advens.errors import InputError, first_line, unknown
from advens.registry import Info, Registry
from advens.spec import Spec, literal
from advens.trust import confirm, trusting

OPTIONS = ("size", "crop_pct", "interpolation", "classes", "limit", "seed")
INTERPOLATIONS = ("bicubic", "bilinear")
LARGEST_SIZE = 8192


@dataclass(frozen=True)
class DataSource:
    """What is declared of a data source; its module is imported only when a name needs it.

    Args:
        load: ``module:function``, which opens ``SOURCE:PATH?key=value`` as ``function(path, key=value)``. The
            module of a source of advens may also define ``would(spec)``, which says what a name does that
            needs trust, or gives nothing.
        plugin: the entry point of a third party that declares it, as messages name it.
        architecture: the model source whose architecture suits the images.
    """

    load: str
    plugin: str = ""
    architecture: str = "timm:resnet18"


def _declared(point: EntryPoint) -> tuple[DataSource, Info]:
    """The entry of a third party's entry point."""
    package = f" of {point.dist.name}" if point.dist is not None else ""
    usage = f"{point.name}:...  {point.value}{package}"
    return DataSource(f"{point.module}:{point.attr}", point.value), Info(point.name, summary=usage)


SOURCES: Registry[DataSource] = Registry("data source", group="advens.data", declare=_declared)
for _name, _source, _usage in (
    ("digits", DataSource("advens.datasets.digits:load", architecture="digits:mambaout"),
     "digits:train|test  scikit-learn's digits as 3x32x32, embedded"),
    ("folder", DataSource("advens.datasets.folder:load"),
     "folder:PATH  images in one sub-folder per class"),
    ("csv", DataSource("advens.datasets.labels_csv:load"),
     "csv:PATH[?label_offset=1]  labels.csv (filename, label[, targeted_label]) or NIPS 2017's images.csv "
     "beside images/"),
    ("parquet", DataSource("advens.datasets.parquet:load"),
     "parquet:PATH[?image=img&label=fine_label&split=test]  a file or a folder of shards"),
    ("torchvision", DataSource("advens.datasets.torchvision_sets:load"),
     "torchvision:NAME?root=PATH[&train=false|&split=test][&download=true]  as CIFAR10"),
    ("synthetic", DataSource("advens.datasets.synthetic:load"),
     "synthetic:shapes?n=N&seed=S  procedural 3x32x32 images of ten classes"),
):  # fmt: skip
    SOURCES.register(Info(_name, summary=_usage), _source)


def load_data(spec: str) -> Dataset:
    """The data set of a name. Who calls this in Python trusts the name, which may be of a plug-in.

    Every source takes ``size=S`` (the shorter side is resized to S, bicubic with antialiasing, and
    the centre square cropped), and with it ``crop_pct=P`` (the side is resized to S / P instead, rounded
    down as timm does; ``224/232`` is a number, too) and ``interpolation=bilinear``; ``classes=FILE``,
    which says which outputs of a model its classes are (see `advens.datasets.classes`); and
    ``limit=N&seed=S`` (the first N rows of a shuffle drawn from S, 0 by default, so that a smaller
    limit is a prefix of a larger one).

    Raises:
        InputError: unknown source or option, missing or damaged files, images of several sizes
            where no size is asked for.
    """
    with trusting(spec):
        return find_data(spec)


def find_data(spec: str) -> Dataset:
    """The same for a name that may come from a file: a plug-in is called only if the name is trusted."""
    data = open_data(spec)
    _ = data.size  # reads headers where that is enough, and raises for mixed sizes now
    return data


def downloads(spec: str) -> bool:
    """Whether opening a name downloads. Raises InputError for one that is not trusted to."""
    parsed = Spec.parse(spec, "data")
    _factory(parsed)
    return literal(parsed.query.get("download", "false")) is True


def open_data(spec: str) -> Dataset:
    """The same without a look at any image."""
    parsed = Spec.parse(spec, "data")
    factory = _factory(parsed)
    parameters = list(inspect.signature(factory).parameters.values())
    named = {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    named -= {parameters[0].name} if parameters else set()
    if not any(p.kind == p.VAR_KEYWORD for p in parameters):
        parsed.only(*OPTIONS, *sorted(named))
    crop = _crop(parsed)
    limit = _number(parsed, "limit", 1, None)
    seed = _number(parsed, "seed", 0, 2**32 - 1)
    if seed is not None and limit is None and "seed" not in named:
        raise InputError(f"'{spec}': seed shuffles nothing without a limit; add &limit=N")
    query = {key: v for key, v in parsed.query.items() if key not in OPTIONS or key in named}
    data = _dataset(_open(parsed, factory, query), spec, None if "size" in named else crop)
    if "classes" in parsed.query and "classes" not in named:
        source = mapped(data.source, parsed.query["classes"], spec)
        data = Dataset(source, spec, data.rows, data.resized)
    if limit is not None:
        data = data.take(limit, seed or 0)
    return data


def list_data() -> list[tuple[str, str]]:
    """(scheme, one line of usage) of every source, third-party ones last."""
    own = list(SOURCES.entries)
    others = [name for name in SOURCES if name not in SOURCES.entries]
    return [(name, SOURCES.info(name).summary) for name in (*own, *others)]


def is_own(name: str) -> bool:
    """Whether a name is of a source of advens, which reads the same pixels from the same files every time."""
    return not SOURCES.get(Spec.parse(name, "data").scheme).plugin


def suited_architecture(name: str) -> str:
    """The model source whose architecture suits the images of a data source."""
    return SOURCES.get(Spec.parse(name, "data").scheme).architecture


def _factory(spec: Spec) -> Callable[..., Any]:
    """The function of a source. Raises InputError for a name that needs trust and has none."""
    source = SOURCES.get(spec.scheme)
    module = source.load.partition(":")[0]
    if not source.plugin:
        confirm(spec, "data", getattr(import_module(module), "would", ""))
        factory: Callable[..., Any] = resolve_name(source.load)
        return factory
    confirm(spec, "data", f"call the plug-in '{spec.scheme}' ({source.plugin})")
    try:
        loaded = resolve_name(source.load)
    except Exception as error:
        raise InputError(
            f"data source '{spec.scheme}' ({source.plugin}) does not load: "
            f"{type(error).__name__}: {first_line(error)}"
        ) from error
    if not callable(loaded):
        raise InputError(f"data source '{spec.scheme}' ({source.plugin}) is not a function of a path")
    plugin: Callable[..., Any] = loaded
    return plugin


def _open(spec: Spec, factory: Callable[..., Any], query: dict[str, str]) -> Any:
    if not SOURCES.get(spec.scheme).plugin:
        return factory(spec.rest, **query)
    try:
        opened = factory(spec.rest, **query)
        counted = Counter(getattr(opened, "sample_ids", ()))
    except InputError:
        raise
    except Exception as error:
        raise InputError(
            f"data source '{spec.scheme}' cannot open '{spec.text}': "
            f"{type(error).__name__}: {first_line(error)}"
        ) from error
    for name, times in counted.items():
        if times > 1:
            raise InputError(f"data '{spec.text}': sample id '{name}' is there {times} times")
    return opened


def _dataset(opened: Any, spec: str, size: Crop | None) -> Dataset:
    """Whatever a factory gave, as a `Dataset` called ``spec``."""
    if isinstance(opened, Dataset):
        return Dataset(opened.source, spec, opened.rows, size or opened.resized)
    if all(hasattr(opened, name) for name in ("labels", "sample_ids", "pixels", "content")):
        source: Source = opened
        return Dataset(source, spec, None, size)
    from advens.datasets.map_style import wrap

    return Dataset(wrap(opened, f"'{spec}'"), spec, None, size)


def _crop(spec: Spec) -> Crop | None:
    """How images are brought to one size, if they are."""
    size = _number(spec, "size", 1, LARGEST_SIZE)
    interpolation = spec.query.get("interpolation", "bicubic")
    if interpolation not in INTERPOLATIONS:
        raise unknown(f"'{spec.text}': interpolation", interpolation, INTERPOLATIONS)
    try:
        share = Fraction(spec.query.get("crop_pct", "1"))
    except (ValueError, ZeroDivisionError):
        share = Fraction(0)
    if not 0 < share <= 1 or (size is not None and size / share > LARGEST_SIZE):
        raise InputError(
            f"'{spec.text}': crop_pct = '{spec.query.get('crop_pct')}' must be a number such as 0.875 or "
            f"224/256, above 0 and at most 1"
        )
    if size is not None:
        return Crop(size, int(size / share), interpolation)
    for key in ("crop_pct", "interpolation"):
        if key in spec.query:
            raise InputError(f"'{spec.text}': {key} needs the size of the crop; add &size=224")
    return None


def _number(spec: Spec, key: str, low: int, high: int | None) -> int | None:
    value = spec.number(key)
    if value is not None and not (low <= value and (high is None or value <= high)):
        allowed = f"from {low} to {high}" if high is not None else f"{low} or more"
        raise InputError(f"'{spec.text}': {key} = {value} must be {allowed}")
    return value
