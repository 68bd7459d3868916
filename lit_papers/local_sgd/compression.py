"""Averages of bfloat16 numbers, half the bytes, with what rounding took away given back in the next round."""

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor

from lit_papers.local_sgd.averaging import group_size
from lit_papers.local_sgd.functional import round_to_bfloat16


class CompressedMean:
    r"""The mean over processes of a change, sent as bfloat16 both ways, with error feedback both ways.

    Each process rounds its change plus what it still owes. Each then sums one share of the numbers of all processes
    without rounding, and rounds the mean of its share plus what that share is still owed. In the long run nothing is
    lost, only late (Karimireddy et al. 2019; both ways as in DoubleSqueeze, Tang et al. 2019). A plain bfloat16
    all-reduce would round at every hop, where nobody could give it back.

    Attributes:
        owed: by this process, shape ``(P,)``; None before the first round.
        share_owed: of the share that this process sums, shape ``(ceil(P / M),)``.
        bytes_sent: 2 for each number so far.
    """

    def __init__(self) -> None:
        self.owed: Tensor | None = None
        self.share_owed: Tensor | None = None
        self.bytes_sent = 0

    def __call__(self, change: Tensor, group: dist.ProcessGroup | None = None) -> None:
        """Replace a change, shape ``(P,)``, by the mean over the group, bitwise the same on all of its ranks."""
        size = group_size(group)
        share = -(-change.numel() // size)
        if self.owed is None or self.share_owed is None:
            self.owed, self.share_owed = torch.zeros_like(change), change.new_zeros(share)
        sent = change.new_zeros(size * share, dtype=torch.bfloat16)
        sent[: change.numel()] = round_to_bfloat16(change, self.owed)
        received = torch.empty_like(sent)
        # as bytes: backends differ in whether they know bfloat16
        dist.all_to_all_single(received.view(torch.uint8), sent.view(torch.uint8), group=group)
        mean = received.view(size, share).to(change.dtype).mean(0)  # (share,)
        gathered = torch.empty_like(sent)
        rounded = round_to_bfloat16(mean, self.share_owed)
        dist.all_gather_into_tensor(gathered.view(torch.uint8), rounded.view(torch.uint8), group=group)
        change.copy_(gathered[: change.numel()])
        self.bytes_sent += 2 * change.numel()

    def state(self) -> Iterable[tuple[str, Tensor]]:
        """What this process alone knows, by name."""
        if self.owed is not None and self.share_owed is not None:
            yield from (("owed", self.owed), ("share_owed", self.share_owed))
