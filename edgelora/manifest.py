"""The frozen dataclasses of `bundle.json`: what a bundle holds and what each graph expects."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, cast

from edgelora.errors import BundleError
from edgelora.manifest_checks import check_references, value_problems
from edgelora.typed_json import read_typed

FORMAT = "edgelora-bundle"
FORMAT_VERSION = (1, 8)
MEASURED_SIZE = 8  # in memory tables, of every size that no model input has: ranks, classes, virtual tokens
_LITTLE = 1 << 20  # bytes of a token table that may stay resident whole
MIXED_INDEX = "adapter_index"  # the input of a graph for mixed batches that numbers each row's adapter
LORA_GRAPHS = "lora"  # the name of the set of graphs that every bundle has
BIAS_OP = "Bias"  # the `op` of a place that has a bias of the base and nothing else
NORMALIZATIONS = ("LayerNormalization", "RMSNormalization")  # the `op` of a point that scales features
TRANSPOSED = ".T"  # ends the name of a value of the base that lies in the file the other way round
RECURRENT = ("LSTM", "GRU", "RNN")  # the `op` of a point at what a recurrent layer makes of its input
SKIP_OP = "Skip"  # the `op` of a point that stands at no product, but leads past layers
EMBEDDING_OP, ATTENTION_OP = "Embedding", "Attention"  # the `op` of a place of virtual tokens
MOST_POSITIONS = 1 << 16  # of a model that has no table of them
Body = Mapping[str, Any]
_SHOWN = 5


@dataclass(frozen=True)
class TensorSpec:
    """A graph input or output: `shape` holds sizes, or names of dimensions that stay dynamic."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True)
