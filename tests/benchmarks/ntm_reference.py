"""A Neural Turing Machine as one would transcribe the paper: one small module for each equation, one step at a time.

It follows the public PyTorch implementations (pytorch-ntm, clemkoa/ntm): nn.LSTM called with one step, a Linear for each
head, cosine by broadcasting, a shift that loops over the rows of the batch. The numbers are those of `recurra.models.ntm`.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from recurra.models.ntm import NtmCore


class ContentAddressing(nn.Module):
    """Equations 5 and 6."""

    def forward(self, key, strength, memory):
        key = key.unsqueeze(1)
        norms = ((key**2).sum(-1) + 1e-6).sqrt() * ((memory**2).sum(-1) + 1e-6).sqrt()
        return torch.softmax(strength * (key * memory).sum(-1) / norms, dim=1)


class Interpolation(nn.Module):
    """Equation 7."""

    def forward(self, content, gate, last):
        return gate * content + (1 - gate) * last


class Shift(nn.Module):
    """Equation 8; `batched` replaces the loop that the public implementations have over the rows of the batch."""

    def __init__(self, batched: bool) -> None:
        super().__init__()
        self.batched = batched

    def forward(self, weights, share):
        if self.batched:
            return sum(weights.roll(offset, 1) * share[:, offset + 1 : offset + 2] for offset in (-1, 0, 1))
        result = torch.zeros_like(weights)
        for row in range(len(weights)):
            wrapped = torch.cat([weights[row, -1:], weights[row], weights[row, :1]])
            result[row] = functional.conv1d(wrapped.view(1, 1, -1), share[row].flip(0).view(1, 1, -1)).view(-1)
        return result


class Sharpening(nn.Module):
    """Equation 9."""

    def forward(self, weights, sharpness):
        powers = (weights + 1e-16) ** sharpness
        return powers / powers.sum(1, keepdim=True)


class Head(nn.Module):
    """Parameters from the controller's output, and the addressing of one head."""

    def __init__(self, core: NtmCore, number: int, writes: bool, batched: bool) -> None:
        super().__init__()
        width, heads = core.config.memory_width, core.config.read_heads + core.config.write_heads
        written = core.config.write_heads * width
        names = ["key", "add", "erase", "gate", "strength", "sharpness", "share"]
        sizes = [heads * width, written, written, heads, heads, heads, heads * 3]
        weight = dict(zip(names, core.heads.weight.detach().split(sizes), strict=True))
        bias = dict(zip(names, core.heads.bias.detach().split(sizes), strict=True))
        self.writes = writes
        self.counts = {"key": width, "strength": 1, "gate": 1, "sharpness": 1, "share": 3}
        self.counts |= {"erase": width, "add": width} if writes else {}
        self.fc = nn.Linear(core.heads.in_features, sum(self.counts.values()))
        rows = {
            n: slice(self._place(n, number, core) * c, (self._place(n, number, core) + 1) * c)
            for n, c in self.counts.items()
        }
        self.fc.weight.data = torch.cat([weight[name][rows[name]] for name in self.counts]).clone()
        self.fc.bias.data = torch.cat([bias[name][rows[name]] for name in self.counts]).clone()
        self.content, self.interpolation = ContentAddressing(), Interpolation()
        self.shift, self.sharpening = Shift(batched), Sharpening()

    @staticmethod
    def _place(name, number, core):
        return number - core.config.read_heads if name in ("erase", "add") else number

    def forward(self, h, last, memory):
        key, strength, gate, sharpness, share, *writing = self.fc(h).split(list(self.counts.values()), 1)
        content = self.content(key.tanh(), functional.softplus(strength), memory)
        gated = self.interpolation(content, gate.sigmoid(), last)
        weights = self.sharpening(self.shift(gated, share.softmax(1)), 1 + functional.softplus(sharpness))
        return weights, writing


class Read(nn.Module):
    """Equation 2."""

    def forward(self, weights, memory):
        return torch.matmul(weights.unsqueeze(1), memory).squeeze(1)


class Write(nn.Module):
    """Equations 3 and 4."""

    def forward(self, weights, erase, add, memory):
        weights = weights.unsqueeze(-1)
        erased = memory * (1 - torch.matmul(weights, erase.sigmoid().unsqueeze(1)))
        return erased + torch.matmul(weights, add.tanh().unsqueeze(1))


class ReferenceNtm(nn.Module):
    """One read and one write head, LSTM controller, with the weights of `core` and a linear output `head`."""

    def __init__(self, core: NtmCore, head: nn.Linear, *, batched: bool = False) -> None:
        super().__init__()
        controller = core.controller
        reads = core.config.memory_width
        self.lstm = nn.LSTM(core.input_size + reads, controller.hidden_size)
        with torch.no_grad():
            self.lstm.weight_ih_l0.copy_(torch.cat([controller.weight_x, controller.weight_rh[:, :reads]], 1))
            self.lstm.weight_hh_l0.copy_(controller.weight_rh[:, reads:])
            self.lstm.bias_ih_l0.copy_(controller.bias)
            self.lstm.bias_hh_l0.zero_()
        self.read_head, self.write_head = Head(core, 0, False, batched), Head(core, 1, True, batched)
        self.read, self.write = Read(), Write()
        self.fc = nn.Linear(head.in_features, head.out_features)
        self.fc.load_state_dict(head.state_dict())
        for name, value in core.zero_state(1).items():
            value = value[0].t() if name == "memory" else value[0]
            self.register_parameter(name.replace(".", "_"), nn.Parameter(value.detach().clone()))

    def start(self, batch):
        def repeat(value):
            return value.unsqueeze(0).repeat(batch, *[1] * value.dim())

        memory, reads = repeat(self.memory), repeat(self.reads[0])
        weights = repeat(self.read_weights[0]), repeat(self.write_weights[0])
        return memory, reads, weights, (repeat(self.controller_h), repeat(self.controller_c))

    def step(self, x, state):
        memory, reads, (last_read, last_write), (h, c) = state
        _, (h, c) = self.lstm(torch.cat([x, reads], 1).unsqueeze(0), (h.unsqueeze(0), c.unsqueeze(0)))
        h, c = h.squeeze(0), c.squeeze(0)
        read_weights, _ = self.read_head(h, last_read, memory)
        write_weights, (erase, add) = self.write_head(h, last_write, memory)
        reads = self.read(read_weights, memory)
        memory = self.write(write_weights, erase, add, memory)
        return self.fc(torch.cat([h, reads], 1)), (memory, reads, (read_weights, write_weights), (h, c))

    def forward(self, x_BTD):
        state, outputs = self.start(len(x_BTD)), []
        for t in range(x_BTD.shape[1]):
            y, state = self.step(x_BTD[:, t], state)
            outputs.append(y)
        return torch.stack(outputs, 1)
