"""What processes exchange: documents for in-batch negatives, and gradients. With one process nothing happens."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from sentence_transformers.base.losses.gradcache import RandContext
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from colbert_zero.maxsim.packed import Packed
from colbert_zero.maxsim.scores import packed_candidate_scores, packed_scores
from colbert_zero.models.encoding import chunk_tokens, concatenate, forward, reorder
from colbert_zero.processes import gather_rows, sums, world_size


def gather_documents(documents: Packed) -> Packed:
    """Documents of all processes; the gradient of this process's own is summed over all, in one exchange."""
    if world_size() == 1:
        return documents
    lengths, _ = gather_rows(documents.lengths.to(documents.values.device))
    return Packed(_Gather.apply(documents.values), lengths.cpu())


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        gathered, ctx.start = gather_rows(values)
        ctx.count = len(values)
        return gathered

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        gradient = gradient.contiguous()
        dist.all_reduce(gradient)
        return gradient[ctx.start : ctx.start + ctx.count]


Columns = list[dict[str, Any]]


class Texts:
    """Tokenised texts of one task: several columns of a batch put below each other.

    Attributes:
        input_ids: (texts, tokens), padded.
        attention_mask: (texts, tokens).
    """

    def __init__(self, columns: Columns, task: str):
        width = max(column["input_ids"].shape[1] for column in columns)
        self.task = columns[0].get("task") or task
        self.input_ids = torch.cat([F.pad(c["input_ids"], (0, width - c["input_ids"].shape[1])) for c in columns])
        masks = [F.pad(c["attention_mask"], (0, width - c["attention_mask"].shape[1])) for c in columns]
        self.attention_mask = torch.cat(masks)
        # Where a text ends; tokens before it that the mask leaves out are holes, not padding.
        positions = torch.arange(1, width + 1, device=self.attention_mask.device)
        self.lengths = (self.attention_mask.bool() * positions).amax(1).tolist()

    def __len__(self) -> int:
        return len(self.lengths)

    def chunks(self, mini_batch_tokens: int) -> list[list[int]]:
        """Texts of like length together, each chunk at most `mini_batch_tokens` with its padding; longest first."""
        order = sorted(range(len(self)), key=lambda i: (-self.lengths[i], i))
        chunks, start = [], 0
        while start < len(order):
            count = max(1, mini_batch_tokens // max(1, self.lengths[order[start]]))
            chunks.append(order[start : start + count])
            start += count
        return chunks

    def padded(self, chunks: list[list[int]]) -> int:
        """Tokens of these chunks, padding included."""
        return sum(len(chunk) * self.lengths[chunk[0]] for chunk in chunks)

    def features(self, chunk: list[int]) -> dict[str, Tensor]:
        """Model inputs of a chunk, cut to its longest text."""
        width = max(1, max(self.lengths[i] for i in chunk))
        rows = torch.tensor(chunk, device=self.input_ids.device)
        return {"input_ids": self.input_ids[rows, :width], "attention_mask": self.attention_mask[rows, :width]}

    def identities(self) -> Tensor:
        """A number per text, equal for equal token sequences, in every process: (texts,) int64."""
        width = self.input_ids.shape[1]
        # A random odd weight a position: the sums of two different texts are equal with probability 2^-63.
        weights = torch.randint(-(2**62), 2**62, (width,), generator=torch.Generator().manual_seed(0)) * 2 + 1
        real = (self.input_ids + 1) * self.attention_mask
        return (real * weights.to(real.device)).sum(1)


class _CachedLoss(nn.Module, ABC):
    """GradCache (Gao et al. 2021, arXiv 2101.06983): a loss over the whole batch in the memory of one chunk.

    1. Encode every chunk without gradient.
    2. The loss over all embeddings, and its gradient with respect to them.
    3. Encode every chunk again, with gradient, and pass its embeddings' gradient on.

    A batch whose activations all fit in one chunk is encoded once, with gradient. Either way texts of like length
    are encoded together, so that little is padding. Dropout is replayed: a chunk's second pass starts from the random
    state of its first.

    With several processes each has its own queries and their documents, as many as it likes, also none; the mean of
    their losses is the loss of all queries together, and so are their gradients'.
    """

    # Tells sentence-transformers that step 3 happens in a hook of the returned loss.
    uses_gradient_cache = True

    def __init__(
        self,
        model: nn.Module,
        temperature: float = 1.0,
        learnable: bool = False,
        mini_batch_tokens: int = 32_768,
        length_normalised: bool = False,
        teacher_temperature: float | None = None,
        student_scores: str = "min-max",
    ):
        super().__init__()
        self.model = model
        self.mini_batch_tokens = mini_batch_tokens
        self.length_normalised = length_normalised
        self.teacher_temperature = teacher_temperature
        self.student_scores = student_scores
        # The logarithm keeps a learned temperature above 0.
        self.log_temperature = nn.Parameter(torch.tensor(temperature).log(), requires_grad=learnable)

    @property
    def temperature(self) -> Tensor:
        """Scores are divided by it; scalar."""
        return self.log_temperature.exp()

    def forward(self, features: Columns, labels: Tensor | None = None) -> Tensor:
        """The loss of one batch: queries in the first column, documents in the others. Scalar, in nats."""
        queries, documents = Texts(features[:1], "query"), Texts(features[1:], "document")
        head = self.head(queries, documents, labels)
        sides = (queries, documents)
        budget = min(self.mini_batch_tokens, chunk_tokens(queries.input_ids.device))
        chunks = [side.chunks(budget) for side in sides]
        tokens = sum(side.padded(side_chunks) for side, side_chunks in zip(sides, chunks, strict=True))
        if tokens <= self.mini_batch_tokens or not torch.is_grad_enabled():
            return head(*(self._encode(*both)[0] for both in zip(sides, chunks, strict=True)))
        return self._cached_loss(sides, chunks, head)

    @abstractmethod
    def head(self, queries: Texts, documents: Texts, labels: Tensor | None) -> Callable[[Packed, Packed], Tensor]:
        """What the loss is, given the packed embeddings of all queries and documents."""

    def _normalised(self, scores: Tensor, queries: Packed) -> Tensor:
        return scores / queries.lengths.clamp_min(1).to(scores)[:, None] if self.length_normalised else scores

    def _encode(self, texts: Texts, chunks: list[list[int]]) -> tuple[Packed, list[RandContext]]:
        """Embeddings of all texts in their order, and the random state before each chunk."""
        if not chunks:
            return self._no_texts(), []
        states, parts = [], []
        for chunk in chunks:
            features = texts.features(chunk)
            states.append(RandContext(*features.values()))
            parts.append(forward(self.model, features, texts.task))
        order = torch.tensor([i for chunk in chunks for i in chunk])
        return reorder(concatenate(parts), order.argsort()), states

    def _no_texts(self) -> Packed:
        """Embeddings of a process without a share; its gradient, empty too, takes part in what all exchange."""
        model: Any = self.model
        values = torch.zeros(0, model.get_embedding_dimension(), device=next(model.parameters()).device)
        return Packed(values.requires_grad_(torch.is_grad_enabled()), torch.zeros(0, dtype=torch.int64))

    def _cached_loss(
        self, sides: tuple[Texts, Texts], chunks: list[list[list[int]]], head: Callable[[Packed, Packed], Tensor]
    ) -> Tensor:
        with torch.no_grad():
            embeddings, states = zip(*(self._encode(*both) for both in zip(sides, chunks, strict=True)), strict=True)
        leaves = [Packed(e.values.requires_grad_(), e.lengths) for e in embeddings]
        loss = head(*leaves)
        inputs = [leaf.values for leaf in leaves]
        if self.log_temperature.requires_grad:
            inputs.append(self.log_temperature)
        gradients = torch.autograd.grad(loss, inputs, materialize_grads=True)
        lengths = [leaf.lengths for leaf in leaves]
        result = loss.detach().requires_grad_()
        result.register_hook(partial(self._second_pass, sides, chunks, states, lengths, gradients))
        return result

    def _second_pass(
        self, sides: Any, chunks: Any, states: Any, lengths: Any, gradients: Any, upstream: Tensor
    ) -> None:
        """Encode each chunk again and hand on the gradient of its embeddings."""
        if self.log_temperature.requires_grad:
            own = gradients[2] * upstream
            previous = self.log_temperature.grad
            self.log_temperature.grad = own if previous is None else previous + own
        with torch.enable_grad():
            for side, side_chunks, side_states, side_lengths, gradient in zip(
                sides, chunks, states, lengths, gradients, strict=False
            ):
                rows = _token_rows(side_lengths, side_chunks)
                for chunk, state, chunk_rows in zip(side_chunks, side_states, rows, strict=True):
                    with state:
                        values = forward(self.model, side.features(chunk), side.task).values
                    values.backward(gradient[chunk_rows.to(gradient.device)] * upstream)


def _token_rows(lengths: Tensor, chunks: list[list[int]]) -> list[Tensor]:
    """For each chunk, the rows of its texts' tokens in the packed embeddings of all texts."""
    starts = (lengths.cumsum(0) - lengths).tolist()
    counts = lengths.tolist()
    return [torch.cat([torch.arange(starts[i], starts[i] + counts[i]) for i in chunk]) for chunk in chunks]


class ContrastiveLoss(_CachedLoss):
    """InfoNCE over MaxSim with in-batch and hard negatives (van den Oord et al. 2018, arXiv 1807.03748).

    A document equal to a query's own, and the own document of an equal query, are not counted as its negatives.

    Args:
        model: Dense or multi-vector, with normalised embeddings.
        temperature: Divides the scores; unitless, > 0.
        learnable: Train the temperature too.
        mini_batch_tokens: Tokens a GradCache chunk may hold, padding included.
        length_normalised: Divide each score by the query's number of tokens, as LateOn does.
    """

    def head(self, queries: Texts, documents: Texts, labels: Tensor | None) -> Callable[[Packed, Packed], Tensor]:
        """Document i of the first column answers query i; all other documents, of all processes, are its negatives."""
        asked = queries.identities()
        not_asked = torch.full((len(documents) - len(queries),), -1, device=asked.device)
        identities, start = gather_rows(torch.stack([documents.identities(), torch.cat([asked, not_asked])], 1))
        positives = torch.arange(start, start + len(queries), device=asked.device)
        excluded = false_negatives(asked, positives, *identities.unbind(1))
        weight = _weight(len(queries))

        def loss(query_embeddings: Packed, document_embeddings: Packed) -> Tensor:
            scores = packed_scores(query_embeddings, gather_documents(document_embeddings))
            if not len(queries):
                return scores.sum()
            scores = self._normalised(scores, query_embeddings)
            return weight * contrastive_loss(scores, self.temperature, positives, excluded)

        return loss


class DistillationLoss(_CachedLoss):
    """KL divergence from a teacher over each query's candidates; see `distillation_loss`.

    Columns: the query, then its n_ways candidates; labels: the teacher's scores, (queries, n_ways).
    """

    def head(self, queries: Texts, documents: Texts, labels: Tensor | None) -> Callable[[Packed, Packed], Tensor]:
        """Candidates stand column by column; MaxSim wants them query by query."""
        if labels is None:
            raise ValueError("distillation needs the teacher's scores as labels, (queries, n_ways)")
        n_ways = labels.shape[1]
        weight = _weight(len(queries))

        def loss(query_embeddings: Packed, document_embeddings: Packed) -> Tensor:
            by_query = torch.arange(len(documents)).view(n_ways, len(queries)).T.flatten()
            candidates = reorder(document_embeddings, by_query)
            scores = packed_candidate_scores(query_embeddings, candidates, n_ways)
            if not len(queries):
                return scores.sum()
            scores = self._normalised(scores, query_embeddings)
            return weight * distillation_loss(
                scores, labels, self.temperature, self.teacher_temperature, self.student_scores
            )

        return loss


def _weight(queries: int) -> float:
    """Of a process's mean over its own queries, so that the processes' mean is the mean over all queries."""
    return queries * world_size() / max(1.0, sums(queries)[0])


def false_negatives(queries: Tensor, positives: Tensor, documents: Tensor, asked: Tensor) -> Tensor | None:
    """Documents that must not count as negatives of a query, because they answer it.

    Args:
        queries: Identity of each query's text, (queries,).
        positives: Place of each query's own document, (queries,).
        documents: Identity of each document's text, (documents,).
        asked: Identity of the query that a document is the own document of, (documents,); -1 for hard negatives.

    Returns:
        (queries, documents), true where the document equals the query's own or is the own document of an equal
        query, except its own place; None where there is none.
    """
    excluded = (documents[positives][:, None] == documents) | (queries[:, None] == asked)
    excluded[torch.arange(len(queries)), positives] = False
    return excluded if bool(excluded.any()) else None


def contrastive_loss(
    scores: Tensor, temperature: Tensor | float, positives: Tensor, excluded: Tensor | None = None
) -> Tensor:
    """InfoNCE: cross-entropy of each query's own document among all.

    Args:
        scores: (queries, documents), float32.
        temperature: Divides the scores; unitless, > 0.
        positives: Place of each query's own document, (queries,).
        excluded: (queries, documents), true where a document is left out of a query's sum.

    Returns:
        Scalar in nats, mean over queries.

    Source: van den Oord et al. 2018, arXiv 1807.03748, equation 4.
    """
    logits = scores / temperature
    if excluded is not None:
        logits = logits.masked_fill(excluded, float("-inf"))
    return F.cross_entropy(logits, positives)


def distillation_loss(
    student_scores: Tensor,
    teacher_scores: Tensor,
    temperature: Tensor | float,
    teacher_temperature: float | None = None,
    scaling: str = "min-max",
) -> Tensor:
    """KL divergence from teacher to student over each query's candidates.

    With min-max scaling a query says nothing, and has neither loss nor gradient, where either side's scores are all
    equal: the student's within `FLAT`, below which its scaling would blow rounding up.

    Args:
        student_scores: MaxSim, (queries, n_ways), float32.
        teacher_scores: Any real scale, (queries, n_ways); min-max normalised per query here.
        temperature: Divides both sides; unitless, > 0.
        teacher_temperature: Divides the teacher's side instead, where the student's scores span more than [0, 1].
        scaling: "min-max" brings the student's scores of each query to [0, 1] too; "raw" takes them as they are.

    Returns:
        Scalar in nats, mean over queries.

    Raises:
        ValueError: The shapes differ; names both.

    Source: ColBERTv2, arXiv 2112.01488, section 3.2; both sides min-max normalised: JaColBERTv2.5, arXiv 2407.20750,
    and ColBERT-Zero, arXiv 2602.16609.
    """
    if student_scores.shape != teacher_scores.shape:
        raise ValueError(f"student scores {tuple(student_scores.shape)}, teacher scores {tuple(teacher_scores.shape)}")
    teacher_scores = teacher_scores.float()
    teacher = F.log_softmax(min_max(teacher_scores) / (teacher_temperature or temperature), dim=1)
    if scaling == "raw":
        student = F.log_softmax(student_scores / temperature, dim=1)
        return F.kl_div(student, teacher, reduction="batchmean", log_target=True)
    student = F.log_softmax(min_max(student_scores, FLAT) / temperature, dim=1)
    divergence = F.kl_div(student, teacher, reduction="none", log_target=True).sum(1)
    telling = (_span(student_scores) >= FLAT) & (_span(teacher_scores) > 0)
    return divergence.where(telling, 0).mean()


FLAT = 1e-6
"""A student's scores of one query that span less count as equal."""


def min_max(scores: Tensor, flat: float = 1e-9) -> Tensor:
    """Scores of each row brought to [0, 1]; a row that spans less than `flat` becomes 0. Differentiable."""
    low, span = scores.amin(1, keepdim=True), _span(scores)[:, None]
    return ((scores - low) / span.clamp_min(flat)).where(span >= flat, 0)


def _span(scores: Tensor) -> Tensor:
    return scores.amax(1) - scores.amin(1)