class InsertionPoint:
    """A frozen product of the base that adapters may join.

    A linear one maps `[..., in_features]` to `[..., out_features]` (`kernel` is empty), a convolution `[batch,
    in_features, ...]` to `[batch, out_features, ...]` with a kernel of this size an axis, in `groups` groups of
    channels, a recurrent layer (`op` one of `RECURRENT`) its input to the gates of all its directions, in ONNX's order.
    `id` is a stable dotted path (the module path where the source has one), `layer` the index of
    the block it stands in, or None, `op` the ONNX operator, or "Skip": such a point has no product of its own, and adds
    to the last hidden state what it makes of the input of its block. `bias` tells whether the base adds a bias there.

    A set of graphs may have places of its own, such as normalizations (`op` "LayerNormalization" or "RMSNormalization",
    `in_features` features that it scales).
    """

    id: str
    op: str
    in_features: int
    out_features: int
    layer: int | None = None
    kernel: tuple[int, ...] = ()
    groups: int = 1
    bias: bool = False

    @property
    def input_a(self) -> str:
        """Name of the graph input for A."""
        return f"{self.id}.lora_A"

    @property
    def input_b(self) -> str:
        """Name of the graph input for B, fed already multiplied by the scale."""
        return f"{self.id}.lora_B"

    def shape_a(self, rank: int) -> tuple[int, ...]:
        """The shape of A: `[in_features, r]`, or `[r, in_features, *kernel]` of a convolution (as PEFT has it)."""
        return (rank, self.in_features, *self.kernel) if self.kernel else (self.in_features, rank)

    def shape_b(self, rank: int) -> tuple[int, ...]:
        """The shape of B: `[r, out_features]`, or `[out_features, r/groups, 1, ...]` of a convolution."""
        ones = (1,) * len(self.kernel)
        return (self.out_features, rank // self.groups, *ones) if self.kernel else (rank, self.out_features)

    def parameters(self, rank: int) -> int:
        """Trainable parameters that `rank` costs at this point."""
        return math.prod(self.shape_a(rank)) + math.prod(self.shape_b(rank))


@dataclass(frozen=True)
class Head:
    """The new head of an adapter: `logits = features · weightᵀ + bias`, weight `[outputs, features]`.

    `name` is the module's name in `modules_to_save`, `per` is "sequence", "token", or "pixel": at every place of a map
    `[batch, features, h, w]`. Of its outputs, `leading` come before those of the classes.
    """

    name: str
    features: int
    per: str
    leading: int = 0

    @property
    def weight(self) -> str:
        return f"{self.name}.weight"

    @property
    def bias(self) -> str:
        return f"{self.name}.bias"


@dataclass(frozen=True)
class DetectorSettings:
    """What a detector's outputs, maps `[batch, anchors·(5 + classes), h, w]`, mean (edgelora/vision/detectors).

    `anchors` are the widths and heights in pixels of the input that boxes are told in, map by map, if `family` has any.
    `labels` are the classes that the base tells apart, none where those are an adapter's own.
    """

    family: str
    anchors: tuple[tuple[tuple[float, ...], ...], ...] = ()
    labels: tuple[str, ...] = ()


@dataclass(frozen=True)
class Recomputed:
    """A graph that takes and returns what another one does and holds less at a time, because it computes parts twice.

    `work` is what it computes as a multiple of that graph's.
    """

    file: str
    work: float


@dataclass(frozen=True)
class Halves:
    """A training graph in two, for a loss that is computed between them: `forward` returns the bundle's outputs and the
    values `kept`, which `backward` takes beside cotangents.
    """

    forward: str
    backward: str
    kept: tuple[str, ...]


@dataclass(frozen=True)
class TrainingGraph:
    """A graph of forward, loss and backward. `loss` names the loss, `dropout` whether it takes masks.

    `points` are the insertion points whose gradients it returns, `inputs` what it takes beside the
    adapter's tensors, `outputs` what it returns beside the gradients (the loss first). The gradient
    of the input X is the output `grad.X`. `recomputed` is the same graph in less memory, `halves` the same in two.
    """

    file: str
    loss: str
    dropout: bool
    points: tuple[str, ...]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[str, ...]
    recomputed: Recomputed | None = None
    halves: Halves | None = None

    @property
    def files(self) -> tuple[str, ...]:
        """The plain graph, and the one that computes parts twice."""
        return (self.file,) if self.recomputed is None else (self.file, self.recomputed.file)

    @property
    def all_files(self) -> tuple[str, ...]:
        """These, and those of both halves."""
        return self.files if self.halves is None else (*self.files, self.halves.forward, self.halves.backward)


@dataclass(frozen=True)
class AdapterInput:
    """An adapter's float32 graph input; a point without an adapter is fed `neutral`, with named sizes 0.

    Where `neutral` is None it is the base's own value, which the bundle's `values` tell under the input's name.
    """

    name: str
    shape: tuple[int | str, ...]
    neutral: float | None


@dataclass(frozen=True)
class GraphSet:
    """The graphs in which the adapters of a method run: inference, training, and their adapter inputs but the head.

    `norms` is a graph from every point's A and B' to `norm.POINT`, the lengths of the columns of W + A·B'; None where
    the method needs none. `points` are the places of the set's adapters; None: the bundle's points.

    Of a base that continues text, `score` and `decode` are its graphs as `LanguageModel` has them, for these adapters;
    None where they have none. With `before`, a graph from the adapter's inputs to the keys and values that stand before
    every text, `decode` is the base's own and takes no adapter.
    """

    forward: str
    training: tuple[TrainingGraph, ...]
    inputs: tuple[AdapterInput, ...]
    norms: str | None = None
    points: tuple[InsertionPoint, ...] | None = None
    score: str | None = None
    decode: str | None = None
    before: str | None = None


@dataclass(frozen=True)
class Prefix:
    """A frozen beginning of the model, which no adapter at `points` changes, and the graphs that go on from it.

    `file` is a graph from the model's inputs to the tensors `kept`, `[batch, ...]` each. `forward` and `training` take
    these beside the inputs that they still need. `name` is `last-K`: the points stand in the last K layers; or `skip`:
    they are all the bundle's, and lead past the layers.
    """

    name: str
    file: str
    kept: tuple[TensorSpec, ...]
    points: tuple[str, ...]
    forward: str
    training: tuple[TrainingGraph, ...]


@dataclass(frozen=True)
class LostPoint:
    """A point whose gradient would have to pass an operator that no gradient rule covers.

    `blocked_by` names the operator, its node and what is missing; `path` the operators from the point to
    it. An adapter may stand there, and can be trained by forward passes alone.
    """

    id: str
    blocked_by: str
    path: tuple[str, ...]


@dataclass(frozen=True)
class MemoryTerm:
    """`bytes` times the product of the sizes that `sizes` names."""

    sizes: tuple[str, ...]
    bytes: int

    def at(self, sizes: Mapping[str, int]) -> int:
        """The term's value; KeyError for a size that is not given."""
        return self.bytes * math.prod(sizes[name] for name in self.sizes)


@dataclass(frozen=True)
class GatheredTable:
    """A weight of which a run reads some rows: `rows` of `row_bytes`, numbered by the input `input` (None: unknown)."""

    input: str | None
    rows: int
    row_bytes: int


@dataclass(frozen=True)
class MemoryTable:
    """Bytes that a graph's run holds, as measured at conversion (docs/bundle-format.md).

    `peaks` are polynomials of the inputs' dynamic sizes, each a sum of terms; the largest holds. `loaded` is held
    as soon as the graph is loaded, `prepacked` beside it unless prepacking is off. `read` bytes of the mapped weights
    are read whole where it is off, `read_always` of them even where it is on.
    """

    peaks: tuple[tuple[MemoryTerm, ...], ...]
    loaded: int
    prepacked: int
    read: int
    read_always: int
    gathered: tuple[GatheredTable, ...]

    @property
    def reads_alike(self) -> bool:
        """Whether every run reads the same of the mapped weights, but for little."""
        return sum(table.rows * table.row_bytes for table in self.gathered) <= _LITTLE

    def peak(self, sizes: Mapping[str, int]) -> int:
        """The bytes that results hold at the worst moment of a run at these sizes."""
        return max((sum(term.at(sizes) for term in terms) for terms in self.peaks), default=0)


@dataclass(frozen=True)
class Budget:
    """The memory that training has by default, in bytes, and the steps for which it was found to be enough.

    These are of `batch_size` samples, with `length` along the other dynamic dimensions.
    """

    bytes: int
    batch_size: int
    length: int


@dataclass(frozen=True, kw_only=True)
class LanguageFacts:
    """The cache of a model that continues text, the tokens that it knows, and those that begin and end.

    The cache has `layers` pairs of keys and values `[batch, kv_heads, slots, head_size]`. `max_length` is the number of
    tokens that the model takes, 0 where there is no limit. Text ends at any token of `eos`. `chat_template` is a file.
    """

    layers: int
    kv_heads: int
    head_size: int
    vocabulary: int
    max_length: int
    bos: int | None
    eos: tuple[int, ...]
    chat_template: str | None


@dataclass(frozen=True, kw_only=True)
class LanguageModel(LanguageFacts):
    """What of a bundle continues text: `score` is a graph from tokens and `labels` to the `nll` of each, `decode` one
    with a cache, `decode_mixed` the same with an adapter for every row (None where a point takes none).
    """

    score: str
    decode: str
    decode_mixed: str | None


@dataclass(frozen=True)
class FileEntry:
    """Size in bytes and sha256 (hex) of a file of the bundle."""

    size: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """All of `bundle.json`. `docs/bundle-format.md` specifies each field."""

    name: str
    task: str
    base_digest: str
    base_parameters: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    points: tuple[InsertionPoint, ...]
    target_modules: tuple[str, ...]
    forward: str
    training: tuple[TrainingGraph, ...]
    head: Head | None
    preprocessing: Mapping[str, Any]
    source: Mapping[str, Any]
    files: Mapping[str, FileEntry]
    verification: Mapping[str, Any] | None = field(default=None)
    lost: tuple[LostPoint, ...] = ()
    prefixes: tuple[Prefix, ...] = ()
    mixed: str | None = None
    memory: Mapping[str, MemoryTable] = field(default_factory=dict[str, MemoryTable])
    methods: Mapping[str, GraphSet] = field(default_factory=dict[str, GraphSet])
    budget: Budget | None = None
    values: str | None = None
    detector: DetectorSettings | None = None
    language: LanguageModel | None = None

    def graph_set(self, name: str) -> GraphSet | None:
        """The graphs of this name: "lora", or one of `methods`; None if the bundle has none."""
        if name != LORA_GRAPHS:
            return self.methods.get(name)
        inputs = [
            AdapterInput(tensor, tuple(f"{point.id}.r" if size == 0 else size for size in shape), 0.0)
            for point in self.points
            for tensor, shape in ((point.input_a, point.shape_a(0)), (point.input_b, point.shape_b(0)))
        ]
        return GraphSet(self.forward, self.training, tuple(inputs))

    def points_in(self, graphs: str) -> tuple[InsertionPoint, ...]:
        """Where adapters stand that run in the set of graphs of this name."""
        found = self.graph_set(graphs)
        return self.points if found is None or found.points is None else found.points

    def trainable_in(self, graphs: str) -> tuple[InsertionPoint, ...]:
        """Those of `points_in` that have a gradient."""
        found = self.methods.get(graphs)
        if found is None or found.points is None:
            return self.trainable
        reached = {point for graph in found.training for point in graph.points}
        return tuple(point for point in found.points if point.id in reached)

    @property
    def trainable(self) -> tuple[InsertionPoint, ...]:
        """The points that have a gradient."""
        lost = {point.id for point in self.lost}
        return tuple(point for point in self.points if point.id not in lost)

    def point(self, point_id: str) -> InsertionPoint:
        """The insertion point of this id; KeyError if there is none."""
        return {point.id: point for point in self.points}[point_id]

    def to_json(self) -> str:
        """The text of `bundle.json`, the same bytes for equal manifests."""
        body = {"format": FORMAT, "format_version": ".".join(map(str, FORMAT_VERSION))}
        return json.dumps(body | asdict(self), indent=1, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str, where: str) -> Manifest:
        """Read `bundle.json`; `where` names the file in errors.

        Raises:
            BundleError: not JSON, not a bundle, an unknown major version, or a malformed field.
        """
        try:
            body: Any = json.loads(text)
            if "\\u" in text:
                json.dumps(body, ensure_ascii=False).encode()  # halves of surrogate pairs cannot be shown
        except (ValueError, RecursionError) as error:
            raise BundleError(f"{where}: not valid JSON ({error}); convert the model again") from error
        if not isinstance(body, dict) or cast("Body", body).get("format") != FORMAT:
            raise BundleError(f"{where}: not an EdgeLoRA bundle; `edgelora convert` writes one")
        content = cast("Body", body)
        version = str(content.get("format_version", ""))
        if version.split(".")[0] != str(FORMAT_VERSION[0]):
            raise BundleError(
                f"{where}: bundle format {version or '(none)'} is not known to this runtime, which reads "
                f"{FORMAT_VERSION[0]}.x; upgrade edgelora or convert the model again"
            )
        try:
            manifest: Manifest = read_typed(cls, body, "")
            check_references(manifest)
            if problems := value_problems(manifest):
                raise ValueError("; ".join(problems[:_SHOWN]))
        except (ValueError, RecursionError) as error:
            raise BundleError(f"{where}: a field is missing or malformed: {error}; convert the model again") from error
        return manifest
