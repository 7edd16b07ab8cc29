"""What a worker drives: something that makes a subject's anchors once and renders its scenes from their cache."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from consistory_ray.errors import AssetError
from consistory_ray.plan.loaded import ALONE, Loaded

if TYPE_CHECKING:
    from PIL.Image import Image

    from consistory_ray.plan.plan import Asset, SubjectPlan
    from consistory_ray.settings import MethodSettings

CacheBuffer: TypeAlias = NDArray[np.uint8]
"""An anchor cache as one flat array of bytes; read-only for everybody once it is in the object store."""


@dataclass(frozen=True, slots=True)
class RendererSpec:
    """What a worker tells its factory.

    Attributes:
        model: as the job names it.
        device: ``"cpu"`` or ``"cuda"``.
        torch_dtype: ``"auto"``, ``"float32"``, ``"bfloat16"`` or ``"float16"``.
        threads: CPU threads the renderer may use.
        config: as the job names it: where the configurations of a single-file model are, None for elsewhere.
        gpu_share: the part of its GPU that is the renderer's own, where several share one.
        controlnets: as the job names them; hints name them by their places.
        guess_mode: whether they lead the conditional half only.
        compile: whether the network is compiled.
        inputs: URL of the output, from which :class:`~consistory_ray.engine.inputs.InputReader` reads what users give.
        pad_to: how many scenes every batch is filled up to with copies that are dropped, so that a picture is the same
            to the bit in whatever company; None fills none up.
        loaded: what is loaded with the model.
    """

    model: str
    device: str
    torch_dtype: str
    threads: int
    config: str | None = None
    gpu_share: float = 1.0
    controlnets: tuple[str, ...] = ()
    guess_mode: bool = False
    compile: bool = False
    inputs: str = ""
    pad_to: int | None = None
    loaded: Loaded = ALONE


class MadeSubject:
    """A subject's anchors.

    What its scenes need is several gigabytes in many pieces. A renderer may leave it to whoever asks for the bytes to
    put them together: the worker does that beside its device, which goes on with the next call meanwhile.

    Args:
        images: one picture per anchor.
        cache_buffer: what its scenes need, a flat uint8 array that the caller owns; None where ``pack`` makes it.
        seconds: how long it took.
        sha256: of ``cache_buffer``, 64 hexadecimal digits, where the renderer knows it; else empty.
        pack: makes both of them, when first asked for either.
        masks: of given pictures what was taken for the subject, one bool ``[h, w]`` on any grid for each, to be shown
            to people.
        notices: what people should know about single ones, by index.
    """

    __slots__ = ("_buffer", "_pack", "_sha256", "images", "masks", "notices", "seconds")

    def __init__(
        self,
        images: list[Image],
        cache_buffer: CacheBuffer | None,
        seconds: float,
        sha256: str = "",
        *,
        pack: Callable[[], tuple[CacheBuffer, str]] | None = None,
        masks: Sequence[NDArray[np.bool_]] = (),
        notices: Mapping[int, str] | None = None,
    ) -> None:
        self.images = images
        self.masks = masks
        self.notices = dict(notices or {})
        self.seconds = seconds
        self._buffer, self._sha256, self._pack = cache_buffer, sha256, pack

    @property
    def cache_buffer(self) -> CacheBuffer:
        """What its scenes need."""
        return self._packed()[0]

    @property
    def sha256(self) -> str:
        """Of that; empty if the renderer does not know it."""
        return self._packed()[1]

    def _packed(self) -> tuple[CacheBuffer, str]:
        if self._buffer is None:
            assert self._pack is not None, "a subject without a cache"
            (self._buffer, self._sha256), self._pack = self._pack(), None
        return self._buffer, self._sha256


class UnclearPicturesError(AssetError):
    """The subject is not to be found in pictures that were given.

    Attributes:
        images, masks: see :class:`MadeSubject`; both may be empty.
    """

    def __init__(self, message: str, images: Sequence[Image] = (), masks: Sequence[NDArray[np.bool_]] = ()) -> None:
        super().__init__(message)
        self.images = images
        self.masks = masks


class Renderer(Protocol):
    """One loaded model on one device. All methods are called from one thread.

    A renderer may also have ``phases``, a mapping from phase to seconds that splits what its last call took,
    ``masks``, where the subject is in each picture of that call (bool ``[h, w]`` on any grid, None where nobody knows),
    ``peak_memory``, the most bytes of device memory in use so far, ``fitting_batch(height, width)``, how many
    scenes of that size (None is the model's own) fit into the memory that is free, ``notices``, sentences about the
    model that somebody should read, and ``control_fingerprints``, which identify each ControlNet.
    """

    @property
    def fingerprint(self) -> str:
        """Identifies the loaded weights."""

    def make_subject(self, subject: SubjectPlan) -> MadeSubject:
        """Make the subject's anchors, or take its ``pictures``, which the output has copies of, for them.

        Only ``concepts``, ``anchors``, ``pictures`` and ``settings`` are looked at.

        Raises:
            UnclearPicturesError: the subject is not to be found in a picture.
        """

    def load_cache(self, buffer: CacheBuffer) -> Any:
        """A buffer as :meth:`render` wants it, without copying what is large.

        Raises:
            CacheMismatchError: it belongs to another model, other settings or another format.
        """

    def join_caches(self, buffers: Sequence[CacheBuffer]) -> CacheBuffer:
        """One cache with the anchors of several subjects, in their order; the same bytes every time.

        Raises:
            CacheMismatchError: they do not fit together.
        """

    def render(
        self, scenes: Sequence[Asset], cache: Any, settings: MethodSettings | None = None
    ) -> Sequence[Image | AssetError]:
        """One picture per scene, in order, or what is wrong with it.

        A picture does not depend on which others are rendered with it.

        Args:
            scenes: of one subject.
            cache: of :meth:`load_cache`.
            settings: the plan's, which may save other things on scenes than those that the cache was made for; None is
                as it was made.
        """


RendererFactory: TypeAlias = Callable[[RendererSpec], Renderer]
"""Called once in each worker; must be picklable."""
